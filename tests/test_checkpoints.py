"""Checkpoints come back whole, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from micro_musicgen import checkpoints
from micro_musicgen.errors import MicroMusicGenError, MissingFileError

STATE = {
    "solver": "musicgen",
    "config": "a: 1\n",
    "model": {"w": torch.arange(6.0).view(2, 3)},
    "training": {"rng": torch.get_rng_state(), "updates_done": 3, "nested": [(1, None), {"x": True}]},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoints.save(STATE, tmp_path / "checkpoint.th")
    return tmp_path / "checkpoint.th"


def test_a_state_comes_back_equal(path: Path) -> None:
    found = checkpoints.load(path)
    assert found["format"] == checkpoints.FORMAT and found["version"] == checkpoints.VERSION
    assert torch.equal(found["model"]["w"], STATE["model"]["w"])  # type: ignore[index]
    assert torch.equal(found["training"]["rng"], STATE["training"]["rng"])  # type: ignore[index]
    assert found["training"]["nested"] == [(1, None), {"x": True}]
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.th"]


def test_a_failed_save_leaves_the_old_one(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoints.save({"model": lambda: None}, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 10, 200, -100])
def test_a_torn_file(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(MicroMusicGenError, match=r"checkpoint .*checkpoint.th is damaged or not ours") as caught:
        checkpoints.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_bytes_are_more_than_one_line(path: Path) -> None:
    """Random bytes spell opcodes that end in errors of many kinds; damaged files may also still be readable."""
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        path.write_bytes(draw.randbytes(draw.randrange(1, 4096)))
        with pytest.raises(MicroMusicGenError, match=r"is damaged or not ours|is not a micro_musicgen checkpoint"):
            checkpoints.load(path)
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 9)):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(MicroMusicGenError):
            checkpoints.load(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing.th does not exist; name a run that has been trained"):
        checkpoints.load(tmp_path / "nothing.th")


class Evil:
    """Would make a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    target, path = tmp_path / "touched", tmp_path / "checkpoint.th"
    torch.save({"format": checkpoints.FORMAT, "version": 1, "model": Evil(target)}, path)
    with pytest.raises(MicroMusicGenError, match="is damaged or not ours .*GLOBAL"):
        checkpoints.load(path)
    path.write_bytes(pickle.dumps(Evil(target)))
    with pytest.raises(MicroMusicGenError, match="is damaged or not ours"):
        checkpoints.load(path)
    assert not target.exists()


def test_another_torch_file(tmp_path: Path) -> None:
    for value in ({"best_state": {}}, [1, 2], {"format": "else"}):
        torch.save(value, tmp_path / "x.th")
        with pytest.raises(MicroMusicGenError, match="is not a micro_musicgen checkpoint; export it from the tool"):
            checkpoints.load(tmp_path / "x.th")


def test_a_version_from_the_future(tmp_path: Path) -> None:
    torch.save({"format": checkpoints.FORMAT, "version": 2}, tmp_path / "x.th")
    with pytest.raises(MicroMusicGenError, match="has version 2, newer than 1; upgrade micro-musicgen"):
        checkpoints.load(tmp_path / "x.th")
