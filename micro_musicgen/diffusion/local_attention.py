"""Attention of every frame to the few around it, in memory and time that grow with T and not with its square.

Frames go in blocks of `window` queries. What a block looks at are the 2 * window - 1 keys around it, so all blocks
are one batch of small matrix products, and no more than two copies of the keys and values are made.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def local_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, window: int, mask_edges: bool = True
) -> torch.Tensor:
    """Gives [B, H, T, d] of queries, keys and values [B, H, T, d]: frame i hears frames i - window // 2 to
    i + (window - 1) // 2, which at 16 are 8 before it, itself, and 7 behind it.

    mask_edges: frames beyond the clip are not there; otherwise they are zeros that take their share of the attention.
    """
    num_frames, head_dim = q.shape[-2:]
    before = window // 2
    num_blocks = -(-num_frames // window)
    missing = num_blocks * window - num_frames
    span = 2 * window - 1
    queries = torch.unflatten(F.pad(q, (0, 0, 0, missing)), -2, (num_blocks, window))  # [B, H, N, W, d]
    around = (0, 0, before, span - window - before + missing)
    keys = F.pad(k, around).unfold(-2, span, window)  # [B, H, N, d, S]
    values = F.pad(v, around).unfold(-2, span, window).transpose(-1, -2)  # [B, H, N, S, d]
    scores = (queries / math.sqrt(head_dim)) @ keys
    # Added and not filled in: it is the one of the two that torch does with whole vectors.
    unheard = torch.where(_heard(num_frames, window, mask_edges, q.device), 0.0, -math.inf).to(scores.dtype)
    weights = (scores + unheard).softmax(dim=-1).to(v.dtype)
    return (weights @ values).flatten(-3, -2)[..., :num_frames, :]


def _heard(num_frames: int, window: int, mask_edges: bool, device: torch.device) -> torch.Tensor:
    """Gives which keys of its block a query hears, bool [W, S], or [N, W, S] where that depends on the block."""
    row = torch.arange(window, device=device)[:, None]
    column = torch.arange(2 * window - 1, device=device)
    band = (column >= row) & (column < row + window)
    if not mask_edges:
        return band
    start = torch.arange(-(-num_frames // window), device=device)[:, None, None] * window
    frame = start + column - window // 2
    # Rows behind the clip are cut off later; they hear themselves, for a softmax over nothing is NaN.
    return band & (((frame >= 0) & (frame < num_frames)) | (start + row >= num_frames))
