"""What a run's checkpoint holds, and how it is taken over again: its own, or another model's weights to start from."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.release.provenance import software, sound_facts
from micro_musicgen.solvers.optimise.ema import EMA
from micro_musicgen.solvers.optimise.schedule import Plan
from micro_musicgen.solvers.running import distributed

if TYPE_CHECKING:
    from micro_musicgen.solvers.base import Solver

logger = logging.getLogger(__name__)


class RunState:
    """The state of one solver. Invariant: what `restore` takes over leads to the numbers that would have followed."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        config = OmegaConf.to_container(solver.cfg, resolve=True)
        assert isinstance(config, dict)
        self._config_text = OmegaConf.to_yaml(solver.cfg, resolve=True)
        self.config = {str(key): value for key, value in config.items()}
        self._provenance = {"seed": solver.cfg.seed, **software(), "sounds": sound_facts(self.config)}

    # Giving.

    def training(self) -> dict[str, Any]:
        """Gives everything that the next step depends on, apart from the weights."""
        s = self._solver
        return {
            "updates_done": s.updates_done,
            **s.descent.state_dict(),
            "ema": s.ema.state_dict() if s.ema is not None else None,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "tally": s.tally.state_dict(),
            "extra": s.extra_state(),
        }

    def whole(self) -> dict[str, Any]:
        """Gives the content of a checkpoint."""
        s = self._solver
        return {
            "solver": s.name,
            "signature": s.xp.sig,
            "config": self._config_text,
            "model": s.model.state_dict(),
            "best": s.best,
            "best_metric": s.best_metric,
            "top": [list(pair) for pair in s.top],
            "training": self.training(),
            "plan": s.plan.state_dict(),
            "history": list(s.history),
            "provenance": self._provenance,
        }

    def to_play(self) -> dict[str, torch.Tensor]:
        """Gives the weights that sound best now: the average, where one is kept."""
        s = self._solver
        return s.ema.average if s.ema is not None else s.model.state_dict()

    def save(self) -> None:
        """Replaces the checkpoint by the state as it is, within an epoch too."""
        self._solver.files.save(self.whole())

    def save_if_finite(self) -> str:
        """Saves, unless a weight is no number; gives words for what is on disk afterwards."""
        s = self._solver
        finite = all(bool(v.isfinite().all()) for v in s.model.state_dict().values() if v.is_floating_point())
        if not finite:
            return "the checkpoint of the last commit kept, because weights of this one are no numbers"
        if distributed.is_main():
            self.save()
        return "the last good state saved"

    def commit(self) -> None:
        """Saves the checkpoint of an epoch that is over, then the copies of it that the policy asks for."""
        state = self.whole()
        files = self._solver.files
        files.save(state)
        files.keep_best(state, [epoch for _, epoch in self._solver.top], self.to_play())
        files.keep_copy(state, len(state["history"]))

    def snapshot(self) -> None:
        """Keeps the weights to play at this step. A failure costs the snapshot and nothing else."""
        if not distributed.is_main():
            return
        try:
            self._solver.files.snapshot(self.whole(), self.to_play())
        except Exception:
            logger.exception("the snapshot at step %d failed; training goes on", self._solver.updates_done)

    # Taking.

    def load_training(self, state: dict[str, Any]) -> None:
        """Takes over what `training` gave."""
        s = self._solver
        s.updates_done = state["updates_done"]
        s.descent.load_state_dict(state)
        if s.ema is not None and state["ema"] is not None:
            s.ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] and torch.cuda.is_available() and len(state["rng_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng_cuda"])
        if "tally" in state:
            s.tally.load_state_dict(state["tally"], s.device)
        s.load_extra_state(state["extra"])

    def restore(self) -> bool:
        """Takes over this run's checkpoint, or the weights of `continue_from`. Says whether it had one itself."""
        s = self._solver
        state = s.files.load()
        if state is None:
            s.history.clear()
            if s.cfg.continue_from:
                self._start_from(str(s.cfg.continue_from))
            return False
        s.model.load_state_dict(state["model"])
        self.load_training(state["training"])
        s.plan = Plan(**state["plan"])
        s.best = state["best"]
        s.top = [(float(score), int(epoch)) for score, epoch in state.get("top", [])]
        s.history[:] = state["history"]
        at_commit = s.tally.end is None
        if at_commit and distributed.is_main() and s.history:
            # A kill may have come between the checkpoint and what is derived from it.
            s.files.keep_best(state, [epoch for _, epoch in s.top], self.to_play())
            s.xp.link.update_history(s.history)
        logger.info("resuming %s at step %d of %d", s.xp.sig, s.updates_done, s.plan.total_updates)
        return True

    def _start_from(self, text: str) -> None:
        """Fills the model with the weights that `text` names; optimiser, schedule and average start afresh."""
        s = self._solver
        weights = s.starting_weights(text)
        try:
            s.model.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise MicroMusicGenError(f"continue_from={text} has another shape than this run's model") from error
        if s.ema is not None:
            s.ema = EMA(s.model, s.cfg.optim.ema.decay)
        logger.info("starting from the weights of %s", text)

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Lets a block train, and takes everything back that it did."""
        s = self._solver
        began = time.monotonic()
        weights, state = copy.deepcopy(s.model.state_dict()), copy.deepcopy(self.training())
        try:
            yield
        finally:
            s.model.load_state_dict(weights)
            self.load_training(state)
        logger.debug("trial steps took %.1f s", time.monotonic() - began)
