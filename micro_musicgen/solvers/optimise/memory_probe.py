"""What a training step takes in memory and time, found by doing it in this process.

CUDA says itself when memory is short, by an error that is caught here. A CPU's step is measured by the growth of this
process's resident memory: its recorded peak is reset before, where the system allows that.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig

from micro_musicgen.solvers.optimise.trial import Trial, build_trial
from micro_musicgen.solvers.running.memory import MB, peak_memory_mb

TIMED_STEPS = 2
_MEMINFO, _CLEAR_REFS = Path("/proc/meminfo"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""What Linux takes there as: forget the highest resident memory."""
_GROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


class StepProbe:
    """Memory and seconds of steps of `trial`; each size is tried once. world_size: processes that share a batch."""

    def __init__(self, trial: Trial, *, world_size: int = 1) -> None:
        self._trial, self._world_size = trial, world_size
        self._found: dict[int, tuple[float, float]] = {}
        self._at_hand = self._available()
        self._before_mb = self._reset_peak()

    def memory(self, batch_size: int) -> float:
        """Gives the share of the memory at hand that a step of `batch_size` crops takes; inf when it does not fit."""
        return self._measured(batch_size)[0]

    def seconds(self, batch_size: int) -> float:
        """Gives the duration of such a step."""
        return self._measured(batch_size)[1]

    def _measured(self, batch_size: int) -> tuple[float, float]:
        if batch_size not in self._found:
            self._found[batch_size] = self._measure(batch_size // self._world_size)
        return self._found[batch_size]

    def _measure(self, num_crops: int) -> tuple[float, float]:
        self._reset_peak()
        try:
            self._trial.step(num_crops)  # allocates
            began = time.perf_counter()
            for _ in range(TIMED_STEPS):
                self._trial.step(num_crops)
            seconds = (time.perf_counter() - began) / TIMED_STEPS
        except (torch.cuda.OutOfMemoryError, MemoryError):
            seconds = math.inf
        if seconds == math.inf:  # outside of `except`, whose traceback holds on to what did not fit
            release_memory(self._trial.device)
            return math.inf, math.inf
        used = peak_memory_mb(self._trial.device) * MB
        if self._trial.device.type != "cuda":
            # Memory that was freed before and kept (allocator) takes part of a step without growing.
            used = max(used - self._before_mb * MB, float(self._trial.activation_bytes(num_crops)))
        return used / self._at_hand, seconds

    def _available(self) -> float:
        device = self._trial.device
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            fraction = getattr(torch.cuda.memory, "get_per_process_memory_fraction", lambda device: 1.0)(device)
            return float(min(free + torch.cuda.memory_reserved(device), fraction * total))
        return available_bytes()

    def _reset_peak(self) -> float:
        """Gives the memory held now, in MB, from which the next peak is counted."""
        device = self._trial.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):
                _CLEAR_REFS.write_text(_RESET_PEAK)
        return peak_memory_mb(device)


@contextlib.contextmanager
def probing(cfg: DictConfig, world_size: int = 1) -> Iterator[StepProbe]:
    """Gives a probe for a settled config; random numbers and device memory are afterwards as they were before."""
    device = torch.device(cfg.device)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_num_threads(cfg.num_threads)
        try:
            yield StepProbe(build_trial(cfg), world_size=world_size)
        finally:
            torch.set_num_threads(threads)
            release_memory(device)


def release_memory(device: torch.device) -> None:
    """Hands memory of what nobody uses any more back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_bytes() -> float:
    """Gives the main memory that this process may still take: the machine's or its control group's, whichever is less.

    Half of the machine's memory where the system tells no more, 4 GiB where it tells nothing.
    """
    limits = [_machine_bytes()]
    for limit, used in _GROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number, and means none
            limits.append(float(limit.read_text()) - float(used.read_text()))
    return max(1.0, min(limits))


def _machine_bytes() -> float:
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        return 1024.0 * int(line.split()[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    except (AttributeError, OSError, ValueError):
        return 4.0 * 2**30
