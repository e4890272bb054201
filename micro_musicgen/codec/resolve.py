"""From a reference to a codec that plays: a run, a release, one of audiocraft's packages, or a pretrained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from micro_musicgen import hub_client, references, weights
from micro_musicgen.codec import codebooks, encodec_24khz, parts
from micro_musicgen.codec.beat_codec import BeatCodec
from micro_musicgen.codec.builder import build_codec_model, is_own
from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.codec.parts import CodecParts
from micro_musicgen.contracts import Codec
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.upstream.packages import CODEC_PACKAGE

if TYPE_CHECKING:
    import torch

MAX_HOPS = 4
"""A reference may lead to another one (an LM's run to its codec's), but not in circles."""


def load_codec(reference: str | Path, device: torch.device | str = "cpu") -> Codec:
    """Gives the codec that `reference` names, in evaluation mode on `device`.

    reference: a run (signature, folder, data set name, checkpoint file), a release folder of either form, a
    `compression_state_dict.bin`, `//pretrained/ID`, a Hub id, a folder to which transformers saved a codec, or the
    encodec package's `encodec_24khz-*.th`. A language model's run or release stands for the codec that it was trained
    on. With `:N` at its end, the codec's first N codebooks.

    Raises:
        MissingFileError: nothing of that name exists.
        MissingExtraError: a pretrained codec needs transformers, which is not installed.
        MicroMusicGenError: what is there is damaged, is no codec, or has fewer codebooks.
    """
    return build_codec(read_codec(reference), device)


def read_codec(reference: str | Path) -> CodecParts:
    """Gives config and weights of the codec that `reference` names, unbuilt; see `load_codec`."""
    text, number = codebooks.split(str(reference))
    for _ in range(MAX_HOPS):
        found = _read(text)
        if isinstance(found, CodecParts):
            return codebooks.first(found, number)
        text, inner = codebooks.split(found)
        number = inner if number is None else number
    raise MicroMusicGenError(f"{reference} leads from one reference to the next and to no codec; name the codec itself")


def _read(text: str) -> CodecParts | str:
    """Gives the codec, or the reference that leads to it."""
    found = references.resolve(text, solver="compression")
    if found.kind == "hub":
        assert found.hub_id is not None
        return _from_hub(found.hub_id)
    path = found.local_path()
    if found.kind == "release":
        return _from_folder(path)
    weights_file = encodec_24khz.read(path) if found.kind == "checkpoint" else None
    if weights_file is not None:
        return weights_file
    return parts.from_checkpoint_file(path / references.CHECKPOINT_NAME if found.kind == "run" else path)


def _from_folder(folder: Path) -> CodecParts:
    from micro_musicgen.codec.pretrained import is_model_folder

    if is_model_folder(folder):
        return CodecParts(source=str(folder), pretrained=str(folder))
    return parts.from_folder(folder)


def _from_hub(repo_id: str) -> CodecParts:
    """Gives a codec from the Hub: a release of ours, audiocraft's package, or the name of a codec of transformers'.

    Only the small config is fetched to tell them apart.
    """
    from micro_musicgen.codec.pretrained import KNOWN

    if repo_id in KNOWN:
        return CodecParts(source=repo_id, pretrained=repo_id)
    config = hub_client.download_file(repo_id, parts.CONFIG_FILE)
    if config is not None and parts.is_release(config.parent):
        folder = hub_client.download_folder(repo_id, [parts.CONFIG_FILE, parts.WEIGHTS_FILE])
        return parts.from_release(folder)
    package = hub_client.download_file(repo_id, CODEC_PACKAGE)
    if package is not None:
        return parts.from_folder(package.parent)
    if config is not None:
        return CodecParts(source=repo_id, pretrained=repo_id)
    raise MicroMusicGenError(f"{repo_id} on the Hub holds no codec: neither {parts.CONFIG_FILE} nor {CODEC_PACKAGE}")


def build_codec(found: CodecParts, device: torch.device | str = "cpu") -> Codec:
    """Gives the codec made of `found`, in evaluation mode on `device`.

    Raises:
        MissingExtraError: a pretrained codec needs transformers, which is not installed.
        MicroMusicGenError: weights and config don't belong together.
    """
    if found.pretrained is not None:
        from micro_musicgen.codec.pretrained import load_pretrained

        return load_pretrained(found.pretrained, device)
    return build_own(found, device)


def build_own(found: CodecParts, device: torch.device | str = "cpu") -> EncodecCodec | BeatCodec:
    """Gives the codec made of the config and weights in `found`, in evaluation mode on `device`.

    Raises:
        MicroMusicGenError: weights and config don't belong together.
    """
    assert found.pretrained is None, found.pretrained
    shapes = {name: tuple(tensor.shape) for name, tensor in found.state.items()}
    weights.check_depths(found.config, shapes, source=found.source)
    model = weights.fill_module(
        lambda build_device: build_codec_model(found.config, device=build_device),
        lambda: found.state,
        shapes,
        source=found.source,
    )
    wrapper = BeatCodec if is_own(found.config) else EncodecCodec
    return wrapper(model.to(device), found.config)
