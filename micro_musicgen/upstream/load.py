"""The one door to audiocraft: finds the patches, installs them once, imports audiocraft's modules."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.patching import Patch, Patcher

INSTALL_LINE = "pip install --no-deps audiocraft==1.3.0"


def find_patches() -> Iterator[Patch]:
    """Gives the patch of every file in `patches/`, by file name."""
    package = importlib.import_module("micro_musicgen.patches")
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        yield importlib.import_module(f"{package.__name__}.{found.name}").PATCH


@functools.cache
def patcher() -> Patcher:
    """Gives the one patcher of this process, installed on the first call."""
    made = Patcher(find_patches())
    made.install()
    return made


def audiocraft_module(name: str) -> ModuleType:
    """Gives `audiocraft.NAME`, imported, with the patches on.

    Raises:
        MicroMusicGenError: audiocraft is not installed; the message is the line that installs it.
    """
    patcher()
    try:
        return importlib.import_module(f"audiocraft.{name}")
    except ModuleNotFoundError as error:
        if error.name != "audiocraft":
            raise
        raise MicroMusicGenError(f"audiocraft is not installed; run: {INSTALL_LINE}") from error
