"""A bar for those who call from Python; the command line has its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from micro_musicgen.engine.sampler import Progress


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """Gives a hook that draws a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("generating", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
