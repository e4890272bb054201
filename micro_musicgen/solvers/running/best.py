"""Which weights of a run are the best so far, and when better ones are no longer waited for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from micro_musicgen.solvers.running.runfiles import pick_best

if TYPE_CHECKING:
    from micro_musicgen.solvers.base import Solver


def keep_best(solver: Solver) -> None:
    """Takes over the weights in place when the epoch just validated is the best; ends the run by `optim.patience`."""
    score = solver._pending_metrics["valid"][solver.best_metric] if solver.best_metric else -math.inf
    epoch = len(solver.history) + 1
    if score < solver.best["score"] or solver.best_metric is None or not solver.best["model"]:
        weights = {name: value.detach().cpu().clone() for name, value in solver.model.state_dict().items()}
        solver.best = {"score": score, "epoch": epoch, "model": weights}
    solver.top = pick_best([*solver.top, (score, epoch)], solver.files.policy.keep_best)
    patience = solver.cfg.optim.patience
    if patience and solver.best_metric and epoch - solver.best["epoch"] >= patience:
        solver.plan.segments[-1] = solver.updates_done
        solver.reporter.message(f"no better {solver.best_metric} for {patience} epochs: the end (optim.patience)")
