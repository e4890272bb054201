"""Reading and writing the two files in which audiocraft ships a model, without running what is in them.

`state_dict.bin` holds a language model, `compression_state_dict.bin` a codec or the name of a pretrained one. Both are
torch files: {"best_state": tensors, "xp.cfg": YAML text, "version", "exported"} or {"pretrained": name, ...}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen.checkpoints import TORN
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.upstream.safe_load import harmless_only

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

LM_PACKAGE = "state_dict.bin"
CODEC_PACKAGE = "compression_state_dict.bin"
NOTE_KEY = "micro_musicgen"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One of audiocraft's files. Either `pretrained` names a model, or `state` and `config` hold one."""

    path: Path
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    config: DictConfig | None = None
    pretrained: str | None = None


def read_package(path: Path) -> Package:
    """Gives what `path` holds, tensors on the CPU.

    Raises:
        MissingFileError: there is no such file.
        MicroMusicGenError: it is damaged, holds code, or is another kind of torch file.
    """
    import torch
    from omegaconf import DictConfig, OmegaConf

    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; name a folder that audiocraft exported a model to")
    try:
        with harmless_only():
            plain = torch.load(path, map_location="cpu", weights_only=True)
    except MicroMusicGenError as error:
        raise MicroMusicGenError(f"{path}: {error}") from error
    except TORN as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise MicroMusicGenError(f"{path} is damaged or not audiocraft's ({reason}); export it again") from error
    if isinstance(plain, dict) and isinstance(plain.get("pretrained"), str):
        return Package(path=path, pretrained=plain["pretrained"])
    if not isinstance(plain, dict) or not {"best_state", "xp.cfg"} <= set(plain):
        raise MicroMusicGenError(f"{path} is not a model that audiocraft exported; it lacks best_state and xp.cfg")
    config = OmegaConf.create(plain["xp.cfg"])
    if not isinstance(config, DictConfig):
        raise MicroMusicGenError(f"{path} holds a config that is no mapping; export it again")
    state = plain["best_state"]
    # Training checkpoints nest the weights one level deeper than exported ones.
    return Package(path=path, state=state.get("model", state), config=config)


def plain_note(package: Package) -> dict[str, Any]:
    """Gives what we noted in a package that we wrote; empty for audiocraft's own."""
    from omegaconf import OmegaConf

    note = None if package.config is None else package.config.get(NOTE_KEY)
    plain = {} if note is None else OmegaConf.to_container(note)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def write_package(
    path: Path, state: Mapping[str, torch.Tensor], config: Mapping[str, Any], *, note: Mapping[str, Any] | None = None
) -> None:
    """Writes weights and plain config as audiocraft's loaders read them, also with `weights_only`.

    note: plain data of ours, which they pass over.
    """
    import torch
    from omegaconf import OmegaConf

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    text = OmegaConf.to_yaml(OmegaConf.create({**config, NOTE_KEY: dict(note or {})}))
    torch.save({"best_state": tensors, "xp.cfg": text, "version": _version(), "exported": True}, path)


def write_pretrained_package(path: Path, name: str) -> None:
    """Writes the name of a pretrained codec, as audiocraft's loaders read it."""
    import torch

    torch.save({"pretrained": name, "version": _version(), "exported": True}, path)


def _version() -> str:
    from importlib.metadata import version

    return version("audiocraft")
