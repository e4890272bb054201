"""Rotary positions (Su et al. 2021) in audiocraft's convention.

Neighbours in a head are a pair, and pair i of a head of width w turns by position / period^(2 i / w). One product of
complex numbers takes a third of the time of the same in real ones, on a CPU.
"""

from __future__ import annotations

import functools

import torch


@functools.lru_cache(maxsize=16)
def turns(length: int, width: int, max_period: float, device: torch.device) -> torch.Tensor:
    """Gives complex64 factors [length, width / 2] of positions 0 to length - 1. Kept: not to be written to."""
    places = torch.arange(length, dtype=torch.float32)
    frequencies = 1.0 / max_period ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(places, frequencies)
    return torch.polar(torch.ones_like(angles), angles).to(device)


def turned(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Gives heads x [B, L, H, w] turned by positions, complex [L, w / 2], in x's dtype; fp32 inside."""
    pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)))
    return torch.view_as_real(pairs * by[:, None]).flatten(-2).to(x.dtype)
