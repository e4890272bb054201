"""What runs one job, from its start to its last word: `python -m micro_musicgen.launch.controller FOLDER LOCK`.

Detached from every terminal. It starts the tasks, tells them when their time is nearly up, starts them again when they
have saved themselves for that, stops them when the job is cancelled or one fails, and writes the final state down.
FOLDER is the job's, LOCK the number of the descriptor that holds its lock.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from micro_musicgen.launch import schedule
from micro_musicgen.launch.guard import Guard
from micro_musicgen.launch.record import CANCELLED, COMPLETED, FAILED, TIMEOUT, Record

REQUEUE_CODE = 144
"""With which submitit's local tasks say: I have saved myself, start me again."""
CHECKPOINT_SIGNAL = signal.SIGUSR2
"""At which submitit's tasks save themselves."""
KILL_WAIT_S = 5.0
"""From the polite signal to the other one."""
POLL_S = 0.1
_REQUEUE = "REQUEUE"


class Controller:
    """Runs the tasks of one job."""

    def __init__(self, record: Record, guard: Guard) -> None:
        self.record, self.guard, self.spec = record, guard, record.spec
        self.tasks: list[subprocess.Popen[bytes]] = []
        self.told = False  # the tasks have been asked to save themselves
        self.stopped = False
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(CHECKPOINT_SIGNAL, self._on_preempt)

    def run(self) -> str:
        """Gives the final state, when the job has come to it and none of its processes is left."""
        for _ in range(self.spec.requeues + 1):
            try:
                self._start_tasks()
                state = self._watch()
            except OSError as error:
                self._say(f"a task could not be started: {error}")
                state = FAILED
            finally:
                self._stop_tasks()
            if state != _REQUEUE:
                return state
            self._say(f"job {self.record.id} starts again where it saved itself")
        return TIMEOUT

    def _start_tasks(self) -> None:
        self.told = False
        shared = self._environment()
        Path(self.spec.log_folder).mkdir(parents=True, exist_ok=True)
        for k in range(self.spec.tasks):
            own = {"RANK": str(k), "LOCAL_RANK": str(k)}
            own |= {"SUBMITIT_LOCAL_GLOBALID": str(k), "SUBMITIT_LOCAL_LOCALID": str(k)}
            with open(self.record.log_file(k), "ab") as log:
                self.tasks.append(self.guard.start(self.spec.command, self.spec.cwd, shared | own, log))

    def _environment(self) -> dict[str, str]:
        """Gives what the tasks have in common: what submitit's and what torch's distributed side look for."""
        tasks = str(self.spec.tasks)
        return dict(os.environ) | {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_JOB_ID": self.record.id,
            "SUBMITIT_LOCAL_NTASKS": tasks,
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "WORLD_SIZE": tasks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }

    def _watch(self) -> str:
        """Gives the state in which the tasks are, as soon as the job is to end."""
        begin = time.monotonic()
        while True:
            codes = [task.poll() for task in self.tasks]
            verdict = self._verdict(codes)
            if verdict:
                return verdict
            if self.stopped or self.record.is_cancelled:
                return CANCELLED
            spent = time.monotonic() - begin
            if spent > self.spec.limit_s:
                self._say(f"job {self.record.id} is stopped at its limit of {self.spec.limit_s:.0f} s")
                return TIMEOUT
            if not self.told and spent > self.spec.limit_s - self.spec.grace_s:
                self._tell()
            time.sleep(POLL_S)

    def _verdict(self, codes: list[int | None]) -> str:
        """Gives what the exit codes say of the job, or nothing while it runs."""
        if REQUEUE_CODE in codes:
            return _REQUEUE
        if any(codes):
            # Told to save itself, task 0 does and ends, on which the others may fail first: its word counts.
            if self.told and codes[0] is None:
                return ""
            return TIMEOUT if self.told else FAILED
        return COMPLETED if None not in codes else ""

    def _tell(self) -> None:
        self.told = True
        for task in self.tasks:
            if task.poll() is None:
                task.send_signal(CHECKPOINT_SIGNAL)

    def _stop_tasks(self) -> None:
        """Ends every process of the job, asking the tasks first."""
        for task in self.tasks:
            if task.poll() is None:
                task.send_signal(signal.SIGINT)
        end = time.monotonic() + KILL_WAIT_S
        while any(task.poll() is None for task in self.tasks) and time.monotonic() < end:
            time.sleep(0.02)
        for task in self.tasks:
            self.guard.kill(task)
        self.tasks = []

    def _say(self, text: str) -> None:
        """Adds a line to the log that a person looks at."""
        with open(self.record.log_file(), "a", encoding="utf-8") as log:
            log.write(text + "\n")

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True

    def _on_preempt(self, number: int, frame: FrameType | None) -> None:
        self._tell()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(folder: str, lock: int) -> None:
    """Runs the job in `folder`, then starts what waits for its slot."""
    record = Record(Path(folder))
    os.set_inheritable(lock, False)  # it is ours and the guard's, not the tasks'

    def after_death() -> None:
        os.close(lock)  # from here on the job is dead
        schedule.dispatch(record.root)

    guard = Guard(after_death)
    state = FAILED
    try:
        state = Controller(record, guard).run()
    except Exception:
        traceback.print_exc()
    record.set_state(state)
    guard.dismiss()
    os.close(lock)
    schedule.dispatch(record.root)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
