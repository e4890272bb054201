"""What a decoder is told about a clip: the latents that its codes stand for, of all codebooks or of the first few."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from micro_musicgen.contracts import Codec


def condition_width(latent_dim: int, counts: Sequence[int]) -> int:
    """Gives the channels of `code_condition`: those of a latent, and one for each number of codebooks there may be."""
    return latent_dim + (len(counts) if len(counts) > 1 else 0)


def code_condition(codec: Codec, codes: torch.Tensor, used: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
    """Gives the condition, float [B, Dc, T], of codes [B, K, T].

    used: for each clip the number of its first codebooks that are looked at. counts: the numbers there may be; when
    they are several, channels behind the latents say which one it is.
    """
    rows = torch.cat(
        [codec.codes_to_latents(clip[None, :number]) for clip, number in zip(codes, used, strict=True)]
    ).float()
    if len(counts) == 1:
        return rows
    which = torch.tensor([counts.index(number) for number in used], device=rows.device)
    flags = torch.nn.functional.one_hot(which, len(counts)).to(rows)[:, :, None]
    return torch.cat([rows, flags.expand(-1, -1, rows.shape[-1])], dim=1)
