"""What tests of the local queue share: a queue of jobs that take milliseconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from micro_musicgen.launch import schedule
from micro_musicgen.launch.record import FINAL, JobSpec, Record, records
from micro_musicgen.launch.slots import Machine


def wait_for(happened: Callable[[], object], seconds: float = 30.0) -> None:
    """Returns once something has happened, and fails when it has not after `seconds`."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process lives; one that is dead and not yet buried does not."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("looks at processes in /proc")
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Queue:
    """A queue below a folder, with jobs given as lines of Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "local"

    def have(self, jobs: int = 1, gpus: tuple[str, ...] = (), cores: int = 4) -> None:
        Machine(jobs, gpus, cores).save(self.root)

    def add(self, code: str, environment: dict[str, str] | None = None, **spec: object) -> Record:
        """Gives a job that waits: `dispatch` starts it."""
        record = schedule.reserve_job(self.root, self.folder / "by_id")
        settings = {"name": "job", "command": [sys.executable, "-c", code], "cwd": str(self.folder)}
        settings |= {"log_folder": str(self.folder / "logs")} | spec
        schedule.enqueue(record, JobSpec(**settings), dict(os.environ) | (environment or {}))  # type: ignore[arg-type]
        return record

    def submit(self, code: str, **spec: object) -> Record:
        record = self.add(code, **spec)
        self.dispatch()
        return record

    def dispatch(self) -> None:
        schedule.dispatch(self.root)

    def states(self) -> list[str]:
        return [record.state() for record in records(self.root)]

    def finish(self, *jobs: Record) -> list[str]:
        """Gives the final states of `jobs`, else of all."""
        awaited = list(jobs) or records(self.root)
        wait_for(lambda: all(record.state() in FINAL and not record.is_alive() for record in awaited))
        return [record.state() for record in awaited]

    def log(self, record: Record, task: int = 0) -> str:
        return record.log_file(task).read_text()


def controller_of(job: Record) -> int:
    """Gives the process id of a running job's controller. Its guard has the same command line, and is its child."""
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("finds processes in /proc")
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if os.fsencode(job.folder) in words:
                found[int(folder.name)] = parent
    (controller,) = [pid for pid, parent in found.items() if parent not in found]
    return controller
