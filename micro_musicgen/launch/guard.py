"""No task outlives its controller, even one that is killed with -9.

Two nets. The system kills each task with its parent, where it can (Linux). And a guard, a fork of the controller in a
session of its own, waits at the end of a pipe whose other end closes with the controller; then it kills the process
groups of all tasks, and so what tasks started themselves. As a fork it holds the job's lock too, so the job counts as
alive until nothing of it is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NoReturn

_PR_SET_PDEATHSIG = 1
_QUIT = b"quit"
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Guard:
    """Starts processes and answers for them. Make it before any thread.

    on_death: what the guard does at last, when the controller has died and its tasks are gone.
    """

    def __init__(self, on_death: Callable[[], None]) -> None:
        reader, self._writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._writer)
            _stand_by(reader, on_death)
        os.close(reader)

    def start(
        self, command: Sequence[str], cwd: str, environment: Mapping[str, str], log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Gives a new process, the leader of a group of its own, that writes to `log`.

        Raises:
            OSError: there is no such command or folder.
        """
        parent, writer = os.getpid(), self._writer

        def bind() -> None:
            # The new process announces itself, before it becomes the command: there is no moment at which it lives
            # and the guard would not hear of it.
            with contextlib.suppress(OSError):  # the guard itself was killed
                os.write(writer, b"%d\n" % os.getpid())
            if _LIBC is not None:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        return subprocess.Popen(
            list(command),
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=bind,
        )

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kills a process with all that it started, and waits for it."""
        kill_group(process.pid)
        process.wait()
        with contextlib.suppress(OSError):
            os.write(self._writer, b"-%d\n" % process.pid)

    def dismiss(self) -> None:
        """Ends the guard: everything has been cleared away."""
        with contextlib.suppress(OSError):
            os.write(self._writer, _QUIT + b"\n")
        os.close(self._writer)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def kill_group(leader: int) -> None:
    """Kills every process of a group. Nothing happens when there is none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _stand_by(reader: int, on_death: Callable[[], None]) -> NoReturn:
    """What the guard does all its life."""
    code = 1
    try:
        os.setsid()
        for polite in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(polite, signal.SIG_IGN)
        groups: set[int] = set()
        with os.fdopen(reader, "rb") as pipe:
            for line in pipe:
                word = line.strip()
                if word == _QUIT:
                    os._exit(0)
                number = int(word)
                if number > 0:
                    groups.add(number)
                else:
                    groups.discard(-number)
        for leader in groups:
            kill_group(leader)
        _wait_until_gone(groups)
        on_death()
        code = 0
    finally:
        os._exit(code)


def _wait_until_gone(groups: set[int], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while any(map(_lives, groups)) and time.monotonic() < end:
        time.sleep(0.02)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    try:  # a zombie that nobody has buried yet runs no more
        with open(f"/proc/{group}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return True
