"""What of a config depends on the machine it runs on."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from micro_musicgen.engine.device import pick_device


def settle(cfg: DictConfig) -> DictConfig:
    """Gives `cfg` with device, autocast and thread count filled in where they were left open. Changes it in place."""
    cfg.device = str(pick_device(None if cfg.device == "auto" else cfg.device))
    if cfg.autocast == "auto":
        cfg.autocast = cfg.device.startswith("cuda")
    cfg.num_threads = cfg.num_threads or os.cpu_count() or 1
    return cfg
