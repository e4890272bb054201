"""Attention from what is denoised to its condition, as a mix of a local and a global one that changes with the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from micro_musicgen.diffusion.local_attention import local_attention
from micro_musicgen.diffusion.narrow_attention import attention
from micro_musicgen.diffusion.rope import Rope
from micro_musicgen.diffusion.schedule import NoiseSchedule
from micro_musicgen.registry import Registry

Shares = tuple[torch.Tensor, torch.Tensor]
"""Of the global attention and of the local one, float32 [B] each."""

mixings: Registry[Callable[[NoiseSchedule, torch.Tensor], Shares]] = Registry("mixing")
"""Name -> (schedule, steps t int64 [B]) -> shares."""


@mixings.register("linear")
def linear(schedule: NoiseSchedule, t: torch.Tensor) -> Shares:
    """Gives 1 - u and u, u = t / (T - 1): global where it is clean, local in the noise."""
    u = t.float() / (schedule.num_timesteps - 1)
    return 1 - u, u


@mixings.register("linear_sqrt")
def linear_sqrt(schedule: NoiseSchedule, t: torch.Tensor) -> Shares:
    """Gives the roots of `linear`: their squares add up to 1, so independent parts keep their power."""
    clean, noisy = linear(schedule, t)
    return clean.sqrt(), noisy.sqrt()


@mixings.register("alpha_bar")
def alpha_bar(schedule: NoiseSchedule, t: torch.Tensor) -> Shares:
    """Gives sqrt(alpha_bar) and 1 - sqrt(alpha_bar): as `linear`, in step with the noise."""
    alpha = schedule.alpha(t)
    return alpha, 1 - alpha


@mixings.register("reversed")
def reversed_sqrt(schedule: NoiseSchedule, t: torch.Tensor) -> Shares:
    """Gives those of `linear_sqrt` the other way round: global in the noise, local for the details."""
    clean, noisy = linear_sqrt(schedule, t)
    return noisy, clean


@dataclass(frozen=True)
class Heard:
    """Keys and values of a condition, [B, H, T, d] each; those of the global attention have their positions."""

    local_keys: torch.Tensor
    local_values: torch.Tensor
    global_keys: torch.Tensor
    global_values: torch.Tensor


class SoftAlignment(nn.Module):
    """Queries from x; keys and values from a condition of as many frames. Nothing of x itself is in what it gives.

    Projections of the local attention are the first half of each layer, those of the global one the second.
    """

    def __init__(self, channels: int, heads: int, *, window: int, mask_edges: bool, rope_base: float) -> None:
        super().__init__()
        self.heads, self.window, self.mask_edges = heads, window, mask_edges
        self.queries = nn.Linear(channels, 2 * channels)
        self.keys = nn.Linear(channels, 2 * channels)
        self.values = nn.Linear(channels, 2 * channels)
        self.local_out = nn.Linear(channels, channels)
        self.global_out = nn.Linear(channels, channels)
        self.rope = Rope(channels // heads, rope_base)

    def hear(self, condition: torch.Tensor) -> Heard:
        """Gives what `forward` needs of a condition [B, T, C]."""
        local_keys, global_keys = self._halves(self.keys(condition))
        local_values, global_values = self._halves(self.values(condition))
        return Heard(local_keys, local_values, self.rope.rotate(global_keys), global_values)

    def forward(self, x: torch.Tensor, heard: Heard, shares: Shares) -> torch.Tensor:
        """Gives the context [B, T, C] of x [B, T, C]."""
        local_queries, global_queries = self._halves(self.queries(x))
        near = local_attention(
            local_queries, heard.local_keys, heard.local_values, window=self.window, mask_edges=self.mask_edges
        )
        far = attention(self.rope.rotate(global_queries), heard.global_keys, heard.global_values)
        of_global, of_local = (share.to(x.dtype)[:, None, None] for share in shares)
        context: torch.Tensor = of_global * self.global_out(_joined(far)) + of_local * self.local_out(_joined(near))
        return context

    def _halves(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives the local and the global half of [B, T, 2 C] as heads, [B, H, T, d] each."""
        heads = torch.unflatten(projected, -1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return heads[0], heads[1]


def _joined(heads: torch.Tensor) -> torch.Tensor:
    """Gives [B, T, C] of heads [B, H, T, d]."""
    return heads.transpose(1, 2).flatten(2)
