"""The sums of an epoch that is under way. They are part of a checkpoint, so an epoch may be interrupted anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class Tally:
    """Means of metrics over an epoch's steps. end: the step behind its last one, None before it begins.

    Sums stay on the device until they are asked for: adding waits for nothing.
    """

    def __init__(self) -> None:
        self.end: int | None = None
        self.totals: dict[str, torch.Tensor | float] = {}
        self.counted = 0
        self.skipped = 0
        self.seconds = 0.0
        self.timed = 0

    def begin(self, end: int) -> None:
        """Starts an epoch that is over before step `end`."""
        self.end = end

    def add(self, metrics: Mapping[str, Any], *, counts: bool, seconds: float) -> None:
        """Adds one step. counts: False for a step that was skipped, whose metrics are no numbers."""
        self.seconds += seconds
        self.timed += 1
        if not counts:
            self.skipped += 1
            return
        self.counted += 1
        for key, value in metrics.items():
            self.totals[key] = self.totals.get(key, 0.0) + (value.detach() if torch.is_tensor(value) else value)

    def means(self) -> dict[str, float]:
        """Gives each metric's mean over the steps that counted."""
        return {key: float(value) / max(1, self.counted) for key, value in self.totals.items()}

    @property
    def steps_per_s(self) -> float:
        """Steps per second of this process, since it started or the epoch did."""
        return self.timed / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Gives the sums; the time taken is not part of them."""
        totals = {key: torch.as_tensor(value).detach().cpu().clone() for key, value in self.totals.items()}
        return {"end": self.end, "totals": totals, "counted": self.counted, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Takes over what `state_dict` gave."""
        self.end, self.counted, self.skipped = state["end"], state["counted"], state["skipped"]
        self.totals = {key: value.to(device) for key, value in state["totals"].items()}
        self.seconds, self.timed = 0.0, 0
