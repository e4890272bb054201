"""How much memory there is, asked before it is taken."""

from __future__ import annotations

from pathlib import Path

import torch

from micro_musicgen.errors import MicroMusicGenError


def available_bytes(device: torch.device) -> int | None:
    """Gives what can still be allocated on `device`; None where the system doesn't say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def check_memory(needed: int, what: str, device: torch.device) -> None:
    """Refuses to begin what can't be finished.

    Raises:
        MicroMusicGenError: `needed` bytes are more than there are, naming both.
    """
    free = available_bytes(device)
    if free is not None and needed > free:
        raise MicroMusicGenError(
            f"{what} needs {needed // 10**6} MB of memory and {device} has {free // 10**6} MB left; "
            "make fewer clips at once or shorter ones"
        )
