"""The bench's own side of its worker processes: start them, ask them one at a time, never leave one behind.

Nothing here imports torch: the process that times stays small and idle.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

LOAD_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 900.0
BENCH = Path(__file__).resolve().parent


class WorkerFailure(Exception):
    """What a worker was asked for could not be done; the message is fit for a row's note."""


@dataclass(frozen=True)
class Variant:
    """An engine under a precision: what a worker is."""

    engine: str
    precision: str = "fp32"

    @property
    def label(self) -> str:
        """Gives the name of ours by its precision, of a peer by itself."""
        return self.precision if self.engine == "ours" else self.engine


class Worker:
    """One process that holds one model in one engine. Use it as a context manager."""

    def __init__(self, variant: Variant, folder: Path | str, device: str) -> None:
        self.variant = variant
        self._folder, self._device = str(folder), device
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None
        self.loaded: dict[str, Any] = {}

    def __enter__(self) -> Worker:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, str(BENCH / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=child_environment(),
        )
        try:
            first = {
                "engine": self.variant.engine,
                "folder": self._folder,
                "device": self._device,
                "precision": self.variant.precision,
            }
            self.loaded = self._ask(first, LOAD_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """Gives the answer.

        Raises:
            WorkerFailure: it could not be done, the process died, or it took too long.
        """
        return self._ask({"do": do, **given}, RUN_TIMEOUT_S)

    def _ask(self, asked: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        process = self._process
        if process is None:
            raise WorkerFailure("its process has ended")
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._died() from None
        if not select.select([process.stdout], [], [], timeout_s)[0]:
            self.close()
            raise WorkerFailure(f"no answer within {timeout_s:g} s")
        line = process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailure(answer["error"])
        return answer

    def _died(self) -> WorkerFailure:
        process, log = self._process, self._log
        assert process is not None and log is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        log.seek(0)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        failure = WorkerFailure(f"its process ended with {process.returncode}: {(lines or ['no word'])[-1][:160]}")
        self.close()
        return failure

    def close(self) -> None:
        """Ends the process, waiting until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        log, self._log = self._log, None
        if log is not None:
            log.close()


def child_environment() -> dict[str, str]:
    """Gives the environment of all children: the package findable from wherever the bench is started."""
    root = str(BENCH.parent)
    held = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{held}" if held else root, "PYTHONWARNINGS": "ignore"}


@contextlib.contextmanager
def workers(variants: Sequence[Variant], folder: Path, device: str) -> Iterator[dict[Variant, Worker | str]]:
    """Gives a running worker per variant, or the reason why there is none."""
    with contextlib.ExitStack() as stack:
        started: dict[Variant, Worker | str] = {}
        for variant in variants:
            try:
                started[variant] = stack.enter_context(Worker(variant, folder, device))
            except WorkerFailure as failure:
                started[variant] = str(failure)
        yield started


def _end(process: subprocess.Popen[Any]) -> None:
    """Ends a process that still runs, first asking, so that it removes what it has half written."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_process(argv: Sequence[str], timeout_s: float = LOAD_TIMEOUT_S) -> float:
    """Gives wall seconds of a process from start to end.

    Raises:
        WorkerFailure: it failed, with the last line it wrote.
    """
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=child_environment())
        try:
            process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise WorkerFailure(f"not done within {timeout_s:g} s") from None
        finally:
            _end(process)
        seconds = time.perf_counter() - began
        if process.returncode:
            log.seek(0)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            raise WorkerFailure(f"ended with {process.returncode}: {(lines or ['no word'])[-1][:160]}")
    return seconds
