"""A moving average of the weights, which sounds better than the last step and is what gets played."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


class EMA:
    """Averages every floating-point entry of a module's state_dict. Invariant: the same keys as the module.

    (torch's AveragedModel deep-copies its module, which modules under weight norm refuse.)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.num_updates = 0
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights. Early on it follows them closely: decay (1 + n) / (10 + n) at most."""
        self.num_updates += 1
        weight = 1 - min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, weight)
            else:
                self.average[name].copy_(value)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Puts the average in the module for the length of a block."""
        kept = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        try:
            yield
        finally:
            self.model.load_state_dict(kept)

    def state_dict(self) -> dict[str, object]:
        """Gives the average and its age."""
        return {"average": self.average, "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Takes over what `state_dict` gave."""
        average, age = state["average"], state["num_updates"]
        assert isinstance(average, dict) and isinstance(age, int)
        for name, value in average.items():
            self.average[name].copy_(value)
        self.num_updates = age
