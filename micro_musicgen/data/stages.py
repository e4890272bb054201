"""How a store on disk appears: put together beside its place, and moved there whole.

A stage is a folder `.NAME.PID.new` beside the store NAME. Killed builds leave theirs, and two builds of one store may
run at once: the first to be done wins.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

S = TypeVar("S")

STAGE_AGE_S = 24 * 3600.0
"""What is younger may be a build at work."""


def stage_of(folder: Path) -> Path:
    """Gives this process's stage of the store `folder`; it need not be there."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.new")


def sweep_stages(folder: Path) -> None:
    """Removes what killed builds of the store `folder` left."""
    for stage in folder.parent.glob(f".{folder.name}.*.new"):
        with contextlib.suppress(OSError):
            if time.time() - stage.stat().st_mtime > STAGE_AGE_S:
                shutil.rmtree(stage, ignore_errors=True)


def move_in(stage: Path, folder: Path, *, sound: Callable[[], S | None], opened: Callable[[Path], S]) -> S:
    """Puts a finished store in its place, unless another process has just done so; gives the one that is there then.

    sound: gives the store in `folder` when it serves as well as the new one. opened: opens what lies there.
    """
    if folder.exists():
        found = sound()
        if found is not None:
            return found
        shutil.rmtree(folder)
    try:
        os.replace(stage, folder)
    except OSError:
        if not folder.exists():
            raise
    return opened(folder)
