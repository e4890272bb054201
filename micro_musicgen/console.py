"""What a person sees on the terminal while something long runs: one bar, the speed, the time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
    """A training run as one bar; see `solvers.progress.Reporter`."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: object = None
        self._note = ""

    def start(self, title: str, total_updates: int, done: int) -> None:
        """Draws the bar, with `done` steps already on it when a run is resumed."""
        self._bar = _bar()
        self._bar.start()
        self._task = self._bar.add_task(title, total=total_updates, completed=done, note="")

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar; shows the first metrics when there are any."""
        assert self._bar is not None
        if metrics:
            self._note = "  ".join(f"{name} {value:.3g}" for name, value in list(metrics.items())[:3])
        self._bar.update(self._task, completed=done, note=self._note)  # type: ignore[arg-type]

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        console.print(text, style="dim", highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
