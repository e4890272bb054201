"""Which device to compute on."""

from __future__ import annotations

import torch

from micro_musicgen.errors import MicroMusicGenError

KINDS = ("cuda", "mps", "cpu")


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """Gives the device called `name`; with None or "auto" the best that this machine has: cuda, mps, cpu.

    Raises:
        MicroMusicGenError: no such kind of device, or this machine has none.
    """
    if name is None or name == "auto":
        return torch.device(next(kind for kind in KINDS if _available(kind)))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KINDS:
        raise MicroMusicGenError(f"unknown device {str(name)!r}; use {', '.join(KINDS)} or auto")
    if not _available(device.type):
        raise MicroMusicGenError(f"this machine has no {device.type} device that torch can use; use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MicroMusicGenError(
            f"{device} does not exist; this machine has {torch.cuda.device_count()} cuda device(s)"
        )
    return device


def _available(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    return torch.backends.mps.is_available() if kind == "mps" else True
