"""Frozen text encoders: any T5 on the Hub or in a folder, as transformers loads it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from micro_musicgen import hub_client, storage
from micro_musicgen.conditioners.feature_cache import RecentFeatures
from micro_musicgen.errors import MicroMusicGenError, MissingExtraError, MissingFileError

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
KINDS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""transformers' `model_type` of each kind of encoder that is used here, and its class there."""
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "spiece.model", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
HOW_TO_PASS = "conditioners.description.text.encoder=/path/to/folder"
_open: WeakValueDictionary[tuple[Any, ...], TextEncoder] = WeakValueDictionary()
_opening = threading.RLock()


class TextEncoder:
    """A frozen T5 encoder in fp32. Its weights are read when the first text is encoded.

    Not a module on purpose: what walks over a model's modules (state_dict, parameters, train, the moving average)
    never meets it. Copies of a model share it, and it is as much as others use it on the device that they name.
    """

    def __init__(self, name: str, folder: Path) -> None:
        """Takes the name that messages use, and the folder whose `config.json` is there."""
        self.name = name
        self.folder = folder
        self.recent = RecentFeatures()
        self._lock = threading.RLock()
        self._parts: tuple[Any, Any] | None = None
        self._has_warned = False
        plain = storage.read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else None
        kind = plain.get("model_type") if isinstance(plain, dict) else None
        if not isinstance(kind, str) or kind not in KINDS:
            raise MicroMusicGenError(
                f"{name} holds no T5 text encoder but {kind or 'something else'}; pass the folder of one: {HOW_TO_PASS}"
            )
        assert isinstance(plain, dict)
        if not isinstance(plain.get("d_model"), int) or plain["d_model"] < 1:
            raise MicroMusicGenError(f"{folder / CONFIG_FILE} names no width (d_model); fetch {name} again")
        self.kind = kind
        self.width: int = plain["d_model"]

    @cached_property
    def content_hash(self) -> str:
        """The sha256 in hex of all that shapes the features: config, weights and tokenizer, wherever they lie."""
        folder = self._complete()
        digest = hashlib.sha256()
        for pattern in (CONFIG_FILE, *WEIGHT_FILES, *TOKENIZER_FILES):
            for path in sorted(folder.glob(pattern)):
                digest.update(f"{path.name} {storage.file_hash(path)}\n".encode())
        return digest.hexdigest()

    def encode(self, text: str, max_length: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Gives features fp32 [S, width] of a text, on the CPU, not to be written to; 1 <= S <= max_length.

        Each text is encoded alone, so that its features don't depend on the texts beside it. Longer texts are cut:
        the first time with a warning. device: where the encoder computes.

        Raises:
            MicroMusicGenError: the encoder can't be loaded.
        """
        held = self.recent.get((max_length, text))
        if held is None:
            with self._lock:
                held = self._compute(text, max_length, torch.device(device))
            self.recent.put((max_length, text), held)
        return held

    def __deepcopy__(self, memo: dict[int, Any]) -> TextEncoder:
        return self

    def _compute(self, text: str, max_length: int, device: torch.device) -> torch.Tensor:
        tokenizer, model = self._loaded()
        tokens: list[int] = tokenizer(text, verbose=False)["input_ids"]
        if len(tokens) > max_length:
            self._warn(text, len(tokens), max_length)
            tokens = tokens[: max_length - 1] + tokens[-1:]  # the last one says that the text ends
        model.to(device)
        # no_grad and not inference_mode: the projection behind it is trained on what comes out. Never in half: T5
        # overflows there, and features should not depend on the training's precision.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            found: torch.Tensor = model(input_ids=torch.tensor([tokens], device=device)).last_hidden_state[0]
        return found.float().cpu()

    def _warn(self, text: str, length: int, max_length: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            start = " ".join(text[:80].split()[:6])
            logger.warning(
                "a text of %d tokens is cut to the %d that the model reads (max_length): %s ...; further ones are cut "
                "without a word",
                length, max_length, start,
            )  # fmt: skip

    def _loaded(self) -> tuple[Any, Any]:
        if self._parts is None:
            self._parts = _read(self.name, self._complete(), KINDS[self.kind])
        return self._parts

    def _complete(self) -> Path:
        """Gives the folder with weights in it, fetched when it is the Hub's."""
        if not _has_weights(self.folder) and self.name == _hub_id(self.name):
            self.folder = _fetched(self.name, (CONFIG_FILE, *WEIGHT_FILES, *TOKENIZER_FILES))
        if not _has_weights(self.folder):
            raise MicroMusicGenError(
                f"{self.name} has no model.safetensors, and pickled weights are not read; "
                "save it with transformers' save_pretrained and pass that folder: " + HOW_TO_PASS
            )
        return self.folder


def open_text_encoder(reference: str, folder: Path | None = None) -> TextEncoder:
    """Gives the encoder by its id on the Hub or its folder, the same one for every asker while somebody holds it.

    folder: where a relative path is looked up first. Only `config.json` is read here.

    Raises:
        MissingExtraError: transformers is not installed.
        MissingFileError: `reference` is a path that doesn't exist, or no model of the Hub.
        MicroMusicGenError: the Hub can't be reached, or what is there is no T5.
    """
    if find_spec("transformers") is None:
        raise MissingExtraError(
            f"the text encoder {reference} needs transformers; run: pip install 'micro-musicgen[text]'"
        )
    found = _local_folder(reference, folder)
    name = reference if found is None else str(found)
    if found is None:
        found = _fetched(_hub_id(reference), (CONFIG_FILE,))
    key = (name, *((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(found.glob("*"))))
    with _opening:
        encoder = _open.get(key)
        if encoder is None:
            encoder = _open[key] = TextEncoder(name, found)
    return encoder


def _local_folder(reference: str, base: Path | None) -> Path | None:
    path = Path(reference).expanduser()
    for candidate in ([base / path] if base else []) + [path]:
        if reference and candidate.is_dir():
            return candidate.resolve()
    if not _hub_id(reference):
        raise MissingFileError(f"there is no folder {reference!r}; pass one that holds a T5 encoder: {HOW_TO_PASS}")
    return None


def _hub_id(reference: str) -> str:
    """Gives `reference` when it can be a Hub id, else an empty string."""
    is_path = reference.startswith((".", "/", "~")) or reference.count("/") > 1 or "\\" in reference or not reference
    return "" if is_path or Path(reference).is_absolute() else reference


def _fetched(name: str, patterns: tuple[str, ...]) -> Path:
    try:
        return hub_client.download_folder(name, patterns)
    except MicroMusicGenError as error:
        raise type(error)(
            f"{error}; or fetch config.json, model.safetensors, tokenizer.json (or spiece.model) and "
            f"tokenizer_config.json of {name} elsewhere and pass their folder: {HOW_TO_PASS}"
        ) from error


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES if pattern.endswith(".safetensors"))


def _read(name: str, folder: Path, class_name: str) -> tuple[Any, Any]:
    """Gives transformers' tokenizer and encoder in `folder`, complete or not at all, frozen."""
    from micro_musicgen import upstream

    upstream.patcher()  # transformers imports torchaudio, which doesn't load everywhere without its patch
    import transformers

    try:
        with _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model, report = getattr(transformers, class_name).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # transformers raises whatever its own libraries do, of a bad file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise MicroMusicGenError(f"the text encoder {name} cannot be loaded: {reason}; fetch it again") from error
    # transformers draws at random what a file lacks, and makes up the tokenizer of a folder that has none.
    missing = sorted(report["missing_keys"])
    if missing:
        raise MicroMusicGenError(f"{name} lacks {len(missing)} of its weights, {missing[0]} among them; fetch it again")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "spiece.model")):
        raise MicroMusicGenError(f"{name} has no tokenizer.json or spiece.model; fetch one of them too")
    return tokenizer, model.float().eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keeps transformers from drawing progress bars of its own over ours."""
    logging_ = transformers.utils.logging
    was_enabled = logging_.is_progress_bar_enabled()
    logging_.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging_.enable_progress_bar()
