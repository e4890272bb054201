"""Attention of heads so narrow that its exponentials cost more than its products.

At 8 features a head, a fused kernel spends its time on the T x T exponentials and on products that are too thin. While
nothing is learned, scores that are known to be small need no maximum taken off, so that base 2 exponentials of one
block of keys after another just add up, the sum of the weights among them as one more feature of the values:

    out[:d] / out[d],  out = sum over blocks of [v 1]^T 2^(k q^T)      [d + 1, T] with time as the long side
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

WIDEST_HEAD = 16
"""Heads of more features are left to the fused kernel."""

FEWEST_FRAMES = 512
"""Nor does it pay for shorter clips."""

KEYS = 256
"""Keys of a block: what is computed of one fits into a core's cache."""

LARGEST_SCORE = 100.0
"""In powers of two: 2^100 times any number of frames is far from overflow, 2^-100 far from zero."""


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Gives [B, H, T, d] of queries [B, H, T, d] that hear all keys and values [B, H, S, d]."""
    pays = q.shape[-1] <= WIDEST_HEAD and q.shape[-2] >= FEWEST_FRAMES and q.dtype in (torch.float32, torch.bfloat16)
    if pays and q.device.type == "cpu" and not torch.is_grad_enabled():
        # In fp32 under bf16 too: products this thin gain nothing by it, and scores to eight bits are off by tenths.
        with torch.autocast("cpu", enabled=False):
            queries, keys, values = q.float() * (math.log2(math.e) / math.sqrt(q.shape[-1])), k.float(), v.float()
            # |q k| <= |q| |k|: one look at the lengths instead of one at all scores.
            if queries.norm(dim=-1).max() * keys.norm(dim=-1).max() < LARGEST_SCORE:
                return _narrow(queries, keys, values).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


def _narrow(queries: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Gives attention for queries that are scaled to powers of two already."""
    batch, num_heads, num_frames, head_dim = queries.shape
    turned = queries.transpose(-1, -2).flatten(0, 1).contiguous()  # [B * H, d, T]
    keys = k.flatten(0, 1).contiguous()
    values = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], dim=-1).transpose(-1, -2).flatten(0, 1).contiguous()
    out = turned.new_zeros(len(turned), head_dim + 1, num_frames)
    room = turned.new_empty(min(KEYS, keys.shape[1]), num_frames)
    for head in range(len(turned)):
        for start in range(0, keys.shape[1], KEYS):
            block = keys[head, start : start + KEYS]
            weights = torch.mm(block, turned[head], out=room[: len(block)])
            out[head].addmm_(values[head, :, start : start + KEYS], weights.exp2_())
    result = (out[:, :head_dim] / out[:, head_dim:]).transpose(1, 2)
    return torch.unflatten(result, 0, (batch, num_heads))
