"""One optimiser step: scaled gradients, their norm, and what happens when a loss is not a number.

A step whose loss or gradient is infinite or NaN is skipped: weights, moments and average stay as they are. Each lowers
the learning rate by `backoff`, which is taken back after a while of good steps; `stop_after` of them in a row end the
run, whose weights are then those of the last good step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.optimise.optim import build_optimizer, set_learning_rate
from micro_musicgen.solvers.optimise.precision import build_scaler
from micro_musicgen.solvers.running import distributed

RECOVERY_STEPS = 100
"""Good steps after which half of a back-off is taken back."""
LOWEST_FACTOR = 1 / 64


class NotFinite(MicroMusicGenError):
    """Too many steps in a row had a loss that is no number."""

    exit_code = 1


class Descent:
    """The optimiser with everything around it. Invariant: weights are finite if they were at the start.

    skipped: steps that were left out because of their loss, in the whole run.
    """

    def __init__(self, model: nn.Module, cfg: Any) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(model, cfg.optim)
        self.scaler = build_scaler(cfg)
        self.max_norm = float(cfg.optim.max_norm or math.inf)
        self.stop_after, self.backoff = int(cfg.nonfinite.stop_after), float(cfg.nonfinite.backoff)
        self.skipped, self.in_a_row, self.good, self.factor = 0, 0, 0, 1.0
        self._losses_finite = True

    def set_rate(self, factor: float) -> float:
        """Gives the first group's learning rate after setting every group to its peak times `factor`."""
        set_learning_rate(self.optimizer, factor * self.factor)
        return float(self.optimizer.param_groups[0]["lr"])

    def backward(self, loss: torch.Tensor, parts: int = 1) -> None:
        """Adds the gradient of `loss` / `parts`: one of the `parts` that a step consists of."""
        if self.scaler.is_enabled() and not bool(torch.isfinite(loss.detach())):
            self._losses_finite = False
        torch.autograd.backward(self.scaler.scale(loss / parts))

    def step(self) -> torch.Tensor:
        """Gives the gradient's norm before clipping, NaN for a step that was skipped.

        Raises:
            NotFinite: it was the last of too many.
        """
        distributed.average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm, foreach=None)
        if self.scaler.is_enabled():
            # An overflow is the scaler's own business: it skips the step and lowers its scale.
            bad = distributed.any_rank(not self._losses_finite)
        else:
            bad = not bool(torch.isfinite(norm))  # the same on every rank: gradients were averaged
        if bad:
            norm = torch.full_like(norm, math.nan)
            self.scaler.update() if self.scaler.is_enabled() else None
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._losses_finite = True
        self._count(bad)
        return norm

    @property
    def last_was_skipped(self) -> bool:
        """Says whether the step before was left out."""
        return self.in_a_row > 0

    def _count(self, bad: bool) -> None:
        if bad:
            self.skipped, self.in_a_row, self.good = self.skipped + 1, self.in_a_row + 1, 0
            self.factor = max(LOWEST_FACTOR, self.factor * self.backoff)
            if self.in_a_row >= self.stop_after:
                raise NotFinite(f"the loss was no finite number for {self.in_a_row} steps in a row")
            return
        self.in_a_row, self.good = 0, self.good + 1
        if self.good % RECOVERY_STEPS == 0:
            self.factor = min(1.0, self.factor / self.backoff)

    def state_dict(self) -> dict[str, Any]:
        """Gives moments, scale and the count of bad steps."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "guard": [self.skipped, self.in_a_row, self.good, self.factor],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave. A run that stopped at bad steps gets all its tries again."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.skipped, self.in_a_row, self.good, self.factor = state.get("guard", (0, 0, 0, 1.0))
        self.in_a_row %= self.stop_after
