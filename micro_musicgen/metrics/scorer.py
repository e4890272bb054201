"""How well a sound fits what was asked for, as a number: what chooses among candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Scorer(Protocol):
    """Gives each clip a number, the higher the better. Invariant: a clip's score doesn't depend on the others.

    name: says everything that shapes the numbers, weights by their content hash.
    """

    name: str

    def score(self, wavs: torch.Tensor, sample_rate: int, texts: Sequence[str]) -> torch.Tensor:
        """Gives float64 [B] of clips [B, C, L] and a text for each."""
