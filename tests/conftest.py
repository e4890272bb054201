"""What tests share: a data home of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from micro_musicgen import paths

# Toy models are faster on one thread, on a busy machine by far. Has to be said before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data home that is gone after the test."""
    folder = tmp_path / "home"
    monkeypatch.setenv(paths.HOME_VARIABLE, str(folder))
    return folder
