"""Training in processes that can be killed, started quickly: forked from a server that has everything imported."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
COUNTED = (("os", "replace"), ("os", "fsync"), ("os", "link"), ("torch", "save"))
"""Between any two of these calls, a kill leaves other files behind."""

_PRELOADING = "KILLABLE_PRELOADING"
if os.environ.get(_PRELOADING):
    import filelock  # noqa: F401
    import matplotlib.pyplot  # noqa: F401

    import micro_musicgen.solvers.codec
    import micro_musicgen.solvers.lm
    import micro_musicgen.train  # noqa: F401
    from micro_musicgen.upstream import audiocraft_module

    for _module in ("models.builders", "models.lm", "solvers.builders"):
        audiocraft_module(_module)


class _Events:
    """Counts what happens to files and steps; at number `kill_at` the process is no more."""

    def __init__(self, kill_at: int | None, log: Path) -> None:
        self.seen: list[str] = []
        self.kill_at, self.log = kill_at, log

    def note(self, name: str) -> None:
        self.seen.append(name)
        if self.kill_at == len(self.seen):
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        from micro_musicgen.solvers.lm import LMSolver

        for module, name in COUNTED:
            owner = __import__(module)
            setattr(owner, name, self._noting(f"{module}.{name}", getattr(owner, name)))
        LMSolver.train_step = self._noting("train_step", LMSolver.train_step)  # type: ignore[method-assign]

    def _noting(self, label: str, function: Any) -> Any:
        def noting(*args: Any, **options: Any) -> Any:
            self.note(label)
            return function(*args, **options)

        return noting


def _train(argv: Sequence[str], environment: dict[str, str], kill_at: int | None, log: str) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    from micro_musicgen import paths
    from micro_musicgen.errors import MicroMusicGenError
    from micro_musicgen.solvers.running import distributed
    from micro_musicgen.train import main, run_xp

    main.dora.dir = paths.runs_dir()
    events = _Events(kill_at, Path(log))
    events.watch()
    try:
        if "WORLD_SIZE" in environment:
            xp = main.experiment(list(argv))
            main.init_xp(xp)
            with xp.enter():
                distributed.init()
        folder = run_xp(list(argv))
        Path(log).write_text(json.dumps({"folder": str(folder), "events": events.seen}))
    except MicroMusicGenError as error:
        Path(log).write_text(json.dumps({"error": str(error)}))
        os._exit(error.exit_code)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        import traceback

        Path(log).write_text(json.dumps({"error": "".join(traceback.format_exception(error))}))
        os._exit(99)
    sys.stdout.flush()
    os._exit(0)


def _prepare_server() -> None:
    """Tells the server, before it is first needed, to import this module: from here, and with all of training."""
    if _PRELOADING in os.environ:
        return
    os.environ[_PRELOADING] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    CONTEXT.set_forkserver_preload(["killable"])


def start(
    argv: Sequence[str], log: Path, *, kill_at: int | None = None, environment: dict[str, str] | None = None
) -> BaseProcess:
    """Gives a process that trains. kill_at: number of the event at which it dies by SIGKILL."""
    _prepare_server()
    here = {key: value for key, value in os.environ.items() if key.startswith("MICRO_")}
    process = CONTEXT.Process(
        target=_train, args=(list(argv), {**here, **(environment or {})}, kill_at, str(log)), daemon=True
    )
    process.start()
    return process


def run(argv: Sequence[str], log: Path, *, kill_at: int | None = None, timeout_s: float = 120) -> int:
    """Gives the exit code of a training process; -9 when it was killed."""
    process = start(argv, log, kill_at=kill_at)
    process.join(timeout_s)
    code = process.exitcode
    if code is None:
        process.kill()
    assert code is not None, "training hangs"
    return code


def told(log: Path) -> dict[str, Any]:
    """Gives what the last process that got so far wrote about itself."""
    found: dict[str, Any] = json.loads(log.read_text())
    return found
