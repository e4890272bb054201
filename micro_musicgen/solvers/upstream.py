"""audiocraft's own solvers under our registry, as the reference that ours are held against.

`solver=musicgen/upstream_32khz` trains the same model on the same data with upstream's loop, patched.
"""

from __future__ import annotations

import functools
from typing import Any

from omegaconf import DictConfig

from micro_musicgen.solvers.progress import Reporter
from micro_musicgen.solvers.registry import solvers
from micro_musicgen.upstream.solvers import Kind, build_upstream_solver


def _build(kind: Kind, cfg: DictConfig, reporter: Reporter | None = None) -> Any:
    """Gives upstream's solver of that kind; it reports to the log in its own way."""
    solver = build_upstream_solver(cfg, kind)

    def run_only(stage: str) -> None:
        solver.restore(replay_metrics=False)
        solver.run_one_stage(stage)

    solver.run_only = run_only
    return solver


solvers.register("musicgen_upstream")(functools.partial(_build, "musicgen"))
solvers.register("compression_upstream")(functools.partial(_build, "compression"))
