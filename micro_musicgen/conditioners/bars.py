"""The conditioner `bars`: where in its bar a crop in beat time starts, and how many bars the loop has that it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from micro_musicgen.conditioners.base import Conditioner, Kind, Surroundings, conditioners
from micro_musicgen.conditioners.settings import read_settings
from micro_musicgen.errors import MicroMusicGenError

Bars = tuple[int, int]
"""(beat of the bar at which it starts, from 0; bars of the loop, 0 for none or unknown)."""


@dataclass(frozen=True)
class BarsSettings:
    """beats_per_bar: beats told apart. max_bars: loops that are longer are told as this long. loop_dropout: share of
    the crops, while training, that are told where they start and not how long their loop is.
    """

    beats_per_bar: int = 4
    max_bars: int = 32
    loop_dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.beats_per_bar < 1 or self.max_bars < 1 or not 0 <= self.loop_dropout <= 1:
            raise MicroMusicGenError(
                f"conditioner 'bars': beats_per_bar {self.beats_per_bar}, max_bars {self.max_bars}, loop_dropout "
                f"{self.loop_dropout}; expected 1 or more, 1 or more, 0 to 1"
            )


class PreparedBars(NamedTuple):
    """beats, loops: int64 [B], 0 where masked. mask: bool [B, 1]."""

    beats: torch.Tensor
    loops: torch.Tensor
    mask: torch.Tensor


class BarsConditioner(Conditioner):
    """`Bars` as one embedding: that of the beat plus that of the loop's length. None is the null condition."""

    kind: ClassVar[Kind] = "bars"

    def __init__(self, settings: BarsSettings, surroundings: Surroundings) -> None:
        super().__init__()
        self.settings = settings
        self.num_positions = 1
        self.dim = surroundings.dim
        self.beats = nn.Embedding(settings.beats_per_bar, self.dim)
        self.loops = nn.Embedding(settings.max_bars + 1, self.dim)
        for table in (self.beats, self.loops):
            nn.init.normal_(table.weight, std=self.dim**-0.5)  # as large as one of the codes' embeddings

    def prepare(self, raw: Sequence[Bars | None]) -> PreparedBars:
        """Gives what B crops are told, on the device of the weights."""
        known = [(0, 0) if bars is None else self._checked(bars) for bars in raw]
        device = self.beats.weight.device
        told = torch.tensor(known, dtype=torch.int64, device=device).reshape(-1, 2)
        mask = torch.tensor([[bars is not None] for bars in raw], dtype=torch.bool, device=device).reshape(-1, 1)
        return PreparedBars(told[:, 0], told[:, 1], mask)

    def forward(self, prepared: PreparedBars) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives embeddings [B, 1, D] and mask [B, 1]."""
        embedded = (self.beats(prepared.beats) + self.loops(prepared.loops))[:, None]
        return embedded * prepared.mask[..., None], prepared.mask

    def _checked(self, bars: Any) -> Bars:
        whole = isinstance(bars, tuple) and len(bars) == 2 and all(type(number) is int for number in bars)
        if not whole or not 0 <= bars[0] < self.settings.beats_per_bar or bars[1] < 0:
            raise MicroMusicGenError(
                f"bars are (beat, bars of the loop), whole numbers, the first below {self.settings.beats_per_bar}; "
                f"got {bars!r}"
            )
        return bars[0], min(bars[1], self.settings.max_bars)


@conditioners.register("bars")
def make_bars(plain: Mapping[str, Any], surroundings: Surroundings) -> BarsConditioner:
    """Gives the conditioner of settings as `BarsSettings` describes them."""
    return BarsConditioner(read_settings(BarsSettings, plain, source="conditioner 'bars'"), surroundings)
