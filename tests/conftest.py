"""What tests share: a data home of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from micro_musicgen import paths


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data home that is gone after the test."""
    folder = tmp_path / "home"
    monkeypatch.setenv(paths.HOME_VARIABLE, str(folder))
    return folder
