"""What the network adds or multiplies by position: computed once for a length, read by steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from micro_musicgen.conditioners.fusing import sin_embedding
from micro_musicgen.engine.architecture import Architecture

XPOS_SMOOTHING, XPOS_SCALE = 0.4, 512
"""audiocraft's constants of xPos (Sun et al. 2022): no config of its sets others."""


@dataclass(frozen=True)
class Tables:
    """sin: [positions, D], already scaled, or None. rope_q, rope_k: complex [positions, hd / 2], or None."""

    sin: torch.Tensor | None
    rope_q: torch.Tensor | None
    rope_k: torch.Tensor | None


def rotations(arch: Architecture, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives complex64 factors [length, hd / 2] for queries and for keys (RoPE, Su et al. 2021; xPos shrinks them)."""
    width = arch.head_dim
    frequencies = 1.0 / arch.max_period ** (torch.arange(0, width, 2, dtype=torch.float32)[: width // 2] / width)
    places = torch.arange(length, dtype=torch.float32)
    angles = torch.outer(places, frequencies)
    turns = torch.polar(torch.ones_like(angles), angles)
    if not arch.xpos:
        both = turns * arch.positional_scale + (1 - arch.positional_scale)
        return both, both
    half = width // 2
    rates = (torch.arange(half, dtype=torch.float32) / half + XPOS_SMOOTHING) / (1 + XPOS_SMOOTHING)
    decay = rates ** (places / XPOS_SCALE)[:, None]
    scale, rest = arch.positional_scale, 1 - arch.positional_scale
    return turns * decay * scale + rest, turns / decay * scale + rest


def make_tables(arch: Architecture, length: int, *, device: torch.device, dtype: torch.dtype) -> Tables:
    """Gives the tables for positions below `length`."""
    sin = None
    if arch.positions != "rope":
        sin = (arch.positional_scale * sin_embedding(length, arch.dim, arch.max_period)).to(device, dtype)
    if not arch.uses_rope:
        return Tables(sin, None, None)
    q, k = rotations(arch, length)
    return Tables(sin, q.to(device), k.to(device))
