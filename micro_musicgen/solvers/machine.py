"""What of a config depends on the machine it runs on."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig

from micro_musicgen.data.beat_grid import settle_beats
from micro_musicgen.engine.device import pick_device
from micro_musicgen.solvers.optimise.precision import settle_precision


def settle(cfg: DictConfig) -> DictConfig:
    """Gives `cfg` with device, precision and thread count filled in where they were left open, and in beat time
    the lengths of crops made whole beats or bars. Changes it in place."""
    cfg.device = str(pick_device(None if cfg.device == "auto" else cfg.device))
    settle_precision(cfg)
    cfg.num_threads = cfg.num_threads or _share_of_cores()
    _settle_encoders(cfg)
    settle_beats(cfg)
    return cfg


def _settle_encoders(cfg: DictConfig) -> None:
    """Makes paths of text encoders absolute: who exports the run may stand in another folder."""
    for each in (cfg.get("conditioners") or {}).values():
        settings = each.get("text") if isinstance(each, DictConfig) else None
        if settings is not None and Path(str(settings.get("encoder"))).expanduser().is_dir():
            settings.encoder = str(Path(str(settings.encoder)).expanduser().resolve())


def _share_of_cores() -> int:
    """Gives the threads for this process: what whoever started it has set, else its share among the run's processes."""
    if limit := os.environ.get("OMP_NUM_THREADS", ""):
        return max(1, int(limit.partition(",")[0]))
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    return max(1, (os.cpu_count() or 1) // local)
