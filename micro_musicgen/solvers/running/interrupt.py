"""Ctrl-C and SIGTERM: the first asks a run to save and stop, the second is obeyed at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from micro_musicgen.errors import MicroMusicGenError

_SHELL_OFFSET = 128
"""Shells report a process that a signal ended as 128 + its number."""


class RunStopped(MicroMusicGenError):
    """A run was asked to stop and has saved its state; starting it again goes on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = _SHELL_OFFSET + signal_number


class StopRequest:
    """Whether somebody asked the run to stop. signal_number: which signal asked, None while nobody has."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGINT and SIGTERM for the length of a block. Outside the main thread signals stay as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = (signal.SIGINT, signal.SIGTERM)
        kept = {number: signal.signal(number, self._note) for number in taken}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
