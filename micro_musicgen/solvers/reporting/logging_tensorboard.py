"""A run as TensorBoard shows it: `tensorboard --logdir RUN_FOLDER`, or a folder of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig, OmegaConf

from micro_musicgen import storage
from micro_musicgen.solvers.reporting.loggers import need


class TensorBoardLogger:
    """Writes event files to `FOLDER/tensorboard`, or to `tensorboard.sub_dir` below it."""

    name = "TensorBoard"

    def __init__(self, section: DictConfig, folder: Path) -> None:
        need("tensorboard", attribute="__version__", switch="logging.log_tensorboard", extra="tensorboard")
        self.with_media = bool(section.with_media_logging)
        self.folder = folder / "tensorboard" / (section.sub_dir or "") / (section.name or "")
        self._writer: Any = None

    def start(self, config: Mapping[str, Any], update: int) -> None:
        """See `RunLogger.start`. Readers skip the points of the steps that a killed run did not keep."""
        from torch.utils.tensorboard import SummaryWriter

        storage.ensure_writable(self.folder)
        self._writer = SummaryWriter(str(self.folder), purge_step=update + 1 if update else 0)
        if not update:
            # Four spaces before a line make TensorBoard's Markdown leave it as it is.
            lines = OmegaConf.to_yaml(OmegaConf.create(dict(config))).splitlines()
            self.text("config", "\n".join(f"    {line}" for line in lines), epoch=0, update=0)

    def metrics(self, stage: str, values: Mapping[str, float], *, epoch: int, update: int) -> None:
        """See `RunLogger.metrics`."""
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", value, update)
        self._writer.add_scalar(f"{stage}/epoch", epoch, update)
        self._writer.flush()  # a killed run has its curves, and a full disk is noticed here

    def audio(self, name: str, wav: npt.NDArray[np.float32], sample_rate: int, *, epoch: int, update: int) -> None:
        """See `RunLogger.audio`. Several channels are mixed to one, which is all that torch's writer takes."""
        mono = np.clip(wav.mean(axis=0, keepdims=True), -1, 1)
        self._writer.add_audio(name, mono, update, sample_rate=sample_rate)
        self._writer.flush()

    def image(self, name: str, path: Path, *, epoch: int, update: int) -> None:
        """See `RunLogger.image`."""
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, update, dataformats="HWC")

    def text(self, name: str, text: str, *, epoch: int, update: int) -> None:
        """See `RunLogger.text`."""
        self._writer.add_text(name, text, update)

    def close(self) -> None:
        """See `RunLogger.close`."""
        self._writer.close()
