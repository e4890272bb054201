"""A stretch of a network at a lower rate: fewer frames in its middle, and a skip around it (Nawrot et al., 2021)."""

from __future__ import annotations

import torch
from torch import nn


class Hierarchy(nn.Module):
    """Merges each `factor` neighbours [B, T, dim] into one and splits them again. Invariant: both are local, so what
    lies between decides what frames far apart hear of each other.
    """

    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.merge = nn.Linear(factor * dim, dim)
        self.split = nn.Linear(dim, factor * dim)

    def down(self, x: torch.Tensor) -> torch.Tensor:
        """Gives [B, T / factor, dim] of x [B, T, dim]."""
        batch, length, dim = x.shape
        merged: torch.Tensor = self.merge(x.reshape(batch, length // self.factor, self.factor * dim))
        return merged

    def up(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Gives [B, T, dim] of x [B, T / factor, dim], beside what went around: skip [B, T, dim]."""
        split: torch.Tensor = self.split(x)
        return skip + split.reshape(skip.shape)
