"""What people look at after an epoch: summary.json, loss.png, loggers. None of it can end a run."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from micro_musicgen import storage
from micro_musicgen.solvers.reporting.plot import plot_history

if TYPE_CHECKING:
    from micro_musicgen.solvers.base import Solver

PLOT_EVERY_S = 30.0

logger = logging.getLogger(__name__)


def epoch_results(solver: Solver) -> None:
    """Writes and logs what the epoch just committed gave."""
    for what, write in (("summary", _write_summary), ("loss plot", _plot), ("log", _log_epoch)):
        try:
            write(solver)
        except Exception:
            logger.exception("the %s failed; training goes on", what)


def optional_results(solver: Solver, stage: str) -> None:
    """Writes and logs what an optional stage gave, which by now is part of the history."""
    try:
        solver.xp.link.update_history(solver.history)
        place = {"epoch": len(solver.history), "update": solver.updates_done}
        solver.loggers.metrics(stage, solver.history[-1][stage], **place)
        if stage == "generate":
            clips = sorted((Path(solver.folder) / solver.cfg.generate.path).glob(f"{place['epoch']:04d}_*.wav"))
            solver.loggers.clips(clips, **place)
    except Exception:
        logger.exception("logging of %s failed; training goes on", stage)


def _write_summary(solver: Solver) -> None:
    score = solver.best["score"]
    summary = {
        "solver": solver.name,
        "signature": solver.xp.sig,
        "dataset": dataset_name(solver.xp.argv, solver.cfg),
        "argv": list(solver.xp.argv),
        "updates_done": solver.updates_done,
        "total_updates": solver.plan.total_updates,
        "epochs_done": len(solver.history),
        "best": {
            "metric": solver.best_metric,
            "score": score if math.isfinite(score) else None,
            "epoch": solver.best["epoch"],
        },
        "num_parameters": sum(p.numel() for p in solver.model.parameters()),
        **solver.summary(),
    }
    storage.write_json(Path(solver.folder) / "summary.json", summary)


def _plot(solver: Solver) -> None:
    """Draws the curves, at the end and now and then before: it takes a second in which nothing is learned."""
    at_end = solver.updates_done >= solver.plan.total_updates
    if not at_end and time.monotonic() - solver.plot_time < PLOT_EVERY_S:
        return
    solver.plot_time = time.monotonic()
    plot_history(solver.history, solver.plotted, Path(solver.folder) / "loss.png")


def _log_epoch(solver: Solver) -> None:
    for stage, values in solver.history[-1].items():
        solver.loggers.metrics(stage, values, epoch=len(solver.history), update=solver.updates_done)


def dataset_name(argv: list[str], cfg: DictConfig | Any) -> str:
    """Gives the name under which the run's data set was prepared."""
    for argument in argv:
        if argument.startswith("dset="):
            return argument.rpartition("/")[2]
    return Path(cfg.datasource.train).parent.name
