"""What a network has to be to be trained and played here, and the registry of those that are.

Two steps: `hear` turns what is told into what the network makes of it, once a generation; `forward` is called at every
step of a sampler and hears nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from micro_musicgen.conditioners.lazy_registry import LazyRegistry
from micro_musicgen.diffusion.schedule import NoiseSchedule
from micro_musicgen.errors import MicroMusicGenError


@dataclass(frozen=True)
class Told:
    """What a batch is told. aligned: float [B, Dc, T] beside what is denoised; None for networks without.

    text: embeddings [B, S, E] and mask bool [B, S], True where valid; None for networks without. Invariant: a masked
    position never influences the result.
    """

    aligned: torch.Tensor | None = None
    text: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class DenoiserShape:
    """What surrounds a network. channels: D of what it denoises. condition_channels: Dc of what it is told frame by
    frame, 0 for nothing. text_channels: E of text embeddings, 0 for none. schedule: its steps are the times that the
    network is asked about.
    """

    channels: int
    condition_channels: int
    schedule: NoiseSchedule
    text_channels: int = 0


class Denoiser(nn.Module):
    """A network that predicts what an objective asks for. Invariants: forward changes no state; clips don't hear each
    other; the output of a new one is zero.

    stride: T has to be a multiple of it.
    """

    stride: int = 1

    def hear(self, told: Told) -> Any:
        """Gives what the network makes of `told`, for `forward`; differentiable."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, t: torch.Tensor, heard: Any) -> torch.Tensor:
        """Gives the prediction [B, D, T] for noisy x [B, D, T] at steps t, int64 [B], under what was heard."""
        raise NotImplementedError


class MakeDenoiser(Protocol):
    """Gives a network of the section of its own name in the group `model/denoiser`."""

    def __call__(self, section: Mapping[str, Any], shape: DenoiserShape) -> Denoiser:
        """Gives the network.

        Raises:
            MicroMusicGenError: unknown keys or values that don't go together.
        """


denoisers: LazyRegistry[MakeDenoiser] = LazyRegistry(
    "denoiser",
    {
        "dit": "micro_musicgen.diffusion.dit",
        "soft_alignment_unet": "micro_musicgen.diffusion.unet",
    },
)


def check_frames(num_frames: int, stride: int) -> None:
    """Refuses a length that a network can't take.

    Raises:
        MicroMusicGenError: naming both.
    """
    if num_frames < 1 or num_frames % stride:
        raise MicroMusicGenError(
            f"{num_frames} frames are not a multiple of the network's stride {stride}; use "
            f"{max(stride, num_frames // stride * stride)}"
        )
