"""How many crops a batch has, and how many batches a step: as configured, or as many as the memory at hand allows.

`dataset.batch_size` counts the crops of one batch over all processes, `optim.accumulate` the batches whose gradients
make one step, `optim.effective_batch` their product, where that is what is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from micro_musicgen.errors import MicroMusicGenError

AUTO = "auto"
CAP = 32
"""Crops of a batch that `auto` does not go beyond when no `optim.effective_batch` is asked for."""
MEMORY_SHARE = 0.85
"""Of the memory at hand that a trial step may take. The rest is for the average, validation and clips."""
EQUALLY_FAST = 0.05
"""Share of the best speed within which the smaller batch is taken: more steps for the same time."""
LONG_TRIAL_S = 10.0
"""A trial step of this length is the last one on a CPU: twice the batch would take twice as long."""


def fill_batch(cfg: DictConfig, recorded: Sequence[int] | None = None) -> tuple[int, int]:
    """Gives `dataset.batch_size` and `optim.accumulate` as numbers after putting them into `cfg`, settled otherwise.

    recorded: what this gave when the run started, from its checkpoint. It is taken as it is, so that a resumed run
    sees the batches it would have seen, whatever memory there is now.

    Raises:
        MicroMusicGenError: impossible numbers, or not even one crop fits into memory.
    """
    from micro_musicgen.solvers.running import distributed

    if recorded is not None:
        batch, accumulate = (int(value) for value in recorded)
    elif cfg.dataset.batch_size == AUTO:
        from micro_musicgen.solvers.optimise.memory_probe import probing

        world_size = distributed.world_size()
        with probing(cfg, world_size) as probe:
            found = settle_batch(cfg, probe.memory, probe.seconds, world_size=world_size)
        batch, accumulate = distributed.shared(found)
    else:
        batch = _positive(cfg.dataset.batch_size, "dataset.batch_size", f"{AUTO} or a number from 1 on")
        accumulate = _accumulate(cfg, batch)
    cfg.dataset.batch_size, cfg.optim.accumulate = batch, accumulate
    return batch, accumulate


def recorded_batch(config: Mapping[str, Any]) -> tuple[int, int]:
    """Gives what `fill_batch` gave for a run, from the settled config in its checkpoint, as plain data."""
    return int(config["dataset"]["batch_size"]), int(config["optim"].get("accumulate", 1))


def settle_batch(
    cfg: DictConfig,
    step_memory: Callable[[int], float],
    step_seconds: Callable[[int], float] | None = None,
    *,
    world_size: int = 1,
) -> tuple[int, int]:
    """Gives crops per batch and batches per step for `dataset.batch_size=auto`. Changes nothing.

    On CUDA the largest power of two (times `world_size`) up to the cap that fits: the cap is tried first, then half of
    it. Elsewhere the smallest within 5 % of the best speed: from one crop upwards, as a CPU without memory kills the
    process instead of raising. step_memory: share of the memory at hand that a step of so many crops takes, infinite
    when it does not fit. step_seconds: its duration.

    Raises:
        MicroMusicGenError: not even the smallest batch fits.
    """
    cap = CAP if cfg.optim.effective_batch is None else _effective(cfg)
    sizes = [world_size * 2**power for power in range(max(0, int(math.log2(max(1, cap // world_size)))) + 1)]
    if str(cfg.device).startswith("cuda"):
        batch = next((size for size in reversed(sizes) if step_memory(size) <= MEMORY_SHARE), None)
    else:
        batch = _fastest(sizes, step_memory, step_seconds)
    if batch is None:
        raise MicroMusicGenError(
            f"a step of {sizes[0]} crop(s) of {cfg.dataset.segment_duration} s does not fit into the memory of "
            f"{cfg.device}; take a smaller model/lm/model_scale or dataset.segment_duration"
        )
    return batch, _accumulate(cfg, batch)


def _fastest(
    sizes: Sequence[int], step_memory: Callable[[int], float], step_seconds: Callable[[int], float] | None
) -> int | None:
    speeds: dict[int, float] = {}
    for size in sizes:
        share = step_memory(size)
        if share > MEMORY_SHARE:
            break
        seconds = step_seconds(size) if step_seconds is not None else 1.0
        speeds[size] = size / seconds
        if 2 * share > MEMORY_SHARE or seconds > LONG_TRIAL_S:
            break
    best = max(speeds.values(), default=0.0)
    return next((size for size, speed in speeds.items() if speed >= (1 - EQUALLY_FAST) * best), None)


def _accumulate(cfg: DictConfig, batch: int) -> int:
    """Gives the batches per step: the given number, or the fewest that reach `optim.effective_batch`."""
    given = _positive(cfg.optim.accumulate, "optim.accumulate", "a number from 1 on")
    if cfg.optim.effective_batch is None:
        return given
    needed = math.ceil(_effective(cfg) / batch)
    if given not in (1, needed):
        raise MicroMusicGenError(
            f"optim.accumulate={given} times {batch} crops is not optim.effective_batch={cfg.optim.effective_batch}; "
            "set optim.effective_batch=null to choose accumulate yourself"
        )
    return needed


def _effective(cfg: DictConfig) -> int:
    return _positive(cfg.optim.effective_batch, "optim.effective_batch", "null or a number from 1 on")


def _positive(value: object, key: str, allowed: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MicroMusicGenError(f"{key}={value} is not possible; use {allowed}")
    return value
