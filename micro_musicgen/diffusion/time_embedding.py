"""How a network is told the step t that it is asked about: a vector per clip."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.registry import Registry

LONGEST_PERIOD = 10_000.0
"""Of the slowest sinusoid, in steps over 2 pi: longer than any schedule, so that no two steps look alike."""

FOURIER_SCALE = 16.0
"""Standard deviation of the random frequencies, in turns over the whole schedule."""


def sinusoidal(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Gives sin(t f_k) for all k and then cos(t f_k), f_k = 10000^(-k / (dim / 2)), float32 [B, dim] of t [B]."""
    half = dim // 2
    place = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(place * (-math.log(LONGEST_PERIOD) / half))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


time_embeddings: Registry[Callable[[int, int], nn.Module]] = Registry("time embedding")
"""Name -> (dim, num_timesteps) -> module: t [B] -> [B, dim]."""


def make_time_embedding(kind: str, dim: int, num_timesteps: int) -> nn.Module:
    """Gives the embedding called `kind`: a module from steps t, int64 [B], to float32 [B, dim].

    Raises:
        MicroMusicGenError: nothing has that name, or dim is odd.
    """
    if dim < 2 or dim % 2:
        raise MicroMusicGenError(f"time embeddings are pairs of sine and cosine: their width {dim} has to be even")
    return time_embeddings.get(kind)(dim, num_timesteps)


@time_embeddings.register("sinusoidal")
class Sinusoidal(nn.Module):
    """The sinusoids of transformers' positions, of t itself. Invariant: no parameters."""

    def __init__(self, dim: int, num_timesteps: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Gives [B, dim] of t [B]."""
        return sinusoidal(t, self.dim)


@time_embeddings.register("fourier")
class Fourier(nn.Module):
    """Sine and cosine of random frequencies of t / T (Song et al., 2021). They are drawn once, aren't trained, and
    travel with the weights.
    """

    frequencies: torch.Tensor

    def __init__(self, dim: int, num_timesteps: int) -> None:
        super().__init__()
        self.num_timesteps = num_timesteps
        self.register_buffer("frequencies", torch.randn(dim // 2) * FOURIER_SCALE)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Gives [B, dim] of t [B]."""
        angles = 2 * math.pi * (t.float() / self.num_timesteps)[:, None] * self.frequencies.float()
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


@time_embeddings.register("learned")
class Learned(nn.Module):
    """A vector for each step, which starts as its sinusoids: neighbours look alike before any has been trained."""

    def __init__(self, dim: int, num_timesteps: int) -> None:
        super().__init__()
        self.table = nn.Parameter(sinusoidal(torch.arange(num_timesteps), dim))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Gives [B, dim] of t [B]."""
        return self.table[t]
