"""How much of its codebooks a codec uses: a collapsed codebook shows here long before it is heard."""

from __future__ import annotations

import torch

from micro_musicgen.errors import MicroMusicGenError


def count_codes(codes: torch.Tensor, card: int) -> torch.Tensor:
    """Gives int64 counts [K, card] of codes [..., K, T]. Counts of several batches add up.

    Raises:
        MicroMusicGenError: a code outside [0, card), or no codes at all.
    """
    num_codebooks = codes.shape[-2]
    if not codes.numel():
        raise MicroMusicGenError(f"no codes to count (shape {tuple(codes.shape)}); give at least one frame")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= card:
        raise MicroMusicGenError(f"code {low if low < 0 else high} is outside [0, {card}); check the codec's card")
    per_codebook = codes.movedim(-2, 0).reshape(num_codebooks, -1).long()
    offsets = torch.arange(num_codebooks, device=codes.device)[:, None] * card
    counts = torch.bincount((per_codebook + offsets).flatten(), minlength=num_codebooks * card)
    return counts.reshape(num_codebooks, card)


def entropy(counts: torch.Tensor) -> torch.Tensor:
    """Gives the entropy in nats, float64 [K], of counts [K, card]: 0 for one code only, ln(card) for all alike."""
    probabilities = counts.double() / counts.sum(dim=-1, keepdim=True)
    terms: torch.Tensor = torch.special.entr(probabilities)
    return terms.sum(dim=-1)


def usage(counts: torch.Tensor) -> torch.Tensor:
    """Gives the fraction of codes that occur at all, float64 [K], of counts [K, card]."""
    return (counts > 0).double().mean(dim=-1)


def unigram_entropy(codes: torch.Tensor, card: int) -> torch.Tensor:
    """Gives the entropy in nats, float64 [K], of codes [..., K, T]: the loss of an LM that knows frequencies only."""
    return entropy(count_codes(codes, card))


def usage_fraction(codes: torch.Tensor, card: int) -> torch.Tensor:
    """Gives the fraction of the `card` codes that occur, float64 [K], of codes [..., K, T]."""
    return usage(count_codes(codes, card))
