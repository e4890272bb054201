"""Where a run's numbers and clips go besides its own folder: TensorBoard, W&B, or nowhere (the default).

The run never waits for a logger and never ends because of one: each works through a queue in a thread of its own; one
that fails is reported once and switched off. Only what is wrong before the first step, where it costs the user
nothing, is an error.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import flashy
import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from micro_musicgen.errors import MissingExtraError

logger = logging.getLogger(__name__)

QUEUE_LENGTH = 256
"""Entries that may wait for a logger. What comes on top is dropped."""

CLOSE_TIMEOUT_S = 60.0
"""How long the end of a run waits for what is still in the queues."""

LAST_CHANCE_S = 0.1
"""What a logger gets at least, when others have used up the time."""

_EPOCH_PREFIX = re.compile(r"^\d+_(?=.)")


class RunLogger(Protocol):
    """Keeps the numbers of one run somewhere. May raise and may block: `Loggers` shields the run from both.

    epoch: commits so far, the current one included. update: optimiser steps so far, the axis of every curve.
    with_media: whether it wants audio and images.
    """

    name: str
    with_media: bool

    def start(self, config: Mapping[str, Any], update: int) -> None:
        """Opens it for a run that stands at `update` (0 is a fresh one). What it holds of later updates is void.

        Raises:
            MicroMusicGenError: it cannot be opened.
        """

    def metrics(self, stage: str, values: Mapping[str, float], *, epoch: int, update: int) -> None:
        """Takes the metrics of a stage, as `stage/name`."""

    def audio(self, name: str, wav: npt.NDArray[np.float32], sample_rate: int, *, epoch: int, update: int) -> None:
        """Takes a clip, float [C, L]."""

    def image(self, name: str, path: Path, *, epoch: int, update: int) -> None:
        """Takes a PNG file."""

    def text(self, name: str, text: str, *, epoch: int, update: int) -> None:
        """Takes some words."""

    def close(self) -> None:
        """Writes out what is left."""


class Loggers:
    """Any number of loggers as one that neither fails nor blocks. Calls before `start` and after `close` do nothing."""

    def __init__(self, loggers: Sequence[RunLogger] = (), *, close_timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        self._workers = [_Worker(each) for each in loggers]
        self._close_timeout_s = close_timeout_s

    def __len__(self) -> int:
        return len(self._workers)

    def start(self, config: Mapping[str, Any], update: int) -> None:
        """Opens every logger; see `RunLogger.start`. To be called once the run knows where it stands.

        Raises:
            MicroMusicGenError: one cannot be opened.
        """
        for worker in self._workers:
            worker.logger.start(config, update)
            worker.begin()

    def metrics(self, stage: str, values: Mapping[str, Any], *, epoch: int, update: int) -> None:
        """Hands on what of `values` is a number, scalar tensors included."""
        numbers = _numbers(values) if self._workers else {}
        if numbers:
            self._each(lambda to: to.metrics(stage, numbers, epoch=epoch, update=update))

    def clips(self, paths: Iterable[Path], *, epoch: int, update: int) -> None:
        """Hands on audio files as `samples/NAME`: a leading epoch number is cut off, so that a clip has one name."""
        for path in paths:
            self._each(partial(_send_clip, path=path, epoch=epoch, update=update), media=True)

    def image(self, name: str, path: Path, *, epoch: int, update: int) -> None:
        """Hands on a PNG file, which has to stay where it is for a while."""
        self._each(lambda to: to.image(name, path, epoch=epoch, update=update), media=True)

    def text(self, name: str, text: str, *, epoch: int, update: int) -> None:
        """Hands on some words."""
        self._each(lambda to: to.text(name, text, epoch=epoch, update=update))

    def close(self) -> None:
        """Waits a limited time for what is still in the queues, and lets go of every logger."""
        deadline = time.monotonic() + self._close_timeout_s
        for worker in self._workers:
            worker.end(deadline)
        for worker in self._workers:
            worker.wait(deadline)
        self._workers = []

    def _each(self, call: Callable[[RunLogger], None], *, media: bool = False) -> None:
        for worker in self._workers:
            if worker.logger.with_media or not media:
                worker.submit(call)


class _Worker:
    """A thread that does for one logger what is handed in, until something fails."""

    def __init__(self, run_logger: RunLogger) -> None:
        self.logger = run_logger
        self._calls: queue.Queue[Callable[[RunLogger], None] | None] = queue.Queue(QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._work, name=f"logger-{run_logger.name}", daemon=True)
        self._failed = self._behind = False

    def begin(self) -> None:
        self._thread.start()

    def submit(self, call: Callable[[RunLogger], None]) -> None:
        if self._failed or not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._behind:
                logger.warning("%s cannot keep up; some of what it should log is left out", self.logger.name)
            self._behind = True

    def end(self, deadline: float) -> None:
        """Makes the thread stop after what is in the queue, or at the deadline."""
        if not self._thread.is_alive():
            return
        try:
            self._calls.put(None, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            self._failed = True

    def wait(self, deadline: float) -> None:
        if not self._thread.is_alive():
            return
        self._thread.join(max(LAST_CHANCE_S, deadline - time.monotonic()))
        if self._thread.is_alive():
            logger.warning("%s did not finish in time and is left alone", self.logger.name)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self._failed:
            self._try(call)
        self._try(lambda to: to.close())

    def _try(self, call: Callable[[RunLogger], None]) -> None:
        try:
            call(self.logger)
        except Exception as error:
            if not self._failed:
                reason = " ".join(str(error).split()) or type(error).__name__
                logger.warning("%s failed and is switched off, training goes on: %s", self.logger.name, reason)
                logger.debug("%s failed", self.logger.name, exc_info=True)
            self._failed = True


def build_loggers(cfg: DictConfig, xp: Any, folder: Path) -> Loggers:
    """Gives the loggers that `cfg.logging` asks for, not yet open; none on all processes of a run but the first.

    Cheap, so that a run asks for it before any work. xp: Dora's experiment, whose signature names the run.

    Raises:
        MissingExtraError: a library is not installed; the message names the extra.
        MicroMusicGenError: W&B is to be online and nobody is logged in, or an unknown `wandb.mode`.
    """
    found: list[RunLogger] = []
    if flashy.distrib.rank() != 0:
        return Loggers()
    if cfg.logging.log_tensorboard:
        from micro_musicgen.solvers.reporting.logging_tensorboard import TensorBoardLogger

        found.append(TensorBoardLogger(cfg.tensorboard, folder))
    if cfg.logging.log_wandb:
        from micro_musicgen.solvers.reporting.logging_wandb import WandbLogger

        found.append(WandbLogger(cfg.wandb, folder, signature=xp.sig, solver=cfg.solver))
    return Loggers(found)


def need(module: str, *, attribute: str, switch: str, extra: str) -> ModuleType:
    """Gives an optional library.

    attribute: something that it has; a folder of that name in the working directory (W&B makes one) imports too.

    Raises:
        MissingExtraError: it is not there.
    """
    try:
        found = import_module(module)
        getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise MissingExtraError(
            f"{switch}=true needs {module}, which is not installed: pip install 'micro-musicgen[{extra}]', or leave "
            f"{switch} out"
        ) from error
    return found


def _send_clip(to: RunLogger, *, path: Path, epoch: int, update: int) -> None:
    from micro_musicgen.audio.io import read_audio

    wav, sample_rate = read_audio(path)
    to.audio(f"samples/{_EPOCH_PREFIX.sub('', path.stem)}", wav, sample_rate, epoch=epoch, update=update)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Gives what can be drawn as a point, NaN and infinity included: that a run went wrong should be seen."""
    numbers = {}
    for name, value in values.items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers
