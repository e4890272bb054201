"""Codecs that others trained and published, as transformers loads them: from the Hub, or from a folder on this machine.

Supported by name, never required. Mind their licences: `facebook/encodec_32khz` may not be used commercially.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch

from micro_musicgen import hub_client, storage
from micro_musicgen.codec import codebooks
from micro_musicgen.codec.dac import DacCodec
from micro_musicgen.codec.transformers_encodec import TransformersEncodec
from micro_musicgen.codec.wrapping import FrozenCodec
from micro_musicgen.errors import MicroMusicGenError, MissingExtraError, MissingFileError

KNOWN: dict[str, str | None] = {
    "facebook/encodec_32khz": "CC-BY-NC-4.0",
    "facebook/encodec_24khz": None,
    "descript/dac_16khz": "MIT",
    "descript/dac_24khz": "MIT",
    "descript/dac_44khz": "MIT",
}
"""Published codecs that are known to fit, with the licence of their weights; None where we know of none."""

CONFIG_FILE = "config.json"
WEIGHT_FILES = (CONFIG_FILE, "*.safetensors")


class _Wrapper(Protocol):
    def __call__(self, model: Any, name: str, num_codebooks: int | None) -> FrozenCodec: ...


KINDS: dict[str, tuple[str, _Wrapper]] = {
    "encodec": ("EncodecModel", TransformersEncodec),
    "dac": ("DacModel", DacCodec),
}
"""transformers' `model_type` of each kind of codec that is used here, its class there and its wrapper here."""


def is_model_folder(folder: Path) -> bool:
    """Says whether `folder` is one to which transformers saved a codec."""
    return _kind(folder) in KINDS


def _kind(folder: Path) -> str | None:
    path = folder / CONFIG_FILE
    plain = storage.read_json(path) if path.is_file() else None
    kind = plain.get("model_type") if isinstance(plain, dict) else None
    return kind if isinstance(kind, str) else None


def load_pretrained(reference: str, device: torch.device | str = "cpu") -> FrozenCodec:
    """Gives a codec by its name on the Hub, fetched when it is new, or by the folder that transformers saved it to.

    reference: with `:N` at its end, the codec has its first N codebooks only.

    Raises:
        MissingExtraError: transformers is not installed.
        MicroMusicGenError: the Hub can't be reached, the model is no codec, is incomplete or does not suit, or has
            fewer codebooks.
    """
    name, num_codebooks = codebooks.split(reference)
    try:
        version("transformers")
    except PackageNotFoundError:
        raise MissingExtraError(
            f"the pretrained codec {name} needs transformers; run: pip install 'micro-musicgen[codecs]', "
            "or train a codec of your own"
        ) from None
    folder = Path(name) if Path(name).is_dir() else _fetched(name)
    kind = _kind(folder)
    if kind not in KINDS:
        raise MicroMusicGenError(
            f"{name} is no {' or '.join(KINDS)} codec but {kind or 'something else'}; use one like {', '.join(KNOWN)}"
        )
    class_name, wrapper = KINDS[kind]
    # float: codes should not depend on the precision that somebody saved the weights in
    return wrapper(_read_model(class_name, folder, name).float().to(device), name, num_codebooks)


def _fetched(name: str) -> Path:
    try:
        return hub_client.download_folder(name, WEIGHT_FILES)
    except MissingFileError:
        raise
    except MicroMusicGenError as error:
        raise MicroMusicGenError(
            f"{error}; or fetch config.json and model.safetensors of {name} elsewhere and give their folder as codec"
        ) from error


def _read_model(class_name: str, folder: Path, name: str) -> Any:
    """Gives transformers' model in `folder`, complete or not at all."""
    import transformers

    try:
        model, report = getattr(transformers, class_name).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MicroMusicGenError(f"{name} cannot be loaded as {class_name}: {reason}") from error
    # transformers draws at random what a file lacks.
    missing = sorted(report["missing_keys"])
    if missing:
        raise MicroMusicGenError(f"{name} lacks {len(missing)} of its weights, {missing[0]} among them; fetch it again")
    return model
