"""kill -9 at every kind of moment, torn files, signals, full disks: what a run has learned is never lost."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import killable
import pytest
import torch
from solver_runs import LM_DEBUG, losses

from micro_musicgen import checkpoints, references
from micro_musicgen.solvers.running.runfiles import DAMAGED_NAME, PREVIOUS_NAME

ARGV = (*LM_DEBUG, "optim.epochs=4", "optim.lr=3e-3", "generate.every=never", "checkpoint.save_every=2", "label=killed",
        "transformer_lm.dropout=0.1", "optim.accumulate=2", "checkpoint.every_minutes=0.0001")  # fmt: skip
QUICK_POINTS, MANY_POINTS = 3, 40


@dataclass
class Whole:
    """A run that nobody killed."""

    folder: Path
    state: dict[str, Any]
    events: list[str]


@pytest.fixture(scope="module")
def whole(toy_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    log = tmp_path_factory.mktemp("whole") / "log.json"
    for _ in range(2):  # the first one has to encode the data set, which the others find done
        assert killable.run(ARGV, log) == 0, log.read_text()
        folder = Path(killable.told(log)["folder"])
        state = checkpoints.load(folder / references.CHECKPOINT_NAME)
        shutil.rmtree(folder)
    return Whole(folder, state, killable.told(log)["events"])


def assert_same(folder: Path, expected: dict[str, Any]) -> None:
    state = checkpoints.load(folder / references.CHECKPOINT_NAME)
    assert losses(state["history"]) == losses(expected["history"])
    assert state["top"] == expected["top"]
    for ours, theirs in ((state["model"], expected["model"]), (state["best"]["model"], expected["best"]["model"])):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {path.name for path in (folder / "best").iterdir()} == {f"epoch_{e:04d}.th" for _, e in state["top"]}
    assert len(list((folder / "snapshots").iterdir())) == 6
    for path in (folder / "best").iterdir():
        checkpoints.load(path)


def points(events: list[str], count: int) -> list[int]:
    """Event numbers spread over the run: the first of every kind, then evenly."""
    firsts = [events.index(name) + 1 for name in sorted(set(events))]
    spread = [1 + round(k * (len(events) - 1) / (count - 1)) for k in range(count)]
    return sorted({*firsts, *spread})[-count:] if count < 10 else sorted({*firsts, *spread})


@pytest.mark.parametrize("index", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, QUICK_POINTS))])
def test_killed_at_a_write_or_a_step_and_resumed_equals_not_killed(index: int, whole: Whole, tmp_path: Path) -> None:
    at = points(whole.events, QUICK_POINTS)[index]
    shutil.rmtree(whole.folder, ignore_errors=True)
    assert killable.run(ARGV, tmp_path / "log", kill_at=at) == -signal.SIGKILL
    assert killable.run(ARGV, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(whole.folder, whole.state)


@pytest.mark.slow
def test_killed_at_many_points(whole: Whole, tmp_path: Path) -> None:
    tried = points(whole.events, MANY_POINTS)
    for at in tried:
        shutil.rmtree(whole.folder, ignore_errors=True)
        assert killable.run(ARGV, tmp_path / "log", kill_at=at) == -signal.SIGKILL, at
        assert killable.run(ARGV, tmp_path / "log") == 0, (at, (tmp_path / "log").read_text())
        assert_same(whole.folder, whole.state)
    print(
        f"\n{len(tried)} kill points of {len(whole.events)} events ({', '.join(sorted(set(whole.events)))}): all equal"
    )


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments(whole: Whole, tmp_path: Path) -> None:
    """By the clock, not at chosen calls; every restart is killed too, until one gets through."""
    draw = random.Random(0)
    shutil.rmtree(whole.folder, ignore_errors=True)
    kills = 0
    while kills < 12:
        process = killable.start(ARGV, tmp_path / "log")
        process.join(draw.uniform(0.3, 2.5))
        if process.exitcode is not None:
            assert process.exitcode == 0, (tmp_path / "log").read_text()
            shutil.rmtree(whole.folder)
            continue
        process.kill()
        process.join()
        kills += 1
    assert killable.run(ARGV, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(whole.folder, whole.state)
    print(f"\n{kills} kills at random moments: equal")


@pytest.mark.parametrize(
    "torn", ["half", pytest.param("empty", marks=pytest.mark.slow), pytest.param("garbage", marks=pytest.mark.slow)]
)
def test_a_torn_checkpoint_costs_one_generation(torn: str, whole: Whole, tmp_path: Path) -> None:
    shutil.rmtree(whole.folder, ignore_errors=True)
    at = len(whole.events) - 6
    assert killable.run(ARGV, tmp_path / "log", kill_at=at) == -signal.SIGKILL
    path = whole.folder / references.CHECKPOINT_NAME
    content = path.read_bytes()
    damaged = {"empty": b"", "half": content[: len(content) // 2], "garbage": os.urandom(4096)}[torn]
    path.write_bytes(damaged)
    assert (whole.folder / PREVIOUS_NAME).is_file() and not os.path.samefile(path, whole.folder / PREVIOUS_NAME)
    assert killable.run(ARGV, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(whole.folder, whole.state)
    assert (whole.folder / DAMAGED_NAME).read_bytes() == damaged, "kept for whoever wants to look"


def _wait_for(path: Path, process: Any, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not path.is_file():
        assert process.exitcode is None and time.monotonic() < end, "ended before it wrote its first checkpoint"
        time.sleep(0.01)


LONG = (*ARGV[:-1], "optim.epochs=3000", "optim.updates_per_epoch=500", "checkpoint.every_minutes=0.0001", "label=long",
        "checkpoint.snapshots=[]", "checkpoint.save_every=null")  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_in_the_middle_of_an_epoch(number: int, toy_home: Path, tmp_path: Path) -> None:
    from micro_musicgen.train import main

    folder = Path(main.experiment(list(LONG)).folder)
    shutil.rmtree(folder, ignore_errors=True)
    process = killable.start(LONG, tmp_path / "log")
    _wait_for(folder / references.CHECKPOINT_NAME, process)
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == 128 + number
    told = killable.told(tmp_path / "log")["error"]
    state = checkpoints.load(folder / references.CHECKPOINT_NAME)
    step = state["training"]["updates_done"]
    assert f"stopped at step {step} of 1500000; everything is saved, the same command goes on" in told
    assert state["training"]["tally"]["counted"] == step and not state["history"]


def test_two_processes_do_not_train_one_run(toy_home: Path, tmp_path: Path) -> None:
    from micro_musicgen.train import main

    folder = Path(main.experiment(list(LONG)).folder)
    shutil.rmtree(folder, ignore_errors=True)
    first = killable.start(LONG, tmp_path / "first")
    try:
        _wait_for(folder / references.CHECKPOINT_NAME, first)
        assert killable.run(LONG, tmp_path / "second") == 2
        told = killable.told(tmp_path / "second")["error"]
        assert f"run {folder.name} is being trained by another process" in told and "\n" not in told
    finally:
        first.kill()
        first.join()
    assert not (tmp_path / "first").exists(), "the first one went on"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs to be root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_state_and_says_so(toy_home: Path, small_disk: Path, tmp_path: Path) -> None:
    from micro_musicgen.train import main

    argv = (*ARGV[:-1], "label=full", "optim.epochs=2000")
    folder = Path(main.experiment(list(argv)).folder)
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(small_disk)
    code = killable.run(argv, tmp_path / "log")
    told = killable.told(tmp_path / "log")["error"]
    assert code == 1 and "the disk is full" in told and "\n" not in told, (code, told)
    kept = checkpoints.load(folder / references.CHECKPOINT_NAME)
    assert kept["training"]["updates_done"] > 0
    assert not list(small_disk.glob(".*.tmp"))
