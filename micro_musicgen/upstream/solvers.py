"""audiocraft's own solvers, patched, from our config tree: the slow reference that ours are held against."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.upstream.load import audiocraft_module

if TYPE_CHECKING:
    from omegaconf import DictConfig

Kind = Literal["musicgen", "compression"]

SOLVERS: dict[str, tuple[str, str]] = {
    "musicgen": ("solvers.musicgen", "MusicGenSolver"),
    "compression": ("solvers.compression", "CompressionSolver"),
}
"""Kind -> module and class in audiocraft. In configs the kind is followed by `_upstream`."""

OUR_DATASET_KEYS = ("ram_gb", "segment_bars")
"""What audiocraft's data sets would take for an argument of theirs, and refuse."""


def build_upstream_solver(cfg: DictConfig, kind: Kind) -> Any:
    """Gives audiocraft's solver of that kind, built and not yet restored: `run()` is what it has. Call it inside an XP.

    The config is the one of `solver=KIND/...` with device, autocast and thread count settled. It is not changed.

    Raises:
        MicroMusicGenError: the config asks for what only our own solvers can do.
    """
    from omegaconf import open_dict

    _check(cfg)
    own = copy.deepcopy(cfg)
    with open_dict(own):
        own.solver = kind
        for key in OUR_DATASET_KEYS:
            own.dataset.pop(key, None)
        if own.dataset.train.num_samples is None:
            # Ours draw as many crops as there are steps; audiocraft's count them in advance.
            own.dataset.train.num_samples = own.dataset.batch_size * own.optim.updates_per_epoch
    audiocraft_module("train").resolve_config_dset_paths(own)
    audiocraft_module("modules.transformer").set_efficient_attention_backend(own.efficient_attention_backend)
    module, name = SOLVERS[kind]
    return getattr(audiocraft_module(module), name)(own)


def _check(cfg: DictConfig) -> None:
    if cfg.schedule.lr_scheduler == "wsd":
        raise MicroMusicGenError(
            "audiocraft's solvers don't know schedule.lr_scheduler=wsd; give schedule.lr_scheduler=cosine or null"
        )
    if cfg.optim.get("minutes") is not None:
        raise MicroMusicGenError(
            f"audiocraft's solvers don't know optim.minutes={cfg.optim.minutes}; give optim.epochs and leave it out"
        )
    if cfg.get("losses") is not None and cfg.losses.mrstft > 0:
        raise MicroMusicGenError(
            f"audiocraft's balancer cannot take losses.mrstft={cfg.losses.mrstft}; give losses.mrstft=0 losses.msspec=2"
        )
