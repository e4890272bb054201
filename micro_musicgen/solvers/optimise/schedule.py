"""The learning rate as a pure function of the step, so that resuming needs no scheduler state.

`wsd` (warm-up, stable, decay) can be extended: a later segment starts from a decayed model at the full rate again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from micro_musicgen.errors import MicroMusicGenError


@dataclass
class Plan:
    """How long a run is. Fixed when it starts and kept in its checkpoint: the clock never changes it afterwards.

    segments: last step of each stretch of training; extending a finished run adds one.
    """

    updates_per_epoch: int
    segments: list[int] = field(default_factory=list)

    @property
    def total_updates(self) -> int:
        """Steps of the whole run."""
        return self.segments[-1]

    @property
    def epochs(self) -> int:
        """Commits of the whole run."""
        return math.ceil(self.total_updates / self.updates_per_epoch)

    def segment(self, step: int) -> tuple[int, int]:
        """Gives first step and length of the stretch that `step` lies in; the last one for steps behind the end."""
        start = 0
        for end in self.segments:
            if step < end:
                return start, end - start
            start = end
        first = self.segments[-2] if len(self.segments) > 1 else 0
        return first, self.segments[-1] - first

    def state_dict(self) -> dict[str, Any]:
        """Gives plain data for the checkpoint."""
        return {"updates_per_epoch": self.updates_per_epoch, "segments": list(self.segments)}


Schedule = Callable[[int], float]
"""Gives the factor on the peak learning rate at a step."""


def _warmup_steps(warmup: float, length: int) -> float:
    """Gives steps from a share of a stretch (above 0 and below 1) or from steps; a share need not be a whole number."""
    return warmup * length if 0 < warmup < 1 else warmup


def cosine(plan: Plan, *, warmup: float, lr_min_ratio: float, cycle_length: float) -> Schedule:
    """Gives linear warm-up, then half a cosine wave down to `lr_min_ratio` at the end of each segment."""

    def factor(step: int) -> float:
        start, length = plan.segment(step)
        ramp = _warmup_steps(warmup, length)
        at = step - start
        if at < ramp:
            return (at + 1) / (ramp + 1)
        share = min(1.0, (at - ramp) / max(1.0, length - ramp))
        return lr_min_ratio + (1 - lr_min_ratio) * 0.5 * (1 + math.cos(math.pi * share / cycle_length))

    return factor


def wsd(plan: Plan, *, warmup: float, decay: float, lr_min_ratio: float) -> Schedule:
    """Gives warm-up over the share `warmup` of a segment, a stable rate, and linear decay over its last `decay`."""

    def factor(step: int) -> float:
        start, length = plan.segment(step)
        ramp, tail = _warmup_steps(warmup, length), decay * length
        at = step - start
        if at < ramp:
            return (at + 1) / (ramp + 1)
        left = max(0.0, length - at)
        return 1.0 if left >= tail else lr_min_ratio + (1 - lr_min_ratio) * left / tail

    return factor


_SCHEDULES: dict[str, Callable[..., Schedule]] = {"cosine": cosine, "wsd": wsd}


def build_schedule(config: Any, plan: Plan) -> Schedule:
    """Gives the schedule that the Hydra group `schedule` names; constant when it names none.

    Raises:
        MicroMusicGenError: an unknown name, or a negative warm-up.
    """
    name = config.lr_scheduler
    if name is None:
        return lambda step: 1.0
    if name not in _SCHEDULES:
        raise MicroMusicGenError(
            f"unknown schedule.lr_scheduler {name!r}; known: null, {', '.join(sorted(_SCHEDULES))}"
        )
    section = config[name]
    if section.warmup < 0:
        raise MicroMusicGenError(
            f"schedule.{name}.warmup={section.warmup} must be a share of the run, as 0.1, or a number of steps"
        )
    return _SCHEDULES[name](plan, **section)
