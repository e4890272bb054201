"""Limits, requeues, ranks, and that nothing outlives its controller, however that ends."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_queue import Queue, controller_of, is_running, wait_for

from micro_musicgen.launch import guard as guards
from micro_musicgen.launch import schedule
from micro_musicgen.launch.record import CANCELLED, COMPLETED, FAILED, FINAL, NODE_FAIL, RUNNING, TIMEOUT, Record

FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("family", os.getpid(), child.pid, flush=True)
time.sleep(60)
"""
"""A task with a process of its own, as those with data loaders."""

SAVES = """
import signal, sys, time
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(144))
print("started", flush=True)
time.sleep(60)
"""
"""A task that saves itself when it is told to."""


def family(queue: Queue, job: Record, task: int = 0) -> list[int]:
    wait_for(lambda: job.log_file(task).exists() and "\n" in queue.log(job, task))
    return [int(word) for word in queue.log(job, task).split()[1:3]]


def test_kill_9_of_a_controller_takes_its_job_with_it(queue: Queue) -> None:
    queue.have()
    job = queue.submit(FAMILY, tasks=2)
    after = queue.submit("pass")
    pids = family(queue, job, 0) + family(queue, job, 1)
    assert all(map(is_running, pids)) and after.state() == "PENDING"
    os.kill(controller_of(job), signal.SIGKILL)
    assert queue.finish(job) == [NODE_FAIL]
    assert not any(map(is_running, pids)), "neither a task nor what it started"
    assert queue.finish(after) == [COMPLETED], "its slot is free again, with nobody looking"
    assert (job.folder / "state").read_text() == NODE_FAIL


def test_a_job_counts_as_alive_until_nothing_of_it_is_left(queue: Queue) -> None:
    queue.have()
    job = queue.submit(FAMILY)
    pids = family(queue, job)
    os.kill(controller_of(job), signal.SIGKILL)
    wait_for(lambda: job.state() != RUNNING)
    assert not any(map(is_running, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own net is Linux's")
def test_a_task_dies_with_its_controller_without_the_guard(queue: Queue) -> None:
    queue.have()
    job = queue.submit(FAMILY)
    task, _ = family(queue, job)
    controller = controller_of(job)
    children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    (watchman,) = [int(child) for child in children if int(child) != task]
    os.kill(watchman, signal.SIGKILL)
    os.kill(controller, signal.SIGKILL)
    wait_for(lambda: not is_running(task))
    wait_for(lambda: job.state() == NODE_FAIL)
    os.killpg(task, signal.SIGKILL)  # with the guard gone too, what the task started is left: as documented


def test_the_guard_alone_is_enough(tmp_path: Path) -> None:
    """As on systems that do not kill children with their parent."""
    code = f"""
import os, sys
from micro_musicgen.launch import guard
guard._LIBC = None
made = guard.Guard(lambda: open({str(tmp_path / "told")!r}, "w").close())
with open({str(tmp_path / "log")!r}, "wb") as log:
    made.start([sys.executable, "-c", {FAMILY!r}], ".", os.environ, log)
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        wait_for(lambda: "\n" in (tmp_path / "log").read_text())
        pids = [int(word) for word in (tmp_path / "log").read_text().split()[1:3]]
        assert all(map(is_running, pids))
        parent.kill()
        wait_for((tmp_path / "told").exists)
        assert not any(map(is_running, pids))


def test_what_a_task_leaves_behind_ends_with_the_job(queue: Queue) -> None:
    queue.have()
    job = queue.submit(FAMILY.replace("time.sleep(60)\n", "pass\n"))
    assert queue.finish(job) == [COMPLETED]
    assert not any(map(is_running, family(queue, job)))


def test_cancel_asks_first(queue: Queue) -> None:
    queue.have()
    job = queue.submit(
        "import time\ntry:\n    print('up', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
    )
    wait_for(lambda: job.log_file().exists() and "up" in queue.log(job))
    schedule.cancel(queue.root, [job])
    assert job.state() == CANCELLED and "saved" in queue.log(job)


def test_sigterm_to_the_controller_cancels_too(queue: Queue) -> None:
    queue.have()
    job = queue.submit(FAMILY)
    pids = family(queue, job)
    os.kill(controller_of(job), signal.SIGTERM)
    assert queue.finish(job) == [CANCELLED]
    wait_for(lambda: not any(map(is_running, pids)))  # killed, and on a busy machine not yet gone


def test_at_its_limit_a_job_saves_itself_and_goes_on(queue: Queue) -> None:
    queue.have()
    done = queue.folder / "saved"
    code = f"import os\nif os.path.exists({str(done)!r}): print('resumed'); raise SystemExit\n"
    code += SAVES.replace("lambda *_:", f"lambda *_: open({str(done)!r}, 'w').close() or")
    job = queue.submit(code, limit_s=6, grace_s=4.5, requeues=2)
    assert queue.finish(job) == [COMPLETED]
    log = queue.log(job)
    assert log.index("started") < log.index("starts again") < log.index("resumed")


def test_a_preempted_job_goes_on(queue: Queue) -> None:
    queue.have()
    job = queue.submit(
        f"import os\nif os.path.exists('once'): raise SystemExit\nopen('once', 'w').close()\n{SAVES}", requeues=1
    )
    wait_for(lambda: job.log_file().exists() and "started" in queue.log(job))
    os.kill(controller_of(job), signal.SIGUSR2)
    assert queue.finish(job) == [COMPLETED]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import signal, time; signal.signal(signal.SIGUSR2, signal.SIG_IGN); time.sleep(60)", "does not listen"),
        (SAVES, "saves itself for ever"),
        (SAVES.replace("144", "1"), "has timed out too many times"),
    ],
)
def test_a_job_that_comes_to_no_end_is_timed_out(queue: Queue, code: str, why: str) -> None:
    queue.have()
    assert queue.finish(queue.submit(code, limit_s=1.6, grace_s=0.8, requeues=1)) == [TIMEOUT], why


def test_ranks_and_one_failing_ends_all(queue: Queue) -> None:
    queue.have(cores=8)
    code = """
import os
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "SUBMITIT_LOCAL_NTASKS"]
print(*(os.environ[name] for name in names))
"""
    job = queue.submit(code, tasks=2)
    assert queue.finish(job) == [COMPLETED]
    first, second = queue.log(job, 0).split(), queue.log(job, 1).split()
    assert first[:4] == ["0", "0", "2", "127.0.0.1"] and second[:2] == ["1", "1"]
    assert first[2:] == second[2:] and first[5:] == ["4", "2"]
    broken = queue.submit("import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(3)\ntime.sleep(60)", tasks=2)
    assert queue.finish(broken) == [FAILED]


def test_the_word_of_task_0_counts_when_the_others_fail_first(queue: Queue) -> None:
    queue.have()
    code = """
import os, signal, sys, time
def told(*_):
    if os.environ["RANK"] == "1": os._exit(1)
    time.sleep(0.5); sys.exit(144)
if os.path.exists("again"): raise SystemExit
signal.signal(signal.SIGUSR2, told)
time.sleep(0.5); open("again", "w").close(); time.sleep(60)
"""
    assert queue.finish(queue.submit(code, tasks=2, limit_s=6, grace_s=4, requeues=1)) == [COMPLETED]


def test_killing_a_group_that_is_gone_does_nothing() -> None:
    done = subprocess.Popen([sys.executable, "-c", "pass"], start_new_session=True)
    assert done.wait() == 0
    guards.kill_group(done.pid)  # must not raise


@pytest.mark.slow
def test_under_fire_every_job_ends_none_is_lost_and_no_slot_is_given_twice(queue: Queue) -> None:
    code = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "60"])
print("family", os.getpid(), child.pid, os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
gate = os.open("gpu" + os.environ["CUDA_VISIBLE_DEVICES"], os.O_CREAT | os.O_RDWR)
import fcntl
fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while another job has the GPU
time.sleep(0.3)
"""
    queue.have(jobs=3, gpus=("0", "1", "2"))
    jobs = [queue.submit(code, gpus=1) for _ in range(30)]
    dice, killed = random.Random(4), set()
    while any(job.state() not in FINAL for job in jobs):
        running = [job for job in jobs if job.state() == RUNNING]
        if running and dice.random() < 0.3:
            victim = dice.choice(running)
            with contextlib.suppress(ValueError, ProcessLookupError):  # it has ended meanwhile
                os.kill(controller_of(victim), signal.SIGKILL)
                killed.add(victim.id)
        time.sleep(0.1)
    queue.finish(*jobs)
    assert {job.state() for job in jobs} == {COMPLETED, NODE_FAIL}
    assert {job.id for job in jobs if job.state() == NODE_FAIL} <= killed and len(killed) > 5
    logs = [queue.log(job).split() for job in jobs if job.log_file().exists()]
    assert not any(is_running(int(pid)) for log in logs for pid in log[1:3])
