"""Locks that end with the process that holds them, however it ends: `flock` on a file.

So "the lock is held" is "somebody lives", with no process id that another process could have got meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from micro_musicgen.errors import MicroMusicGenError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def require() -> None:
    """Does nothing where the system has file locks.

    Raises:
        MicroMusicGenError: it has none.
    """
    if fcntl is None:
        raise MicroMusicGenError(
            f"grids on one machine need file locks (fcntl), which {sys.platform} has not; "
            "use WSL, or run the experiments one by one with dora run"
        )


_private: set[int] = set()


def _close_private() -> None:
    for descriptor in _private:
        os.close(descriptor)
    _private.clear()


if hasattr(os, "register_at_fork"):
    # A pool's workers would keep the lock of a command that was killed, and wait for it for ever.
    os.register_at_fork(after_in_child=_close_private)


def acquire(path: Path, waiting: str = "", shared_with_children: bool = False) -> int:
    """Gives the descriptor of `path`, locked for us alone. Waits for whoever has it; `release` lets it go.

    waiting: said on stderr when that takes more than no time. shared_with_children: processes that we fork, or to
    which we pass the descriptor, hold the lock too, until the last of them has closed it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting:
            sys.stderr.write(f"{waiting}\n")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
    if not shared_with_children:
        _private.add(descriptor)
    return descriptor


def release(descriptor: int) -> None:
    """Lets a lock go that is not shared with children."""
    _private.discard(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def hold(path: Path, waiting: str = "") -> Iterator[None]:
    """Keeps `path` locked for us alone during the block."""
    descriptor = acquire(path, waiting)
    try:
        yield
    finally:
        release(descriptor)


def is_held(path: Path) -> bool:
    """Whether a living process has `path` locked. A file that is not there is held by nobody."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared, so that two who ask at once do not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
