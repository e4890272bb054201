"""One process at a time per experiment folder: two runs of one signature would overwrite each other's state."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from micro_musicgen import storage
from micro_musicgen.errors import MicroMusicGenError

LOCK_NAME = ".training"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds the run in `folder` for the length of a block. The system lets go of it when the process dies.

    Of several processes that train one run together only rank 0 holds it.

    Raises:
        MicroMusicGenError: another process is training it.
    """
    from filelock import FileLock, Timeout

    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    storage.ensure_writable(folder)
    lock = FileLock(folder / LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MicroMusicGenError(
            f"run {folder.name} is being trained by another process; wait for it, stop it, or add label=ANYTHING for "
            "a run of its own"
        ) from None
    try:
        yield
    finally:
        lock.release()
