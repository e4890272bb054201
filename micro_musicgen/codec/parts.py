"""A codec on its way between files: config and weights, or the name of a pretrained one. Nothing is built here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen import checkpoints, storage, weights
from micro_musicgen.codec.builder import codec_config
from micro_musicgen.contracts import RELEASE_FORMAT, ReleaseConfig
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.upstream.packages import CODEC_PACKAGE, Package, plain_note, read_package

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "codec.safetensors"


@dataclass(frozen=True, kw_only=True)
class CodecParts:
    """Invariant: either `pretrained` names a Hub model, or `config` and `state` hold a codec.

    source: where it was read from, for messages. origin: what is known of its making: "signature" of the run,
    "from_scratch"; empty when nothing is.
    """

    source: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    pretrained: str | None = None


def from_run(state: Mapping[str, Any], *, source: str) -> CodecParts:
    """Gives the codec of a compression run's checkpoint: its best weights."""
    from omegaconf import OmegaConf

    assert state["solver"] == "compression", state["solver"]
    run = OmegaConf.create(state["config"])
    origin = {"signature": state["signature"], "from_scratch": not run.get("continue_from")}
    best = {name: tensor.clone() for name, tensor in state["best"]["model"].items()}
    return CodecParts(source=source, config=codec_config(run), state=best, origin=origin)


def from_release(folder: Path) -> CodecParts:
    """Gives the codec of a release folder that this project wrote.

    Raises:
        MicroMusicGenError: a file is missing, damaged, or not the one that was released.
    """
    config = read_release_config(folder)
    if config.codec_reference is not None:
        return CodecParts(source=str(folder), pretrained=config.codec_reference)
    path = checked_file(folder, WEIGHTS_FILE, config)
    origin = config.provenance.get("codec", {})
    return CodecParts(source=str(path), config=config.codec, state=weights.read_weights(path), origin=origin)


def from_package(package: Package) -> CodecParts:
    """Gives the codec in one of audiocraft's `compression_state_dict.bin`."""
    source = str(package.path)
    if package.pretrained is not None:
        return CodecParts(source=source, pretrained=package.pretrained)
    assert package.config is not None
    origin = plain_note(package).get("origin", {})
    return CodecParts(source=source, config=codec_config(package.config), state=package.state, origin=origin)


def from_folder(folder: Path) -> CodecParts:
    """Gives the codec in a release folder of either form.

    Raises:
        MissingFileError: the folder holds no codec.
    """
    if is_release(folder):
        return from_release(folder)
    if (folder / CODEC_PACKAGE).is_file():
        return from_package(read_package(folder / CODEC_PACKAGE))
    raise MissingFileError(f"{folder} holds no codec: neither a release's {CONFIG_FILE} nor {CODEC_PACKAGE}")


def is_release(folder: Path) -> bool:
    """Says whether `folder` is a release that this project wrote; other projects have a config.json too."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return False
    plain = storage.read_json(path)
    return isinstance(plain, dict) and plain.get("format") == RELEASE_FORMAT


def read_release_config(folder: Path) -> ReleaseConfig:
    """Gives what `config.json` says.

    Raises:
        MicroMusicGenError: it is missing, is not JSON, or is not a release's.
    """
    plain = storage.read_json(folder / CONFIG_FILE)
    if not isinstance(plain, dict):
        raise MicroMusicGenError(f"{folder / CONFIG_FILE} is not a release's config; name a release folder")
    try:
        return ReleaseConfig.from_dict(plain)
    except MicroMusicGenError as error:
        raise MicroMusicGenError(f"{folder}: {error}") from error


def checked_file(folder: Path, name: str, config: ReleaseConfig) -> Path:
    """Gives the path of a release's weight file after comparing it with the hash in `config`.

    Raises:
        MissingFileError: there is no such file.
        MicroMusicGenError: it is not the file that was released.
    """
    path = folder / name
    if not path.is_file():
        raise MissingFileError(f"{path} is missing; the release is incomplete, fetch or export it again")
    released = config.hashes.get(name)
    if released is not None and storage.file_hash(path) != released:
        raise MicroMusicGenError(
            f"{path} is not the file that was released (its sha256 differs from config.json); fetch or export it again"
        )
    return path


def from_checkpoint_file(path: Path) -> CodecParts | str:
    """Gives the codec in one file: a run's checkpoint or audiocraft's package. For an LM's, the codec's reference.

    Raises:
        MicroMusicGenError: it is neither.
    """
    if path.suffix == ".bin":
        return from_package(read_package(path))
    state = checkpoints.load(path, lazily=True)
    if state["solver"] != "compression":
        return codec_reference(state)
    return from_run(state, source=str(path))


def codec_reference(state: Mapping[str, Any]) -> str:
    """Gives the reference of the codec on whose codes an LM's run was trained."""
    from omegaconf import OmegaConf

    return str(OmegaConf.create(state["config"])["compression_model_checkpoint"])
