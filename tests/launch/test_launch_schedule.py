"""Order, slots, ids and states, with jobs of one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from local_queue import Queue, wait_for

from micro_musicgen.launch import schedule
from micro_musicgen.launch.record import (
    CANCELLED,
    COMPLETED,
    FAILED,
    NODE_FAIL,
    PENDING,
    RUNNING,
    Record,
    records,
    reserve,
)

UNTIL = "import os, time\nwhile not os.path.exists({!r}): time.sleep(0.01)"
"""A job that ends when a file is there."""


def test_as_many_at_once_as_there_are_slots_and_the_first_come_first(queue: Queue) -> None:
    queue.have(jobs=2)
    jobs = [queue.submit(UNTIL.format(str(queue.folder / f"go{k}"))) for k in range(4)]
    assert queue.states() == [RUNNING, RUNNING, PENDING, PENDING]
    (queue.folder / "go1").touch()
    wait_for(lambda: queue.states() == [RUNNING, COMPLETED, RUNNING, PENDING])
    for k in (0, 2, 3):
        (queue.folder / f"go{k}").touch()
    assert queue.finish(*jobs) == [COMPLETED] * 4


def test_the_exit_code_decides_and_the_log_has_what_was_printed(queue: Queue) -> None:
    queue.have(jobs=2)
    good = queue.submit("import sys; print('fine'); print('also fine', file=sys.stderr)")
    bad = queue.submit("raise SystemExit('no such thing')")
    assert queue.finish() == [COMPLETED, FAILED]
    assert "fine" in queue.log(good) and "also fine" in queue.log(good) and "no such thing" in queue.log(bad)
    assert good.log_file().name == f"{good.id}_0_log.out"


@pytest.mark.parametrize("spec", [{"cwd": "/no/such/folder"}, {"command": ["no-such-program"]}])
def test_a_job_that_cannot_start_fails_with_its_reason_in_its_log(queue: Queue, spec: dict[str, object]) -> None:
    queue.have()
    job = queue.submit("", **spec)
    assert queue.finish(job) == [FAILED]
    assert "could not be started" in queue.log(job) and "no" in queue.log(job)
    assert queue.finish(queue.submit("pass")) == [COMPLETED], "and the queue moves on"


def test_cancel_ends_a_running_job_and_forgets_a_waiting_one(queue: Queue) -> None:
    queue.have()
    first = queue.submit("import time; time.sleep(60)")
    second, third = queue.submit("pass"), queue.submit("pass")
    assert schedule.cancel(queue.root, [first, second]) == []
    assert queue.finish(third) == [COMPLETED]
    assert queue.states() == [CANCELLED, CANCELLED, COMPLETED]
    schedule.cancel(queue.root, [third])
    assert third.state() == COMPLETED, "what is over stays as it ended"


def test_an_array_keeps_to_its_parallelism_and_lets_others_pass(queue: Queue) -> None:
    queue.have(jobs=3)
    wait = UNTIL.format(str(queue.folder / "go"))
    for _ in range(3):
        queue.add(wait, array="a", array_parallelism=1)
    queue.add(wait)
    queue.dispatch()
    assert queue.states() == [RUNNING, PENDING, PENDING, RUNNING]
    (queue.folder / "go").touch()
    assert queue.finish() == [COMPLETED] * 4


def test_the_environment_is_the_shells_without_another_jobs(queue: Queue) -> None:
    queue.have(jobs=2, cores=8)
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    shell = {"KEY": "s3cret", "RANK": "7", "SLURM_JOB_ID": "9", "OMP_NUM_THREADS": "3", "ODD": "\udcff"}
    job = queue.add(code, environment=shell)
    kept = job.folder / "environment.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    queue.dispatch()
    assert not kept.exists(), "not on disk for longer than it has to be"
    queue.finish()
    seen = json.loads(queue.log(job))
    assert seen["KEY"] == "s3cret" and seen["ODD"] == "\udcff" and "SLURM_JOB_ID" not in seen
    assert seen["RANK"] == "0" and seen["WORLD_SIZE"] == "1" and seen["OMP_NUM_THREADS"] == "3"
    other = queue.submit(code)
    queue.finish()
    assert json.loads(queue.log(other))["OMP_NUM_THREADS"] == "4", "8 cores for 2 jobs"


def test_gpus_are_given_and_given_back(queue: Queue) -> None:
    queue.have(jobs=2, gpus=("3", "5"))
    code = "import os; print('gpus', os.environ['CUDA_VISIBLE_DEVICES'])\n" + UNTIL.format(str(queue.folder / "go"))
    jobs = [queue.submit(code, gpus=n) for n in (1, 1, 2, 0)]
    assert queue.states() == [RUNNING, RUNNING, PENDING, PENDING]
    (queue.folder / "go").touch()
    queue.finish()
    assert [queue.log(job).split()[1:] for job in jobs] == [["3"], ["5"], ["3,5"], []]


def test_ids_are_never_given_twice(queue: Queue) -> None:
    queue.have()
    by_id = queue.folder / "by_id"
    by_id.mkdir()
    (by_id / "2").symlink_to(queue.folder / "gone")  # of a job of long ago
    jobs = [queue.add("pass") for _ in range(2)]
    assert [job.id for job in jobs] == ["1", "3"]
    for job in jobs:
        subprocess.run(["rm", "-r", str(job.folder)], check=True)
    assert queue.add("pass").id == "4"
    assert jobs[0].state() == NODE_FAIL, "a job whose folder was deleted"


def _reserve_many(root: Path, count: int) -> list[str]:
    return [schedule.reserve_job(root, root / "by_id").id for _ in range(count)]


def test_ids_differ_when_processes_ask_at_once(queue: Queue) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        ids = sum(pool.starmap(_reserve_many, [(queue.root, 10)] * 4), [])
    assert sorted(map(int, ids)) == list(range(1, 41))


def test_a_reserved_job_is_not_in_the_queue_until_it_is_whole(queue: Queue) -> None:
    queue.have()
    reserve(queue.root, queue.folder)
    queue.dispatch()
    assert records(queue.root) == []


def test_dispatch_from_many_processes_never_starts_too_many(queue: Queue) -> None:
    queue.have(jobs=2)
    jobs = [queue.add(UNTIL.format(str(queue.folder / "go"))) for _ in range(6)]
    with multiprocessing.get_context("fork").Pool(6) as pool:
        pool.map(schedule.dispatch, [queue.root] * 12)
    assert queue.states() == [RUNNING] * 2 + [PENDING] * 4
    (queue.folder / "go").touch()
    assert queue.finish(*jobs) == [COMPLETED] * 6


def test_what_waits_survives_and_starts_when_somebody_looks(queue: Queue) -> None:
    """As after a reboot: nothing of the queue lives, and all of it is on disk."""
    queue.have()
    job = queue.add("pass")
    lost = queue.add("pass")
    lost.set_state(RUNNING)  # its controller died with the machine
    assert lost.state() == NODE_FAIL
    queue.dispatch()
    assert queue.finish() == [COMPLETED, NODE_FAIL]
    assert (lost.folder / "state").read_text() == NODE_FAIL and Record(job.folder).state() == COMPLETED


def test_the_controller_needs_neither_torch_nor_dora() -> None:
    code = "import sys, micro_musicgen.launch.controller; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "numpy", "dora", "submitit", "hydra", "omegaconf"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_jobs_are_in_sessions_without_a_terminal(queue: Queue) -> None:
    queue.have()
    job = queue.submit("import os; print(os.getsid(0), os.getpid(), os.path.realpath('/dev/fd/0'))")
    queue.finish()
    session, pid, stdin = queue.log(job).split()
    assert session == pid != str(os.getsid(0)) and stdin == "/dev/null"
