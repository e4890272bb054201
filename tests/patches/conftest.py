"""How a defect is shown: the original put back for a moment, or a process of its own in which one patch is left out."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest

Unpatched = Callable[[str], AbstractContextManager[None]]
Script = Callable[..., "subprocess.CompletedProcess[str]"]

HIDE = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_unless_hidden(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {names!r} else find(name, path, target)
PathFinder.find_spec = classmethod(find_unless_hidden)
"""

LEAVE_OUT = """
from micro_musicgen import patching
init = patching.Patcher.__init__
patching.Patcher.__init__ = lambda self, patches: init(self, [p for p in patches if p.name != {name!r}])
import micro_musicgen.upstream
assert {name!r} not in micro_musicgen.upstream.patcher().reports
"""


def _owner(target: str) -> tuple[Any, str]:
    module, _, qualified = target.partition(":")
    *path, leaf = qualified.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    return owner, leaf


@contextlib.contextmanager
def _unpatched(target: str) -> Iterator[None]:
    owner, leaf = _owner(target)
    patched = inspect.getattr_static(owner, leaf)
    setattr(owner, leaf, inspect.unwrap(patched))
    try:
        yield
    finally:
        setattr(owner, leaf, patched)


@pytest.fixture
def unpatched() -> Unpatched:
    """`with unpatched("module:name")`: the code as it was shipped."""
    return _unpatched


@pytest.fixture
def script() -> Script:
    """Runs Python code with the patches on, all but `without`, where the packages in `hide` are not installed."""

    def run(
        code: str, *, without: str | None = None, hide: Sequence[str] = (), **env: str
    ) -> subprocess.CompletedProcess[str]:
        door = "import micro_musicgen.upstream\n" if without is None else LEAVE_OUT.format(name=without)
        command = [sys.executable, "-W", "ignore", "-c", HIDE.format(names=tuple(hide)) + door + code]
        return subprocess.run(command, capture_output=True, text=True, env=_environment(env))

    return run


def _environment(changes: dict[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AUDIOCRAFT_")}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}
