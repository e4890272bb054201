"""How many steps fit into the minutes that a run was given. The clock is read here, once.

What else reads it (checkpoints and clips every so many minutes) changes no number of the run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from micro_musicgen.solvers.optimise.schedule import Plan, build_schedule
from micro_musicgen.solvers.reporting.progress import plain
from micro_musicgen.solvers.running import distributed

if TYPE_CHECKING:
    from micro_musicgen.solvers.base import Solver

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


def settle_plan(solver: Solver) -> None:
    """Sets the length of a run that was given minutes: at its start, and again when a finished one is to go on."""
    minutes = solver.cfg.optim.minutes
    fresh = solver.updates_done == 0 and not solver.history
    finished = solver.updates_done >= solver.plan.total_updates
    if not minutes or not (fresh or finished):
        return
    solver.reporter.stage("measuring the speed")
    speed = distributed.shared(trial_updates_per_s(solver))
    if fresh:
        solver.plan = planned(minutes, speed)
    else:
        solver.plan.segments.append(solver.updates_done + updates_in(minutes, speed))


def trial_updates_per_s(solver: Solver) -> float:
    """Gives the speed of a few trial steps, after which everything is as it was before them."""
    with solver.state.undone():
        solver.schedule = build_schedule(solver.cfg.schedule, solver.plan)
        solver.model.train()
        return updates_per_s(lambda: plain(solver.training_update()))
