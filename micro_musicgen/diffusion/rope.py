"""Rotary positions (Su et al., RoFormer, 2021): a score of attention depends on how far apart two frames are."""

from __future__ import annotations

import torch
from torch import nn

from micro_musicgen.errors import MicroMusicGenError


class Rope(nn.Module):
    """Turns neighbouring pairs of features (2i, 2i + 1) by position * base^(-2i / d).

    Invariants: no parameter and no key of a state_dict; q and k turned by the same offset score the same.
    """

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise MicroMusicGenError(f"rotary positions turn pairs of features: a head of {head_dim} has to be even")
        self.head_dim, self.base = head_dim, base
        self._turns: torch.Tensor | None = None

    def rotate(self, x: torch.Tensor, offset: int = 0) -> torch.Tensor:
        """Gives x [B, H, T, d] turned, in its own dtype; its first frame stands at position `offset`.

        Strides are kept, so queries as a projection leaves them, [B, T, H, d] in memory, are read and written in order.
        """
        turns = self._to(offset + x.shape[-2], x.device)[offset:]
        pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)

    def _to(self, length: int, device: torch.device) -> torch.Tensor:
        """Gives the turns of positions 0 <= p < length, complex [length, d / 2]; made once and kept while they do."""
        held = self._turns
        if held is None or held.device != device or len(held) < length:
            # Sampling may be the first to ask; what it leaves has to serve a backward pass too.
            with torch.inference_mode(False), torch.no_grad():
                room = 1 << (length - 1).bit_length()
                pair = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=device)
                place = torch.arange(room, dtype=torch.float64, device=device)
                angles = torch.outer(place, self.base ** (-pair / self.head_dim))
                held = self._turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
        return held[:length]
