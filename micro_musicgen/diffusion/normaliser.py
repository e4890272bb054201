"""Channels of unit variance around zero: what a diffusion schedule takes for granted. Fitted on training data only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from micro_musicgen.errors import MicroMusicGenError

LEAST_STD = 1e-5
"""A channel that never moves is left at zero instead of being blown up."""
NO_SHARE = 1e-7


class Normaliser(nn.Module):
    """Per-channel mean and standard deviation, [D] each. Invariant: `undo` undoes it, but for channels that never move.

    They are buffers, so they travel with the weights; a new one is not fitted and refuses to work.
    """

    mean: torch.Tensor
    std: torch.Tensor
    fitted: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Sets mean and deviation to those of all frames of `batches`, [B, D, T] each; sums are in float64.

        Raises:
            MicroMusicGenError: no frame at all, or one that holds NaN.
        """
        count, total, squares = 0, torch.zeros(self.mean.numel(), dtype=torch.float64), None
        squares = torch.zeros_like(total)
        for batch in batches:
            frames = batch.detach().cpu().double().transpose(0, 1).flatten(1)  # [D, B * T]
            count += frames.shape[1]
            total += frames.sum(dim=1)
            squares += frames.square().sum(dim=1)
        if not count or not bool(squares.isfinite().all()):
            raise MicroMusicGenError(f"a normaliser can't be fitted to {count} frames, or to NaN; check the data")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        # Rounding leaves a large constant some deviation: below a share of its mean there is none.
        self.std.copy_(torch.where(std > NO_SHARE * mean.abs(), std, 0))
        self.fitted.fill_(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x [B, D, T] with every channel at mean 0 and deviation 1."""
        self._check()
        scale = torch.where(self.std > LEAST_STD, 1 / self.std.clamp(min=LEAST_STD), torch.zeros_like(self.std))
        return (x - self.mean[:, None]) * scale[:, None]

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """Gives normalised x [B, D, T] as it was."""
        self._check()
        return x * self.std[:, None] + self.mean[:, None]

    def _check(self) -> None:
        if not self.fitted:
            raise MicroMusicGenError("the normaliser was never fitted, so its checkpoint is incomplete; train it again")
