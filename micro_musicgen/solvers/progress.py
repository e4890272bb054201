"""How a run tells the world how far it is: lines in a log, or a bar on a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

logger = logging.getLogger("micro_musicgen.train")


class Reporter(Protocol):
    """Hears of a run's progress."""

    def start(self, title: str, total_updates: int, done: int) -> None:
        """A run begins or goes on."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """A step is over."""

    def message(self, text: str) -> None:
        """Something worth a line happened."""

    def stop(self) -> None:
        """The run is over, or was stopped."""


class LogReporter:
    """Writes `updates` lines per epoch to the log, each with the speed and the time left."""

    def __init__(self, updates_per_epoch: int, updates: int) -> None:
        self._every = max(1, updates_per_epoch // max(1, updates))
        self._total = 0
        self._began = (0, time.monotonic())

    def start(self, title: str, total_updates: int, done: int) -> None:
        """See `Reporter.start`."""
        self._total = total_updates
        self._began = (done, time.monotonic())
        logger.info("%s: step %d of %d", title, done, total_updates)

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """See `Reporter.step`."""
        if done % self._every:
            return
        first, began = self._began
        speed = (done - first) / max(1e-9, time.monotonic() - began)
        left_s = (self._total - done) / max(1e-9, speed)
        values = " | ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger.info("%d/%d | %s | %.2f it/s | %s left", done, self._total, values, speed, clock(left_s))

    def message(self, text: str) -> None:
        """See `Reporter.message`."""
        logger.info("%s", text)

    def stop(self) -> None:
        """See `Reporter.stop`."""


def clock(seconds: float) -> str:
    """Gives a length of time as m:ss or h:mm:ss."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Gives metrics as plain floats, which JSON and Dora's table can hold."""
    return {name: value.item() if hasattr(value, "item") else float(value) for name, value in metrics.items()}
