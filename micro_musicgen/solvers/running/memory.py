"""How much memory a run has needed at most so far."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

MB = 1e6
_STATUS = Path("/proc/self/status")


def peak_memory_mb(device: torch.device | str) -> float:
    """Gives the most memory held so far, in MB (1e6 bytes): of the device on CUDA, else of this process.

    CUDA: what torch's allocator held for tensors. CPU: resident memory. MPS keeps no peak, so there it is what the
    driver holds now. 0 where the system does not tell.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / MB
    return _peak_resident_bytes() / MB


def _peak_resident_bytes() -> int:
    # getrusage comes second on Linux: there a process inherits the peak of the one that started it.
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
