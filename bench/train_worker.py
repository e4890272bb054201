"""The process in which one solver trains: it is told over a pipe to do so many steps, and how long they took goes back.

First line in: {"home", "argv"}. Every further line: {"do": NAME, ...}, see `Trainer`. Every line out: a JSON object,
with "error" when the thing could not be done. The process ends when its input does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from pool import BENCH, LOAD_TIMEOUT_S, Variant, Worker, child_environment
from serving import serve_stdin


class TrainWorker(Worker):
    """One process that trains one model with one solver; the bench's own side of it. Use it as a context manager."""

    def __init__(self, name: str, home: Path, argv: list[str]) -> None:
        super().__init__(Variant(name), home, "")
        self._first = {"home": str(home), "argv": argv}

    def __enter__(self) -> TrainWorker:
        import subprocess
        import tempfile

        log: IO[bytes] = tempfile.TemporaryFile()
        self._log = log
        script = [sys.executable, str(BENCH / "train_worker.py")]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            script, stdin=pipe, stdout=pipe, stderr=log, text=True, env=child_environment()
        )
        try:
            self.loaded = self._ask(self._first, LOAD_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        return self


class Trainer:
    """What a worker can be told to do. Invariant: the device is idle when a method begins and when it ends."""

    def __init__(self, home: str, argv: list[str]) -> None:
        from micro_musicgen import paths

        os.environ[paths.HOME_VARIABLE] = home
        from micro_musicgen.train import get_solver, main

        began = time.perf_counter()
        xp = main.experiment(argv)
        main.init_xp(xp)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(xp.enter())
        self.solver: Any = get_solver(xp.cfg)
        self.is_ours = not xp.cfg.solver.endswith("_upstream")
        self.device = str(xp.cfg.device)
        self.begin = self._begin_ours if self.is_ours else self._begin_upstreams
        self.begin(xp.cfg)
        self.load_s = time.perf_counter() - began

    def _begin_ours(self, cfg: Any) -> None:
        from micro_musicgen.solvers.optimise.schedule import build_schedule

        self.solver.schedule = build_schedule(cfg.schedule, self.solver.plan)
        self.solver.model.train()
        self._step = self.solver.training_update

    def _begin_upstreams(self, cfg: Any) -> None:
        """What `common_train_valid` does at the start of its train stage, so that its loop can go step by step."""
        solver = self.solver
        solver._current_stage = "train"
        solver.model.train(True)
        self._batches = iter(solver.dataloaders["train"])
        self._step = self._upstreams_step

    def _upstreams_step(self) -> dict[str, Any]:
        solver = self.solver
        metrics: dict[str, Any] = solver.run_step(0, next(self._batches), {})
        if solver.ema is not None:
            solver.ema.step()
        return metrics

    def steps(self, count: int) -> dict[str, Any]:
        """Trains `count` steps: data, gradients, optimiser and average, all that the solver's own loop does for one."""
        began = time.perf_counter()
        metrics: Any = {}
        for _ in range(count):
            metrics = self._step()
        self._synchronise()
        seconds = time.perf_counter() - began
        shown = {key: float(value) for key, value in metrics.items() if key in ("ce", "loss", "g_loss")}
        return {"seconds": seconds, **shown}

    def seek(self, share: float) -> dict[str, Any]:
        """Goes to that share of the run: our codec solver has phases."""
        self.solver.updates_done = int(share * self.solver.plan.total_updates)
        self._step()  # what a phase does when it begins
        return {}

    def save(self, path: str) -> dict[str, Any]:
        """Writes the weights as they are trained."""
        import torch

        torch.save(self.solver.model.state_dict(), path)
        return {}

    def load(self, path: str) -> dict[str, Any]:
        """Takes over weights that another worker saved."""
        import torch

        self.solver.model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        return {}

    def valid(self, path: str | None = None) -> dict[str, Any]:
        """Gives the validation cross-entropy of our solver, of its own weights or of those in `path`."""
        import torch

        model = self.solver.model
        kept = None if path is None else {name: value.clone() for name, value in model.state_dict().items()}
        if path is not None:
            self.load(path)
        model.eval()
        with torch.no_grad():
            value = self.solver.valid()["ce"]
        model.train()
        if kept is not None:
            model.load_state_dict(kept)
        return {"ce": value}

    def limit(self, shapes: list[list[int]]) -> dict[str, Any]:
        """Gives the seconds that the products of a step take by themselves; see `limit_seconds`."""
        return limit_seconds(shapes, self.device)

    def _synchronise(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()


def limit_seconds(shapes: list[list[int]], device: str, repeats: int = 3) -> dict[str, Any]:
    """Gives the seconds, and the operations, of forward and backward of `count` products of `rows` x `width_in` with
    `width_in` x `width_out`, each entry of `shapes` [count, rows, width_in, width_out], in fp32 by torch.mm, best of
    `repeats`.
    """
    import torch

    total, operations = 0.0, 0.0
    for count, rows, width_in, width_out in shapes:
        x = torch.randn(rows, width_in, device=device)
        w = torch.randn(width_out, width_in, device=device)
        y = torch.empty(rows, width_out, device=device)
        products = ((x, w.t(), y), (y.normal_(), w, torch.empty_like(x)), (y.t(), x, torch.empty_like(w)))
        for a, b, out in products:
            best = float("inf")
            for _ in range(repeats):
                began = time.perf_counter()
                torch.mm(a, b, out=out)
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - began)
            total += count * best
            operations += count * 2.0 * rows * width_in * width_out
    return {"seconds": total, "operations": operations}


if __name__ == "__main__":
    serve_stdin(Trainer, lambda trainer: {"load_s": trainer.load_s})
