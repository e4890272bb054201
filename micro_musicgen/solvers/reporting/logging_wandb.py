"""A run as Weights & Biases shows it. Offline, the default, needs no login and no network: `wandb sync` comes later."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from micro_musicgen import storage
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.reporting.loggers import CLOSE_TIMEOUT_S, need

logger = logging.getLogger(__name__)

MODES = ("offline", "online", "disabled")
ID_FILE = "wandb_id"
INIT_TIMEOUT_S = 30.0
"""How long the start of a run waits for W&B's server before it stays offline."""


class WandbLogger:
    """Writes a W&B run into `FOLDER/wandb`. A resumed run goes on under the same W&B id.

    The id is the signature and a random end that is kept in the run folder: a run that was deleted and started again
    must not be taken for the old one, whose steps W&B would refuse to write twice. W&B writes a step's row when the
    next one begins, so a run that is killed outright lacks its last epoch there; history.json has it.
    """

    name = "W&B"

    def __init__(self, section: DictConfig, folder: Path, *, signature: str, solver: str) -> None:
        if section.mode not in MODES:
            raise MicroMusicGenError(f"unknown wandb.mode {section.mode!r}; known: {', '.join(MODES)}")
        self._wandb: Any = need("wandb", attribute="init", switch="logging.log_wandb", extra="wandb")
        self.with_media = bool(section.with_media_logging)
        self._section = section
        self._folder = folder
        self._signature = signature
        self._title = section.name or f"{solver} {signature}"
        self._run: Any = None
        if section.mode == "online" and not self._wandb.login(prompt=False, verify=False):
            raise MicroMusicGenError("wandb.mode=online and nobody is logged in: `wandb login`, or wandb.mode=offline")

    @property
    def run_id(self) -> str:
        """The W&B id of this run folder, made up once."""
        path = self._folder / ID_FILE
        if not path.is_file():
            storage.write_text(path, f"{self._signature}-{secrets.token_hex(3)}\n")
        return path.read_text(encoding="utf-8").strip()

    def start(self, config: Mapping[str, Any], update: int) -> None:
        """See `RunLogger.start`. When W&B does not answer, the run is kept offline."""
        mode = self._section.mode
        try:
            self._run = self._init(config, mode)
        except Exception as error:
            if mode != "online":
                raise MicroMusicGenError(f"W&B does not start: {' '.join(str(error).split())}") from error
            logger.warning("W&B does not answer; this run is logged offline: %s", " ".join(str(error).split()))
            mode = "offline"
            self._wandb.teardown()  # else its service holds the id of the run that did not start
            self._run = self._init(config, mode)
        if mode == "online":
            logger.info("W&B run %s: %s", self._run.id, self._run.url)
        elif mode == "offline":
            logger.info("W&B run %s, offline; later: wandb sync %s", self._run.id, Path(self._run.dir).parent)

    def _init(self, config: Mapping[str, Any], mode: str) -> Any:
        settings = self._wandb.Settings(
            silent=True,
            console="off",  # the terminal is the bar's
            disable_git=True,  # else uncommitted code is uploaded; provenance names the commit
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=CLOSE_TIMEOUT_S - 10.0,  # before the run stops waiting for this thread
        )
        return self._wandb.init(
            project=self._section.project,
            name=self._title,
            group=self._section.group,
            id=self.run_id,
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(self._folder),
            config=dict(config),
            settings=settings,
        )

    def metrics(self, stage: str, values: Mapping[str, float], *, epoch: int, update: int) -> None:
        """See `RunLogger.metrics`. A step that W&B already has is ignored there, so resuming repeats no point."""
        self._log({f"{stage}/{name}": value for name, value in values.items()}, epoch, update)

    def audio(self, name: str, wav: npt.NDArray[np.float32], sample_rate: int, *, epoch: int, update: int) -> None:
        """See `RunLogger.audio`."""
        clip = self._wandb.Audio(np.clip(wav, -1, 1).T, sample_rate=sample_rate, caption=f"epoch {epoch}")
        self._log({name: clip}, epoch, update)

    def image(self, name: str, path: Path, *, epoch: int, update: int) -> None:
        """See `RunLogger.image`."""
        self._log({name: self._wandb.Image(str(path))}, epoch, update)

    def text(self, name: str, text: str, *, epoch: int, update: int) -> None:
        """See `RunLogger.text`: it joins the run's summary, which W&B shows as a table."""
        self._run.summary[name] = text

    def close(self) -> None:
        """See `RunLogger.close`."""
        self._run.finish()

    def _log(self, values: Mapping[str, Any], epoch: int, update: int) -> None:
        self._run.log({**values, "epoch": epoch}, step=update)
