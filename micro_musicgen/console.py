"""What a person sees on the terminal while something long runs: one bar, the speed, the time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from micro_musicgen.solvers.reporting.progress import LineReporter, Meter, Reporter, clock, describe

LINE_EVERY_S = 30.0
"""Seconds between two lines about a run where there is no terminal to draw a bar on."""

console = Console(stderr=True)
"""Everything that is not a command's result goes to stderr, so that results can be piped."""


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextlib.contextmanager
def counting(title: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a `progress(done, total)` hook that draws a bar from its first call to the end of the block."""
    bar = _bar()
    task = bar.add_task(title, total=None, note="")

    def progress(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield progress
    finally:
        bar.stop()


class RichReporter:
    """A training run as one bar and a line of figures below it; as plain lines where stderr is no terminal.

    See `solvers.progress.Reporter`.
    """

    def __init__(self, on: Console = console) -> None:
        lines = LineReporter(lambda text: _print(on, text), every_s=LINE_EVERY_S)
        self._reporter: Reporter = _BarReporter(on) if on.is_terminal else lines

    def start(self, title: str, total_updates: int, done: int, *, tokens_per_update: int | None = None) -> None:
        """Draws the bar, with `done` steps already on it when a run is resumed."""
        self._reporter.start(title, total_updates, done, tokens_per_update=tokens_per_update)

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar; shows the metrics when there are any."""
        self._reporter.step(done, metrics)

    def stage(self, name: str) -> None:
        """Names what is going on beside the bar, which moves on its own while that lasts."""
        self._reporter.stage(name)

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        self._reporter.message(text)

    def stop(self) -> None:
        """Leaves the bar as it stands."""
        self._reporter.stop()


class _TrainingBar(Progress):
    """A bar with a line of its own for figures, which are too many to stand beside it."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(f"  {self.note}", style="dim", no_wrap=True, overflow="ellipsis")


class _BarReporter:
    """See `solvers.progress.Reporter`."""

    def __init__(self, on: Console) -> None:
        self._console = on
        self._bar: _TrainingBar | None = None
        self._task = TaskID(0)
        self._title = ""
        self._meter = Meter(0, 0)
        self._tokens: int | None = None
        self._metrics: dict[str, float] = {}

    def start(self, title: str, total_updates: int, done: int, *, tokens_per_update: int | None = None) -> None:
        self._title, self._tokens, self._metrics = title, tokens_per_update, {}
        self._meter = Meter(total_updates, done)
        self._shown().update(self._task, description=title, total=total_updates, completed=done)

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        bar = self._shown()
        self._meter.step(done)
        self._metrics = dict(metrics) or self._metrics
        bar.note = "  ".join(describe(self._metrics, self._meter.updates_per_s, self._tokens))
        bar.update(self._task, description=self._title, completed=done, left=clock(self._meter.left_s))

    def stage(self, name: str) -> None:
        self._meter.pause()
        self._shown().update(self._task, description=f"{self._title}: {name}" if self._title else name)

    def message(self, text: str) -> None:
        _print(self._console, text)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._title = None, ""

    def _shown(self) -> _TrainingBar:
        if self._bar is None:
            self._bar = _TrainingBar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA {task.fields[left]}"),
                console=self._console,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("", total=None, left="-:--")
            self._bar.start()
        return self._bar


def _print(on: Console, text: str) -> None:
    on.print(text, style="dim", highlight=False, soft_wrap=True, markup=False)
