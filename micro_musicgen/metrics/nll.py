"""How surprised a model is by codes that it did not make: in nats per codebook, and in bits per second of sound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from micro_musicgen.errors import MicroMusicGenError


def code_nll(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Gives the negative log-likelihood in nats, summed over frames, float64 [B, K].

    logits [B, K, T, card] of codes int64 [B, K, T]. Uniform logits give T ln(card).

    Raises:
        MicroMusicGenError: the shapes don't belong together, or the logits are not finite.
    """
    if logits.shape[:-1] != codes.shape:
        raise MicroMusicGenError(f"logits of shape {tuple(logits.shape)} don't fit codes of {tuple(codes.shape)}")
    losses = functional.cross_entropy(
        logits.double().flatten(0, 2), codes.to(logits.device).flatten(), reduction="none"
    ).view(codes.shape)
    if not losses.isfinite().all():
        raise MicroMusicGenError("the model gives NaN or infinite logits; it diverged, take an earlier one")
    return losses.sum(dim=-1).cpu()


def bits_per_second(nats: Sequence[float], frame_rate: float) -> float:
    """Gives bits per second of sound of a frame's nats, one number a codebook: what the model would pack it into."""
    return sum(nats) / math.log(2) * frame_rate
