"""Stages that a run can do without: when they are due, and that none of them ends it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from micro_musicgen.solvers.reporting.progress import plain
from micro_musicgen.solvers.running import distributed, overview

if TYPE_CHECKING:
    from micro_musicgen.solvers.base import Solver

NEVER = "never"

logger = logging.getLogger(__name__)


def should_run(solver: Solver, stage: str) -> bool:
    """Says whether an optional stage is due. `every: never` is never; an interval includes the end of the run."""
    section = solver.cfg[stage]
    minutes = section.get("every_minutes") if stage == "generate" else None
    if section.every == NEVER or not (section.every or minutes):
        return False
    at_end = solver.updates_done >= solver.plan.total_updates
    by_epoch = bool(section.every) and len(solver.history) % section.every == 0
    by_clock = minutes is not None and time.monotonic() - solver.clip_time > 60 * minutes
    return bool(distributed.shared(at_end or by_epoch or by_clock))


def run_optional(solver: Solver, stage: str, method: Callable[[], Any]) -> None:
    """Runs a stage whose failure costs its result and nothing else; its metrics join the epoch just committed."""
    try:
        with torch.random.fork_rng(), torch.no_grad(), solver.averaged_weights():
            solver.model.eval()
            solver._start_epoch()
            solver.reporter.stage(stage)
            solver.run_stage(stage, method)
    except Exception:
        logger.exception("%s failed in epoch %d; training goes on", stage, len(solver.history))
        solver._start_epoch()
        return
    finally:
        solver.clip_time = time.monotonic()
    solver.history[-1].update({key: plain(value) for key, value in solver._pending_metrics.items()})
    solver._start_epoch()
    overview.optional_results(solver, stage)
