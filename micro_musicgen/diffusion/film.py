"""Feature-wise modulation by time and context (FiLM; Perez et al., 2018)."""

from __future__ import annotations

import torch
from torch import nn


class Film(nn.Module):
    """Scales and shifts every channel by what time and context say. Invariant: neither mixes frames.

    one_plus: the scale is 1 + what they say, and they start out saying nothing; otherwise it is what they say.
    """

    def __init__(self, time_dim: int, channels: int, context_channels: int, *, one_plus: bool) -> None:
        super().__init__()
        self.one_plus = one_plus
        self.from_time = nn.Linear(time_dim, 2 * channels)
        self.from_context = nn.Linear(context_channels, 2 * channels)
        if one_plus:
            for layer in (self.from_time, self.from_context):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, time: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """Gives x [B, T, C] modulated by time [B, E] and by guide: [B, T, C'], or [B, 1, C'] for all frames alike."""
        scale, shift = (self.from_time(time)[:, None] + self.from_context(guide)).chunk(2, dim=-1)
        return torch.addcmul(shift, x, 1 + scale if self.one_plus else scale)
