"""The conditioner `text`: what a frozen text encoder makes of a description, projected to the model's width."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from micro_musicgen.conditioners.base import Conditioner, Kind, Progress, Surroundings, conditioners
from micro_musicgen.conditioners.feature_cache import FeatureCache
from micro_musicgen.conditioners.settings import read_settings
from micro_musicgen.conditioners.text_encoder import TextEncoder, open_text_encoder
from micro_musicgen.errors import MicroMusicGenError

logger = logging.getLogger(__name__)

TEXTS_PER_FILE = 256
"""So many newly encoded texts at most are lost when a run is killed."""


@dataclass(frozen=True)
class TextSettings:
    """encoder: a T5's Hub id or folder. max_length: tokens read of a text, each of them a position. modality: add a
    learned vector to every position. width: of the encoder, when a model is to be built without looking at it.
    """

    encoder: str
    max_length: int = 64
    modality: bool = False
    width: int | None = None

    def __post_init__(self) -> None:
        if self.max_length < 2 or (self.width is not None and self.width < 1):
            raise MicroMusicGenError(
                f"conditioner 'text': max_length {self.max_length} and width {self.width}; expected 2 and 1 or more"
            )


class PreparedText(NamedTuple):
    """features: fp32 [B, S, W], 0 where masked. mask: bool [B, S]."""

    features: torch.Tensor
    mask: torch.Tensor


class TextConditioner(Conditioner):
    """Texts as S = max_length embeddings. None, and a text of nothing but spaces, is the null condition."""

    kind: ClassVar[Kind] = "text"

    def __init__(self, settings: TextSettings, surroundings: Surroundings) -> None:
        super().__init__()
        self.settings = settings
        self.num_positions = settings.max_length
        self.dim = surroundings.dim
        self._folder = surroundings.folder
        self._encoder: TextEncoder | None = None
        self._disk: FeatureCache | None = None
        self.width = settings.width or self.encoder.width
        self.projection = nn.Linear(self.width, self.dim, bias=False)
        nn.init.normal_(self.projection.weight, std=self.width**-0.5)  # features of size 1 give embeddings of size 1
        self.modality = nn.Parameter(torch.randn(self.dim) * self.dim**-0.5) if settings.modality else None

    @property
    def encoder(self) -> TextEncoder:
        """The frozen encoder. Raises what `open_text_encoder` raises, and MicroMusicGenError for another width."""
        if self._encoder is None:
            found = open_text_encoder(self.settings.encoder, self._folder)
            if self.settings.width not in (None, found.width):
                raise MicroMusicGenError(
                    f"the text encoder {found.name} is {found.width} wide, and the model was trained on one of "
                    f"{self.settings.width}; pass the one that it was trained on"
                )
            self._encoder = found
        return self._encoder

    def warm(self, raw: Sequence[str | None], *, folder: Path | None = None, progress: Progress | None = None) -> None:
        """Encodes the texts that were never encoded; a folder that can't be written to costs the next run only."""
        if folder is not None:
            name = f"features-{self.encoder.content_hash[:16]}-{self.settings.max_length}"
            self._disk = FeatureCache(folder / name, width=self.width, max_length=self.settings.max_length)
        texts = dict.fromkeys(text for text in map(_said, raw) if text is not None)
        is_new = [text for text in texts if self._disk is None or text not in self._disk]
        fresh: dict[str, torch.Tensor] = {}
        for done, text in enumerate(is_new, start=1):
            fresh[text] = self.encoder.encode(text, self.settings.max_length, self.projection.weight.device)
            if len(fresh) == TEXTS_PER_FILE or done == len(is_new):
                self._keep(fresh)
                fresh = {}
            if progress is not None:
                progress(done, len(is_new))

    def prepare(self, raw: Sequence[str | None]) -> PreparedText:
        """Gives the features of B texts on the projection's device."""
        device = self.projection.weight.device
        features = torch.zeros(len(raw), self.num_positions, self.width)
        mask = torch.zeros(len(raw), self.num_positions, dtype=torch.bool)
        for row, text in enumerate(map(_said, raw)):
            if text is not None:
                found = self._features(text, device)
                features[row, : len(found)] = found
                mask[row, : len(found)] = True
        return PreparedText(features.to(device), mask.to(device))

    def forward(self, prepared: PreparedText) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives embeddings [B, S, D] and mask [B, S]. Features are brought to size 1 first: encoders differ in it."""
        features, mask = prepared
        weight = self.projection.weight
        embedded = self.projection(F.layer_norm(features, (self.width,)).to(weight.dtype))
        if self.modality is not None:
            embedded = embedded + self.modality
        return embedded * mask[..., None], mask

    def _features(self, text: str, device: torch.device) -> torch.Tensor:
        key = (self.settings.max_length, text)
        held = self.encoder.recent.get(key)
        if held is None and self._disk is not None and (held := self._disk.get(text)) is not None:
            self.encoder.recent.put(key, held)
        return self.encoder.encode(text, self.settings.max_length, device) if held is None else held

    def _keep(self, fresh: Mapping[str, torch.Tensor]) -> None:
        if self._disk is None:
            return
        try:
            self._disk.add(fresh)
        except MicroMusicGenError as error:
            logger.warning("the texts' features are not kept for the next run: %s", error)
            self._disk = None


def _said(text: Any) -> str | None:
    if text is not None and not isinstance(text, str):
        raise MicroMusicGenError(f"a description is a text or nothing (None), not {text!r}")
    return text if text and text.strip() else None


@conditioners.register("text")
def make_text(plain: Mapping[str, Any], surroundings: Surroundings) -> TextConditioner:
    """Gives the conditioner of settings as `TextSettings` describes them."""
    return TextConditioner(read_settings(TextSettings, plain, source="conditioner 'text'"), surroundings)
