"""The loop that every solver shares, and what it promises about a run's state.

Stages of an epoch: train, valid, commit, then what is optional (evaluate, generate). A checkpoint holds everything
that the next step depends on, so a run that was killed and started again computes the same numbers as one that was
not. Data and random numbers of a step are pure functions of (seed, step, rank), so no loader state has to be kept, and
a run may go on with another number of processes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import flashy
import torch
from omegaconf import DictConfig
from torch import nn

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.optimise.descent import Descent, NotFinite
from micro_musicgen.solvers.optimise.ema import EMA
from micro_musicgen.solvers.optimise.schedule import Plan, build_schedule
from micro_musicgen.solvers.reporting.loggers import build_loggers
from micro_musicgen.solvers.reporting.progress import LogReporter, QuietReporter, Reporter, plain
from micro_musicgen.solvers.running import distributed, overview
from micro_musicgen.solvers.running.best import keep_best
from micro_musicgen.solvers.running.clockplan import settle_plan
from micro_musicgen.solvers.running.interrupt import RunStopped, StopRequest
from micro_musicgen.solvers.running.memory import peak_memory_mb
from micro_musicgen.solvers.running.runfiles import Policy, RunFiles
from micro_musicgen.solvers.running.runstate import RunState
from micro_musicgen.solvers.running.stages import run_optional, should_run
from micro_musicgen.solvers.running.tally import Tally

logger = logging.getLogger(__name__)


class Solver(flashy.BaseSolver):  # type: ignore[misc]
    """One experiment. Subclasses say what is trained and on what; see the methods under "for subclasses".

    Invariant: after `commit`, the checkpoint and the history on disk describe the same step.
    """

    name: ClassVar[str]
    best_metric: ClassVar[str | None] = None
    plotted: ClassVar[tuple[str, ...]] = ()
    distributes: ClassVar[bool] = False
    """Whether several processes may train one model."""

    def __init__(self, cfg: DictConfig, reporter: Reporter | None = None) -> None:
        super().__init__()
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.batch_size, self.accumulate = int(cfg.dataset.batch_size), int(cfg.optim.accumulate)
        if self.world_size > 1 and not self.distributes:
            raise MicroMusicGenError(f"solver {self.name} trains in one process; start it without -d or torchrun")
        self.cfg = cfg
        self.device = torch.device(cfg.device)
        self.loggers = build_loggers(cfg, self.xp, Path(self.folder))
        updates = cfg.optim.updates_per_epoch
        self.plan = Plan(updates, [cfg.optim.epochs * updates])
        self.updates_done = 0
        self.best: dict[str, Any] = {"score": math.inf, "epoch": 0, "model": {}}
        self.top: list[tuple[float, int]] = []
        self.files = RunFiles(Path(self.folder), Policy.parse(cfg.checkpoint))
        self.tally = Tally()
        self.reporter = self._reporter(reporter)
        self.stop_request = StopRequest()
        self.reporter.stage("preparing")
        self.model: Any = self.build_model().to(self.device)
        self.descent = Descent(self.model, cfg)
        self.ema = EMA(self.model, cfg.optim.ema.decay) if cfg.optim.ema.use else None
        self.state = RunState(self)
        self.clip_time = self._save_time = self.plot_time = time.monotonic()

    def _reporter(self, given: Reporter | None) -> Reporter:
        if not distributed.is_main():
            return QuietReporter()
        return given or LogReporter(self.cfg.optim.updates_per_epoch, self.cfg.logging.log_updates)

    # For subclasses.

    def build_model(self) -> nn.Module:
        """Gives the module to train, and prepares the data. Called once, before anything is restored."""
        raise NotImplementedError

    def train_step(self, step: int) -> Mapping[str, Any]:
        """Does step number `step` (0 is the first): gradients, optimiser, everything. Gives its metrics."""
        raise NotImplementedError

    def valid(self) -> dict[str, float]:
        """Gives the metrics of the validation split under the weights in place (the average, when there is one)."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Gives metrics too slow for every epoch. None by default."""
        return {}

    def generate(self) -> None:
        """Writes clips to the run folder."""

    def starting_weights(self, reference: str) -> Mapping[str, torch.Tensor]:
        """Gives the weights that `continue_from` names, to start a new run from.

        Raises:
            MicroMusicGenError: it does not exist, or was made for other data than this run's.
        """
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """Gives whatever else the next step depends on: tensors and plain values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes over what `extra_state` gave."""

    def summary(self) -> dict[str, Any]:
        """Gives what `summary.json` says beside the common facts."""
        return {}

    @property
    def tokens_per_update(self) -> int | None:
        """Codes that one step learns from, over all ranks; None where the word means nothing."""
        return None

    # The loop.

    def run(self) -> None:
        """Trains from wherever the checkpoint stands to the end of the plan.

        Raises:
            RunStopped: a signal asked it to stop; its state is saved.
            NotFinite: the loss stopped being a number; the last good state is saved.
        """
        if distributed.is_main():
            self.files.sweep()
        self.state.restore()
        distributed.same_weights(self.model)
        settle_plan(self)
        self.schedule = build_schedule(self.cfg.schedule, self.plan)
        self.loggers.start(self.state.config, self.updates_done)
        title, tokens = f"{self.name} {self.xp.sig}", self.tokens_per_update
        self.reporter.start(title, self.plan.total_updates, self.updates_done, tokens_per_update=tokens)
        try:
            with self.stop_request.listening():
                # An epoch whose steps are done may still have to be validated and committed.
                while self.updates_done < self.plan.total_updates or self.tally.end is not None:
                    self._run_epoch()
                    self._stop_if_asked()
        finally:
            self.reporter.stop()
            if (plot := Path(self.folder) / "loss.png").is_file():
                self.loggers.image("loss", plot, epoch=len(self.history), update=self.updates_done)
            self.loggers.close()

    def run_only(self, stage: str) -> None:
        """Runs one stage of a trained run with its best weights, and commits nothing."""
        stages = {"valid": self.valid, "evaluate": self.evaluate, "generate": self.generate}
        if stage not in stages:
            raise MicroMusicGenError(f"execute_only={stage} is not a stage; use {', '.join(stages)}")
        if not self.state.restore():
            raise MicroMusicGenError(f"run {self.xp.sig} has no checkpoint yet; train it first")
        self.model.load_state_dict(self.best["model"])
        with torch.no_grad():
            self.run_stage(stage, stages[stage])

    def show(self) -> None:
        """Logs the model and its size."""
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        logger.info("%s\n%.2f M parameters", self.model, millions)

    def restore(self) -> bool:
        """Takes over this run's checkpoint; says whether it had one. See `RunState.restore`."""
        return self.state.restore()

    def _run_epoch(self) -> None:
        self.run_stage("train", self._train)
        with torch.no_grad(), self.averaged_weights():
            self.model.eval()
            self.reporter.stage("valid")
            self.run_stage("valid", self.valid)
            keep_best(self)
        self.commit()
        for stage, method in (("evaluate", self.evaluate), ("generate", self.generate)):
            if should_run(self, stage):
                if distributed.is_main():
                    run_optional(self, stage, method)
                flashy.distrib.barrier()

    def _train(self) -> dict[str, float]:
        self.model.train()
        if self.tally.end is None:
            whole = (self.updates_done // self.plan.updates_per_epoch + 1) * self.plan.updates_per_epoch
            self.tally.begin(min(whole, self.plan.total_updates))
        assert self.tally.end is not None
        every = max(1, self.plan.updates_per_epoch // 20)
        snapshots = self.files.policy.snapshot_steps(self.plan.total_updates)
        while self.updates_done < self.tally.end:
            began = time.monotonic()
            metrics = self._guarded_update()
            self.tally.add(metrics, counts=not self.descent.last_was_skipped, seconds=time.monotonic() - began)
            # Reading a metric waits for the device, so it is done a few times an epoch and not at every step.
            shown = {**plain(metrics), **self._health()} if self.updates_done % every == 0 else {}
            self.reporter.step(self.updates_done, shown)
            if self.updates_done in snapshots:
                self.state.snapshot()
            self._save_if_due()
            self._stop_if_asked()
        return {**distributed.averaged(self.tally.means()), **self._facts()}

    def _facts(self) -> dict[str, float]:
        """Gives what an epoch's metrics say besides the losses. Speed and memory are the clock's and the machine's."""
        facts = {
            "lr": float(self.descent.optimizer.param_groups[0]["lr"]),
            "steps_per_s": self.tally.steps_per_s,
            **self._health(),
        }
        if self.tokens_per_update is not None:
            facts["tokens_per_s"] = self.tokens_per_update * self.tally.steps_per_s
        return facts

    def _health(self) -> dict[str, float]:
        return {"skipped": float(self.tally.skipped), "peak_memory_mb": peak_memory_mb(self.device)}

    def _guarded_update(self) -> Mapping[str, Any]:
        try:
            return self.training_update()
        except NotFinite as error:
            # Skipped steps changed nothing: this is the state of the last good one.
            self.updates_done = max(0, self.updates_done + 1 - self.descent.in_a_row)
            self.tally.skipped = max(0, self.tally.skipped + 1 - self.descent.in_a_row)
            where = self.state.save_if_finite()
            raise NotFinite(
                f"{error}; stopped at step {self.updates_done} of {self.plan.total_updates} with {where}. Start a run "
                f"with continue_from={self.xp.sig} and a lower optim.lr than {self.cfg.optim.lr:g}"
            ) from None

    def training_update(self) -> Mapping[str, Any]:
        """Does the next step at the learning rate that the plan gives it, and the averaging that follows."""
        step = self.updates_done
        torch.manual_seed(step_seed(self.cfg.seed, step, self.rank))
        self.descent.set_rate(self.schedule(step))
        metrics = self.train_step(step)
        self.updates_done += 1
        if self.ema is not None and not self.descent.last_was_skipped:
            if self.updates_done % self.cfg.optim.ema.updates == 0:
                self.ema.update()
        return metrics

    def autocast(self) -> Any:
        """Gives the context in which the forward pass runs."""
        dtype = getattr(torch, self.cfg.autocast_dtype)
        return torch.autocast(self.device.type, dtype=dtype, enabled=bool(self.cfg.autocast))

    def averaged_weights(self) -> Any:
        """Gives the context in which the model holds the averaged weights, if they are kept."""
        return self.ema.swapped_in() if self.ema is not None else nullcontext()

    # Stopping.

    def _save_if_due(self) -> None:
        minutes = self.files.policy.every_minutes
        if minutes and distributed.is_main() and time.monotonic() - self._save_time > 60 * minutes:
            self.state.save()
            self._save_time = time.monotonic()

    def _stop_if_asked(self) -> None:
        """Saves and raises RunStopped when a signal has come to any of the ranks."""
        number = self.stop_request.signal_number
        if not distributed.any_rank(number is not None):
            return
        if distributed.is_main() and self.tally.end is not None:
            self.state.save()
        raise RunStopped(
            f"stopped at step {self.updates_done} of {self.plan.total_updates}; everything is saved, the same command "
            "goes on from there",
            number or 15,
        )

    # State.

    def commit(self, save_checkpoint: bool = True) -> None:
        """Puts the epoch on disk: checkpoint first, then the history that Dora reads, then what people look at."""
        self.history.append({stage: plain(metrics) for stage, metrics in self._pending_metrics.items()})
        self._start_epoch()
        self.tally = Tally()
        if not distributed.is_main():
            return
        if save_checkpoint:
            self.state.commit()
            self._save_time = time.monotonic()
        self.xp.link.update_history(self.history)
        overview.epoch_results(self)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Gives the seed of one step's random numbers on one rank."""
    return (seed * 1_000_003 + step * 10_007 + rank) % (1 << 63)
