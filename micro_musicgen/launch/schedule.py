"""The queue: first in, first out, as many at once as the machine's slots.

No process watches it. Whoever changes something (a submission, a job that ends, a guard whose job was killed, an open
table) calls `dispatch`, which starts what may start. So jobs that wait cost nothing and survive a reboot.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from micro_musicgen.launch import locks
from micro_musicgen.launch.record import (
    CANCELLED,
    FAILED,
    FINAL,
    NODE_FAIL,
    PENDING,
    RUNNING,
    JobSpec,
    Record,
    records,
    reserve,
)
from micro_musicgen.launch.slots import Machine

# Of the shell, a job must not inherit what describes another job.
_FOREIGN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FOREIGN_PREFIXES = ("SUBMITIT_", "SLURM_", "TORCHELASTIC_")


def queue_lock(root: Path) -> Path:
    """Gives the file to lock before states are changed."""
    return root / "queue.lock"


def reserve_job(root: Path, taken: Path) -> Record:
    """Gives an empty job with an id of its own for ever. `taken`: Dora's links by job id."""
    with locks.hold(queue_lock(root)):
        return reserve(root, taken)


def enqueue(record: Record, spec: JobSpec, environment: Mapping[str, str]) -> None:
    """Puts a reserved job at the end of the queue. `dispatch` starts it."""
    own = {
        name: value
        for name, value in environment.items()
        if name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES)
    }
    record.create(spec, own)


def dispatch(root: Path) -> None:
    """Starts what may start, and writes down which jobs have died."""
    if not (root / "machine.json").exists():
        return
    with locks.hold(queue_lock(root)):
        machine = Machine.load(root)
        running: list[Record] = []
        pending: list[Record] = []
        for record in records(root):
            state = record.state()
            if state == NODE_FAIL:
                record.set_state(state)
            elif state == RUNNING:
                running.append(record)
            elif state == PENDING:
                pending.append(record)
        arrays = Counter(record.spec.array for record in running) if pending else Counter()
        for record in pending:
            spec = record.spec
            if spec.array and arrays[spec.array] >= spec.array_parallelism:
                continue
            gpus = machine.place(spec.gpus, [other.gpus for other in running])
            if gpus is None:
                break  # the first waits until there is room for it: a large job is not passed by for ever
            if _start(record, spec, gpus, machine):
                running.append(record)
                arrays[spec.array] += 1


def cancel(root: Path, jobs: Iterable[Record], wait_s: float = 30.0) -> list[Record]:
    """Cancels jobs, and gives those that still run after `wait_s`."""
    asked = list(jobs)
    with locks.hold(queue_lock(root)):
        for record in asked:
            state = record.state()
            if state == PENDING:
                record.set_state(CANCELLED)
                record.forget_environment()
            elif state == RUNNING:
                record.ask_to_cancel()
    end = time.monotonic() + wait_s
    while (left := [record for record in asked if record.state() not in FINAL]) and time.monotonic() < end:
        time.sleep(0.05)
    dispatch(root)
    return left


def _start(record: Record, spec: JobSpec, gpus: tuple[str, ...], machine: Machine) -> bool:
    """Starts the job's controller, detached; whether that worked. It is given the job's lock as it is born."""
    environment = record.environment()
    threads = str(machine.threads(spec.tasks))
    environment.setdefault("OMP_NUM_THREADS", threads)
    if machine.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    lock = locks.acquire(record.lock, shared_with_children=True)
    try:
        record.gpus = gpus
        record.set_state(RUNNING)
        with open(record.folder / "controller.log", "ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "micro_musicgen.launch.controller", str(record.folder), str(lock)],
                cwd=spec.cwd,
                env=environment,
                pass_fds=[lock],
                start_new_session=True,  # no terminal: neither its Ctrl-C nor its end reaches the job
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    except OSError as error:
        record.log_file().parent.mkdir(parents=True, exist_ok=True)
        with open(record.log_file(), "a", encoding="utf-8") as log_file:
            log_file.write(f"the job could not be started: {error}\n")
        record.set_state(FAILED)
        return False
    finally:
        os.close(lock)
        record.forget_environment()
    return True
