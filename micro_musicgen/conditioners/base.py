"""What every conditioner is, and the registry that configs and releases name them by.

A conditioner is trained with the language model, so it is a module; what it takes from others (text encoders) is
frozen and never part of its state_dict. Axes: B batch, S positions, D the language model's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from micro_musicgen.conditioners.lazy_registry import LazyRegistry

Kind = Literal["text", "audio", "bars"]
"""What a conditioner takes: "text" a string, "audio" codes, int64 [K, T], "bars" (beat, bars of the loop); None where
nothing was said."""

Progress = Callable[[int, int], None]
"""Called with how many things are done, and of how many."""

ConditionTensors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Name -> (embeddings [B, S, D], mask [B, S], nonzero where valid)."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The model that a conditioner is built for.

    dim: its width D. num_codebooks, card: of its codes. frame_rate: codec frames a second. folder: where relative
    paths in settings are looked up: a release's; None outside of releases.
    """

    dim: int
    num_codebooks: int
    card: int
    frame_rate: float = 50.0
    folder: Path | None = None


class Conditioner(nn.Module):
    """Turns what is said about B clips into embeddings. Invariants: the number of positions S is the same for every
    batch, so that a clip doesn't depend on its neighbours; masked positions hold zeros; None is all masked.
    """

    kind: ClassVar[Kind]
    num_positions: int
    dim: int

    def warm(self, raw: Sequence[Any], *, folder: Path | None = None, progress: Progress | None = None) -> None:
        """Does now, of things that will be said, what `prepare` would have to wait for; nothing here.

        folder: where results are kept for the next run; None for this process alone.
        """

    def prepare(self, raw: Sequence[Any]) -> Any:
        """Gives what `forward` takes, of B things said, each possibly None. Waits and frozen encoders belong here."""
        raise NotImplementedError

    def forward(self, prepared: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives embeddings [B, S, D] and mask bool [B, S], with gradients for what is trained."""
        raise NotImplementedError

    def null(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives what `forward` gives of B clips about which nothing is said: zeros, all masked."""
        like = next(self.parameters(), torch.zeros(0))
        mask = torch.zeros(batch_size, self.num_positions, dtype=torch.bool, device=like.device)
        return like.new_zeros(batch_size, self.num_positions, self.dim), mask


MakeConditioner = Callable[[Mapping[str, Any], Surroundings], Conditioner]


conditioners: LazyRegistry[MakeConditioner] = LazyRegistry(
    "conditioner",
    {
        "text": "micro_musicgen.conditioners.text",
        "audio_prompt": "micro_musicgen.conditioners.audio_prompt",
        "bars": "micro_musicgen.conditioners.bars",
    },
)
"""By the config's `conditioners.NAME.model`. An entry takes (the settings below that name, the surroundings)."""
