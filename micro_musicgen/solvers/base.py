"""The loop that every solver shares, and what it promises about a run's state.

Stages of an epoch: train, valid, commit, then what is optional (evaluate, generate). A commit holds everything that
the next step depends on, so a run that was killed and started again computes the same numbers as one that was not.
The order of the data is a pure function of (seed, step), which is why no loader state has to be kept.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import flashy
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from micro_musicgen import checkpoints, references, storage
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.release.provenance import software
from micro_musicgen.solvers.ema import EMA
from micro_musicgen.solvers.optim import build_optimizer
from micro_musicgen.solvers.plot import plot_history
from micro_musicgen.solvers.progress import LogReporter, Reporter, plain
from micro_musicgen.solvers.schedule import Plan, build_schedule

logger = logging.getLogger(__name__)

NEVER = "never"
SPEED_STEPS = 6
OVERHEAD_SHARE = 0.88
"""Share of a run's minutes that goes into training steps; validation, checkpoints and clips take the rest."""


class Solver(flashy.BaseSolver):  # type: ignore[misc]
    """One experiment. Subclasses say what is trained and on what; see the methods under "for subclasses".

    Invariant: after `commit`, the checkpoint and the history on disk describe the same step.
    """

    name: ClassVar[str]
    best_metric: ClassVar[str | None] = None
    plotted: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cfg: DictConfig, reporter: Reporter | None = None) -> None:
        super().__init__()
        if flashy.distrib.world_size() > 1:
            raise MicroMusicGenError("this solver trains in one process; start it without -d or torchrun")
        self.cfg = cfg
        self.device = torch.device(cfg.device)
        updates = cfg.optim.updates_per_epoch
        self.plan = Plan(updates, [cfg.optim.epochs * updates])
        self.updates_done = 0
        self.best: dict[str, Any] = {"score": math.inf, "epoch": 0, "model": {}}
        self.reporter: Reporter = reporter or LogReporter(updates, cfg.logging.log_updates)
        self.model: Any = self.build_model().to(self.device)
        self.optimizer = build_optimizer(self.model, cfg.optim)
        self.scaler = torch.amp.GradScaler(enabled=bool(cfg.autocast) and cfg.autocast_dtype == "float16")
        self.ema = EMA(self.model, cfg.optim.ema.decay) if cfg.optim.ema.use else None
        self._clip_time = time.monotonic()
        self._provenance = {"seed": cfg.seed, **software()}

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

    def extra_state(self) -> dict[str, Any]:
        """Gives whatever else the next step depends on: tensors and plain values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes over what `extra_state` gave."""

    def summary(self) -> dict[str, Any]:
        """Gives what `summary.json` says beside the common facts."""
        return {}

    # The loop.

    def run(self) -> None:
        """Trains from wherever the checkpoint stands to the end of the plan."""
        self.restore()
        self._settle_plan()
        self.schedule = build_schedule(self.cfg.schedule, self.plan)
        self.reporter.start(f"{self.name} {self.xp.sig}", self.plan.total_updates, self.updates_done)
        try:
            while self.updates_done < self.plan.total_updates:
                self._run_epoch()
        finally:
            self.reporter.stop()

    def run_only(self, stage: str) -> None:
        """Runs one stage of a trained run with its best weights, and commits nothing."""
        stages = {"valid": self.valid, "evaluate": self.evaluate, "generate": self.generate}
        if stage not in stages:
            raise MicroMusicGenError(f"execute_only={stage} is not a stage; use {', '.join(stages)}")
        if not self.restore():
            raise MicroMusicGenError(f"run {self.xp.sig} has no checkpoint yet; train it first")
        self.model.load_state_dict(self.best["model"])
        with torch.no_grad():
            self.run_stage(stage, stages[stage])

    def show(self) -> None:
        """Logs the model and its size."""
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        logger.info("%s\n%.2f M parameters", self.model, millions)

    def _run_epoch(self) -> None:
        self.run_stage("train", self._train)
        with torch.no_grad(), self.averaged_weights():
            self.model.eval()
            self.run_stage("valid", self.valid)
            self._keep_best()
        self.commit()
        for stage, method in (("evaluate", self.evaluate), ("generate", self.generate)):
            if self.should_run(stage):
                self._run_optional(stage, method)

    def _train(self) -> dict[str, float]:
        self.model.train()
        epoch_end = min((self.updates_done // self.plan.updates_per_epoch + 1) * self.plan.updates_per_epoch,
                        self.plan.total_updates)  # fmt: skip
        totals: dict[str, torch.Tensor | float] = {}
        first = self.updates_done
        every = max(1, (epoch_end - first) // 20)
        while self.updates_done < epoch_end:
            metrics = self.training_update()
            for key, value in metrics.items():
                totals[key] = totals.get(key, 0.0) + (value.detach() if isinstance(value, torch.Tensor) else value)
            # Reading a metric waits for the device, so it is done a few times an epoch and not at every step.
            shown = plain(metrics) if self.updates_done % every == 0 else {}
            self.reporter.step(self.updates_done, shown)
        return {key: float(value) / (epoch_end - first) for key, value in totals.items()}

    def training_update(self) -> Mapping[str, Any]:
        """Does the next step at the learning rate that the plan gives it, and the averaging that follows."""
        factor = self.schedule(self.updates_done)
        for group in self.optimizer.param_groups:
            group["lr"] = self.cfg.optim.lr * factor
        metrics = self.train_step(self.updates_done)
        self.updates_done += 1
        if self.ema is not None and self.updates_done % self.cfg.optim.ema.updates == 0:
            self.ema.update()
        return metrics

    def descend(self, loss: torch.Tensor) -> torch.Tensor:
        """Gives the gradient's norm after one optimiser step down `loss`."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.optimizer)
        limit = self.cfg.optim.max_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def autocast(self) -> Any:
        """Gives the context in which the forward pass runs."""
        dtype = getattr(torch, self.cfg.autocast_dtype)
        return torch.autocast(self.device.type, dtype=dtype, enabled=bool(self.cfg.autocast))

    def averaged_weights(self) -> Any:
        """Gives the context in which the model holds the averaged weights, if they are kept."""
        return self.ema.swapped_in() if self.ema is not None else nullcontext()

    def should_run(self, stage: str) -> bool:
        """Says whether an optional stage is due. `every: never` is never; an interval includes the end of the run."""
        section = self.cfg[stage]
        minutes = section.get("every_minutes") if stage == "generate" else None
        if section.every == NEVER or not (section.every or minutes):
            return False
        at_end = self.updates_done >= self.plan.total_updates
        by_epoch = bool(section.every) and len(self.history) % section.every == 0
        by_clock = minutes is not None and time.monotonic() - self._clip_time > 60 * minutes
        return at_end or by_epoch or by_clock

    def _run_optional(self, stage: str, method: Any) -> None:
        """Runs a stage whose failure costs its result and nothing else; its metrics join the epoch just committed."""
        try:
            with torch.random.fork_rng(), torch.no_grad(), self.averaged_weights():
                self.model.eval()
                self._start_epoch()
                self.run_stage(stage, method)
        except Exception:
            logger.exception("%s failed in epoch %d; training goes on", stage, len(self.history))
            return
        finally:
            self._clip_time = time.monotonic()
        self.history[-1].update(self._pending_metrics)
        self._start_epoch()
        self.xp.link.update_history(self.history)

    # State.

    def _keep_best(self) -> None:
        score = self._pending_metrics["valid"][self.best_metric] if self.best_metric else -math.inf
        if score <= self.best["score"] or not self.best["model"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"score": score, "epoch": len(self.history) + 1, "model": weights}

    def training_state(self) -> dict[str, Any]:
        """Gives everything that the next step depends on, apart from the weights."""
        return {
            "updates_done": self.updates_done,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "extra": self.extra_state(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Takes over what `training_state` gave."""
        self.updates_done = state["updates_done"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["rng_cuda"])
        self.load_extra_state(state["extra"])

    def commit(self, save_checkpoint: bool = True) -> None:
        """Puts the epoch on disk: checkpoint first, then the history that Dora reads, then what people look at."""
        self.history.append({stage: plain(metrics) for stage, metrics in self._pending_metrics.items()})
        self._start_epoch()
        if save_checkpoint:
            state = {
                "solver": self.name,
                "signature": self.xp.sig,
                "config": OmegaConf.to_yaml(self.cfg, resolve=True),
                "model": self.model.state_dict(),
                "best": self.best,
                "training": self.training_state(),
                "plan": self.plan.state_dict(),
                "history": list(self.history),
                "provenance": self._provenance,
            }
            checkpoints.save(state, self.folder / references.CHECKPOINT_NAME)
            self._keep_copy(state)
        self.xp.link.update_history(self.history)
        self._write_overview()

    def _keep_copy(self, state: dict[str, Any]) -> None:
        """Keeps every `checkpoint.save_every`-th checkpoint under its epoch's number, the newest `keep_last`."""
        epoch, every = len(self.history), self.cfg.checkpoint.save_every
        if not every or epoch % every:
            return
        checkpoints.save(state, self.folder / f"checkpoint_{epoch}.th")
        kept = sorted(self.folder.glob("checkpoint_*.th"), key=lambda p: int(p.stem.split("_")[1]))
        for path in kept[: -self.cfg.checkpoint.keep_last or None]:
            path.unlink()

    def _write_overview(self) -> None:
        summary = {
            "solver": self.name,
            "signature": self.xp.sig,
            "dataset": dataset_name(self.xp.argv, self.cfg),
            "argv": list(self.xp.argv),
            "updates_done": self.updates_done,
            "total_updates": self.plan.total_updates,
            "epochs_done": len(self.history),
            "best": {"metric": self.best_metric, "score": self.best["score"], "epoch": self.best["epoch"]},
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
            **self.summary(),
        }
        if not math.isfinite(self.best["score"]):
            summary["best"]["score"] = None
        storage.write_json(self.folder / "summary.json", summary)
        try:
            plot_history(self.history, self.plotted, self.folder / "loss.png")
        except Exception:
            logger.exception("the loss plot failed; training goes on")

    def restore(self) -> bool:
        """Takes over this run's checkpoint, or the weights of `continue_from`. Says whether it had one itself."""
        path = self.folder / references.CHECKPOINT_NAME
        if not path.is_file():
            self.history.clear()
            if self.cfg.continue_from:
                self._start_from(self.cfg.continue_from)
            return False
        state = checkpoints.load(path)
        self.model.load_state_dict(state["model"])
        self.load_training_state(state["training"])
        self.plan = Plan(**state["plan"])
        self.best = state["best"]
        self.history[:] = state["history"]
        logger.info("resuming %s at step %d of %d", self.xp.sig, self.updates_done, self.plan.total_updates)
        return True

    def _start_from(self, text: str) -> None:
        found = references.resolve(text, solver=self.name)
        if found.kind not in ("run", "checkpoint"):
            raise MicroMusicGenError(f"continue_from={text} is a {found.kind}; name a run or a checkpoint file")
        path = found.local_path()
        state = checkpoints.load(path / references.CHECKPOINT_NAME if found.kind == "run" else path)
        try:
            self.model.load_state_dict(state["best"]["model"])
        except RuntimeError as error:
            raise MicroMusicGenError(f"continue_from={text} has another shape than this run's model") from error
        if self.ema is not None:
            self.ema = EMA(self.model, self.cfg.optim.ema.decay)

    # The clock is read here and nowhere else.

    def _settle_plan(self) -> None:
        minutes = self.cfg.optim.minutes
        fresh = self.updates_done == 0 and not self.history
        finished = self.updates_done >= self.plan.total_updates
        if not minutes or not (fresh or finished):
            return
        updates = max(SPEED_STEPS, int(60 * minutes * OVERHEAD_SHARE * self._updates_per_s()))
        if fresh:
            commits = max(4, min(40, round(2 * minutes)))
            self.plan = Plan(max(1, math.ceil(updates / commits)), [updates])
        else:
            self.plan.segments.append(self.updates_done + updates)

    def _updates_per_s(self) -> float:
        """Gives the speed of a few trial steps, after which everything is as it was before them."""
        weights = copy.deepcopy(self.model.state_dict())
        state = copy.deepcopy(self.training_state())
        self.schedule = build_schedule(self.cfg.schedule, self.plan)
        self.model.train()
        self.training_update()
        began = time.monotonic()
        for _ in range(SPEED_STEPS):
            plain(self.training_update())
        speed = SPEED_STEPS / (time.monotonic() - began)
        self.model.load_state_dict(weights)
        self.load_training_state(state)
        return speed


def dataset_name(argv: list[str], cfg: DictConfig) -> str:
    """Gives the name under which the run's data set was prepared."""
    for argument in argv:
        if argument.startswith("dset="):
            return argument.rpartition("/")[2]
    return Path(cfg.datasource.train).parent.name
