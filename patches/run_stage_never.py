"""`every: null` (and the word never) has to mean never, also on the last epoch."""

import functools
from typing import Any

from micro_musicgen.patching import Patch


def _apply(module: Any) -> None:
    should_run = module.StandardSolver.should_run_stage

    @functools.wraps(should_run)
    def should_run_stage(self: Any, stage_name: str) -> bool:
        if self.cfg[stage_name].get("every") in (None, "never"):
            return False
        return bool(should_run(self, stage_name))

    module.StandardSolver.should_run_stage = should_run_stage


PATCH = Patch(
    name="run_stage_never",
    target="audiocraft.solvers.base:StandardSolver.should_run_stage",
    broken="evaluate and generate run on the last epoch although `every` is null; no value switches them off",
    issue="AC #302 #467",
    fingerprints=("6cc5ec9ece0eb53a",),
    gone_when="a stage can be switched off",
    apply=_apply,
)
