"""`checkpoint.keep_last` is in the config and never read: every epoch's checkpoint stays on the disk."""

import functools
from typing import Any

from micro_musicgen.patching import Patch


def _apply(module: Any) -> None:
    save = module.StandardSolver.save_checkpoints

    @functools.wraps(save)
    def save_checkpoints(self: Any) -> None:
        save(self)
        if module.flashy.distrib.is_rank_zero() or self.cfg.fsdp.use:
            keep_last = self.cfg.checkpoint.get("keep_last")
            module.checkpoint.flush_stale_checkpoints(self.checkpoint_path(), keep_last)

    module.StandardSolver.save_checkpoints = save_checkpoints


PATCH = Patch(
    name="keep_last",
    target="audiocraft.solvers.base:StandardSolver.save_checkpoints",
    broken="checkpoint.keep_last is never passed on: nothing is pruned and the disk fills up",
    issue="none known",
    fingerprints=("928d0e7b93faa9db",),
    gone_when="save_checkpoints passes keep_last",
    apply=_apply,
)
