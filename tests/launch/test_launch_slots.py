"""Counting without torch, and who gets which GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.launch import slots
from micro_musicgen.launch.slots import Machine, visible


@pytest.mark.parametrize(
    ("setting", "count", "names"),
    [
        (None, 2, ("0", "1")),
        (None, 0, ()),
        ("1,0", 2, ("1", "0")),
        ("", 2, ()),
        ("-1", 2, ()),
        ("0,7,1", 2, ("0",)),
        ("GPU-abc", 2, ("GPU-abc",)),
        ("0", 0, ()),
    ],
)
def test_gpus_are_those_that_cuda_would_show(setting: str | None, count: int, names: tuple[str, ...]) -> None:
    assert visible(setting, count) == names


def test_a_machine_without_gpus_runs_one_job_on_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "count_gpus", lambda: 0)
    machine = Machine.here({})
    assert machine.jobs == 1 and machine.threads(1) == slots.count_cores()
    assert Machine.here({"DORA_LOCAL_JOBS": "3"}).jobs == 3


def test_a_machine_with_gpus_runs_a_job_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "count_gpus", lambda: 4)
    assert Machine.here({}).jobs == 4 and Machine.here({"CUDA_VISIBLE_DEVICES": "2,3"}).gpus == ("2", "3")


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_jobs_is_told(text: str) -> None:
    with pytest.raises(MicroMusicGenError, match=f"DORA_LOCAL_JOBS='{text}' is not a number of jobs; give 1 or more"):
        Machine.here({"DORA_LOCAL_JOBS": text})


def test_threads_are_shared_by_jobs_and_tasks() -> None:
    assert Machine(2, (), 8).threads(1) == 4
    assert Machine(2, (), 8).threads(2) == 2
    assert Machine(16, (), 8).threads(4) == 1


def test_the_least_used_gpu_comes_first_and_none_twice_in_a_job() -> None:
    machine = Machine(4, ("0", "1"), 8)  # two jobs to a GPU
    running: list[tuple[str, ...]] = []
    for wanted in ("0", "1", "0", "1"):
        given = machine.place(1, running)
        assert given == (wanted,)
        running.append(given)
    assert machine.place(1, running) is None
    assert machine.place(2, [("0",)]) == ("1", "0")


def test_room_is_counted_in_jobs_and_in_gpus() -> None:
    few = Machine(2, ("0", "1", "2", "3"), 8)
    assert few.place(4, []) == ("0", "1", "2", "3")
    assert few.place(1, [("0", "1", "2", "3")]) is None, "no GPU is free"
    assert few.place(0, [("0", "1", "2", "3")]) == (), "a CPU job needs none"
    assert few.place(1, [("0",), ("1",)]) is None, "two at once, whatever is free"
    assert Machine(2, (), 8).place(2, [()]) == (), "without GPUs, tasks share cores"


def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(MicroMusicGenError, match="asks for 2 GPUs and this machine has 1; add -g 1"):
        Machine(1, ("0",), 8).check(2)
    Machine(1, (), 8).check(2)


def test_the_drivers_tool_is_asked_and_torch_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho '  MIG 1g.18gb Device 0: (UUID: MIG-1)'\n"
        "echo 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert slots.count_gpus.__wrapped__() == 2
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert slots.count_gpus.__wrapped__() >= 0, "a driver that does not answer"
