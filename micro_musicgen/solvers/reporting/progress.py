"""How a run tells the world how far it is: lines in a log, or a bar on a terminal (`console.RichReporter`)."""

from __future__ import annotations

import logging
import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

logger = logging.getLogger("micro_musicgen.train")

MAX_SHOWN = 3
"""Metrics in a line, besides speed and memory. A solver names the important ones first."""

SKIPPED, PEAK_MEMORY = "skipped", "peak_memory_mb"
"""Metrics with a place of their own in a line: non-finite steps left out so far, and MB."""

_CODEBOOK = re.compile(r"(.+)_q\d+")


class Reporter(Protocol):
    """Hears of a run's progress."""

    def start(self, title: str, total_updates: int, done: int, *, tokens_per_update: int | None = None) -> None:
        """A run begins or goes on. tokens_per_update: codes that a step trains on, None where that says nothing."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """A step is over. Metrics come with some steps only."""

    def stage(self, name: str) -> None:
        """Something other than steps takes a while from here on, until the next step. Also before `start`."""

    def message(self, text: str) -> None:
        """Something worth a line happened."""

    def stop(self) -> None:
        """The run is over, or was stopped."""


class Meter:
    """How fast a run is. The speed leaves pauses out (validation, clips), the time left does not."""

    def __init__(self, total_updates: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total_updates
        self._clock = clock
        self._first = self._now = (done, clock())
        self._recent = deque([self._first], maxlen=64)

    def step(self, done: int) -> None:
        """Notes that `done` steps are done."""
        self._now = (done, self._clock())
        self._recent.append(self._now)

    def pause(self) -> None:
        """Notes that the time until the next step is not that step's."""
        self._recent.clear()

    @property
    def updates_per_s(self) -> float:
        """Steps per second of late; 0 while that is not known."""
        return _speed(self._recent[0], self._recent[-1]) if self._recent else 0.0

    @property
    def left_s(self) -> float:
        """Seconds to the end, at the average speed so far; infinite while that is not known."""
        speed = _speed(self._first, self._now)
        return (self._total - self._now[0]) / speed if speed else math.inf


def _speed(first: tuple[int, float], last: tuple[int, float]) -> float:
    return (last[0] - first[0]) / (last[1] - first[1]) if last[1] > first[1] else 0.0


def describe(metrics: Mapping[str, float], updates_per_s: float, tokens_per_update: int | None = None) -> list[str]:
    """Gives the parts of a line about a step: losses with their codebooks, perplexity, speed, skipped steps, memory."""
    parts = []
    shown = [name for name in metrics if not _CODEBOOK.fullmatch(name) and name not in (SKIPPED, PEAK_MEMORY)]
    for name in shown[:MAX_SHOWN]:
        levels = [value for key, value in metrics.items() if (m := _CODEBOOK.fullmatch(key)) and m[1] == name]
        of_levels = f" ({' '.join(f'{level:.3g}' for level in levels)})" if levels else ""
        parts.append(f"{name} {metrics[name]:.4g}{of_levels}")
    if "ce" in metrics:
        parts.insert(1, f"ppl {math.exp(min(metrics['ce'], 50.0)):.4g}")
    if updates_per_s:
        parts.append(f"{updates_per_s:.2f} it/s")
    if updates_per_s and tokens_per_update:
        parts.append(f"{_short(updates_per_s * tokens_per_update)} tok/s")
    if metrics.get(SKIPPED):
        parts.append(f"{metrics[SKIPPED]:.0f} skipped (not finite)")
    if metrics.get(PEAK_MEMORY):
        parts.append(f"{metrics[PEAK_MEMORY] / 1000:.2f} GB")
    return parts


class LineReporter:
    """Writes a line now and then: after every so many steps, or when so many seconds have passed since the last one."""

    def __init__(self, write: Callable[[str], None], *, every_updates: int = 1, every_s: float = 0.0) -> None:
        self._write = write
        self._every_updates, self._every_s = every_updates, every_s
        self._total = 0
        self._tokens: int | None = None
        self._meter = Meter(0, 0)
        self._written = time.monotonic()
        self._metrics: dict[str, float] = {}

    def start(self, title: str, total_updates: int, done: int, *, tokens_per_update: int | None = None) -> None:
        """See `Reporter.start`."""
        self._total, self._tokens = total_updates, tokens_per_update
        self._meter, self._metrics = Meter(total_updates, done), {}
        self._written = time.monotonic()
        self._write(f"{title}: step {done} of {total_updates}")

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """See `Reporter.step`."""
        self._meter.step(done)
        self._metrics = dict(metrics) or self._metrics
        now = time.monotonic()
        last = done >= self._total
        if not last and (done % self._every_updates or now - self._written < self._every_s):
            return
        self._written = now
        parts = describe(self._metrics, self._meter.updates_per_s, self._tokens)
        self._write(" | ".join([f"{done}/{self._total}", *parts, f"{clock(self._meter.left_s)} left"]))

    def stage(self, name: str) -> None:
        """See `Reporter.stage`."""
        self._meter.pause()

    def message(self, text: str) -> None:
        """See `Reporter.message`."""
        self._write(text)

    def stop(self) -> None:
        """See `Reporter.stop`."""


class LogReporter(LineReporter):
    """Writes `updates` lines per epoch to the log, each with the speed and the time left."""

    def __init__(self, updates_per_epoch: int, updates: int) -> None:
        every = max(1, updates_per_epoch // max(1, updates))
        super().__init__(lambda text: logger.info("%s", text), every_updates=every)


class QuietReporter:
    """Says nothing: for all processes of a run but the first."""

    def start(self, title: str, total_updates: int, done: int, *, tokens_per_update: int | None = None) -> None:
        """See `Reporter.start`."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """See `Reporter.step`."""

    def stage(self, name: str) -> None:
        """See `Reporter.stage`."""

    def message(self, text: str) -> None:
        """See `Reporter.message`."""

    def stop(self) -> None:
        """See `Reporter.stop`."""


def clock(seconds: float) -> str:
    """Gives a length of time as m:ss or h:mm:ss, `-:--` where it is not finite."""
    if not math.isfinite(seconds):
        return "-:--"
    whole = int(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Gives metrics as plain floats, which JSON and Dora's table can hold."""
    return {name: value.item() if hasattr(value, "item") else float(value) for name, value in metrics.items()}


def _short(count: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"
