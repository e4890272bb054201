"""A queue, and a small Dora project, of each test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_queue import Queue
from tiny_project import Project

from micro_musicgen.launch import schedule
from micro_musicgen.launch.record import records


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """An empty queue in a folder with a difficult name. No job of it outlives the test."""
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "DORA_LOCAL", "DORA_LOCAL_JOBS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "Töne und Klänge"
    folder.mkdir()
    made = Queue(folder)
    yield made
    schedule.cancel(made.root, records(made.root))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A Dora project in a folder with a difficult name, whose experiments take a moment and no torch."""
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    made = Project(tmp_path / "Töne und Klänge")
    yield made
    schedule.cancel(made.root, records(made.root))
