"""How many steps fit into the minutes that a run was given. The clock is read here, once, and nowhere else."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

from micro_musicgen.solvers.optimise.schedule import Plan

MIN_TRIALS, MAX_TRIALS = 6, 40
TRIAL_S = 6.0
OVERHEAD_SHARE = 0.88
"""Share of a run's minutes that goes into training steps; validation, checkpoints and clips take the rest."""


def updates_per_s(step: Callable[[], object]) -> float:
    """Gives the speed of `step` from the median of a few: one moment in which the machine does something else counts
    for little. step: does one, and waits for the device. The first is not counted.
    """
    step()
    taken: list[float] = []
    while len(taken) < MIN_TRIALS or (sum(taken) < TRIAL_S and len(taken) < MAX_TRIALS):
        began = time.monotonic()
        step()
        taken.append(time.monotonic() - began)
    return 1 / max(1e-9, statistics.median(taken))


def planned(minutes: float, speed: float) -> Plan:
    """Gives the plan of a fresh run: its length, and a commit about twice a minute."""
    updates = updates_in(minutes, speed)
    commits = max(4, min(40, round(2 * minutes)))
    return Plan(max(1, math.ceil(updates / commits)), [updates])


def updates_in(minutes: float, speed: float) -> int:
    """Gives the steps that fit into `minutes` at `speed` steps per second."""
    return max(MIN_TRIALS, int(60 * minutes * OVERHEAD_SHARE * speed))
