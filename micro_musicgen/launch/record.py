"""What is known of a job: one folder `HOME/local/ID` of small files, written by whoever holds the right lock.

job.json        what to run, where and for how long (`JobSpec`)
environment.json   of the shell that submitted it; readable by its owner only, gone once the job has started
state           one of Slurm's words
gpus.json       the GPUs it has been given
lock            held by its controller, or the controller's guard, while either lives
cancel          exists once somebody wants it cancelled
controller.log  what the controller had to say
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from micro_musicgen import storage
from micro_musicgen.launch import locks

PENDING, RUNNING, COMPLETED, FAILED = "PENDING", "RUNNING", "COMPLETED", "FAILED"
CANCELLED, TIMEOUT, NODE_FAIL = "CANCELLED", "TIMEOUT", "NODE_FAIL"
FINAL = frozenset({COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL})


@dataclasses.dataclass(frozen=True)
class JobSpec:
    """What to run. Each of the `tasks` processes runs `command` in `cwd`.

    log_folder: task k writes `ID_k_log.out` there. limit_s: seconds until the tasks are stopped; grace_s: seconds
    before that at which they are told, to save what they have and be started again, `requeues` times at most.
    array: jobs that share it run `array_parallelism` at a time.
    """

    name: str
    command: Sequence[str]
    cwd: str
    log_folder: str
    tasks: int = 1
    gpus: int = 0
    limit_s: float = 3600.0
    grace_s: float = 90.0
    requeues: int = 0
    array: str = ""
    array_parallelism: int = 1


class Record:
    """One job's folder. Its name is the job's id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.lock = folder / "lock"

    @property
    def root(self) -> Path:
        """The folder that all jobs share."""
        return self.folder.parent

    @property
    def spec(self) -> JobSpec:
        """What to run."""
        return JobSpec(**storage.read_json(self.folder / "job.json"))

    def create(self, spec: JobSpec, environment: Mapping[str, str]) -> None:
        """Fills the folder. The job is in the queue once this is through, and not before."""
        self._write("job.json", dataclasses.asdict(spec))
        # It may hold keys of services. ASCII, as variables need not be valid UTF-8.
        descriptor = os.open(self.folder / "environment.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(dict(environment), file)
        self.lock.touch()
        self.set_state(PENDING)

    def environment(self) -> dict[str, str]:
        """Gives the variables of the shell that submitted it, as long as it waits."""
        environment: dict[str, str] = storage.read_json(self.folder / "environment.json")
        return environment

    def forget_environment(self) -> None:
        """Deletes them: the job has its own now, or will never run."""
        (self.folder / "environment.json").unlink(missing_ok=True)

    def state(self) -> str:
        """Gives its state in Slurm's words. A job whose controller died is NODE_FAIL, as if its node had."""
        state = self._state_file()
        if state == RUNNING and not self.is_alive():
            state = self._state_file()  # once more: the last word is written before the lock is let go
            return NODE_FAIL if state == RUNNING else state
        return state

    def set_state(self, state: str) -> None:
        """Writes its state down."""
        storage.write_text(self.folder / "state", state)

    def is_alive(self) -> bool:
        """Whether its controller lives, or what that left behind is still being cleared away."""
        return locks.is_held(self.lock)

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs it has been given, as CUDA_VISIBLE_DEVICES names them."""
        path = self.folder / "gpus.json"
        return tuple(storage.read_json(path)) if path.exists() else ()

    @gpus.setter
    def gpus(self, value: Sequence[str]) -> None:
        self._write("gpus.json", list(value))

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody wants it cancelled."""
        return (self.folder / "cancel").exists()

    def ask_to_cancel(self) -> None:
        """Lets its controller know. A file and no signal: its process id might be another's by now."""
        (self.folder / "cancel").touch()

    def log_file(self, task: int = 0) -> Path:
        """Gives what a task writes to, under the name that Dora looks for."""
        return Path(self.spec.log_folder) / f"{self.id}_{task}_log.out"

    def _state_file(self) -> str:
        try:
            return (self.folder / "state").read_text(encoding="utf-8") or NODE_FAIL
        except OSError:  # its folder was deleted by hand
            return NODE_FAIL

    def _write(self, name: str, value: Any) -> None:
        storage.write_text(self.folder / name, json.dumps(value))  # ASCII, as paths need not be valid UTF-8


def records(root: Path) -> list[Record]:
    """Gives every job that was ever submitted, oldest first."""
    return sorted((Record(folder) for folder in _folders(root)), key=lambda record: int(record.id))


def _folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        for folder in root.iterdir():
            if folder.name.isdigit() and (folder / "state").exists():
                yield folder


def reserve(root: Path, taken: Path) -> Record:
    """Gives an empty job with an id that no job had or will have. Call it under the queue's lock.

    taken: Dora's links by job id, of which older jobs (of a Slurm, too) may have left some.
    """
    last = root / "last_id"
    number = int(last.read_text()) if last.exists() else 0
    while True:
        number += 1
        folder = root / str(number)
        if folder.exists() or (taken / str(number)).is_symlink():
            continue
        storage.write_text(last, str(number))
        folder.mkdir(parents=True)
        return Record(folder)
