"""Attention of the training pass: of positions among themselves, and of positions to conditions.

Rows are flat, [B * L, D]; masks are additive: 0 where something is heard, -inf where not. The rules of padding are
those of `engine.state`: a padded position of a prefix is heard by nobody but itself, and a clip whose conditions are
all padding attends to all of them, there being nothing else to attend to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def prefix_mask(valid: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Gives who of `length` positions hears whom, [B, 1, L, L], when the first P are a prefix.

    valid: bool [B, P], False where the prefix is padded.
    """
    place = torch.arange(length, device=valid.device)
    is_causal, is_self = place[:, None] >= place, place[:, None] == place
    heard = functional.pad(valid, (0, length - valid.shape[1]), value=True)
    shut = ~((is_causal & heard[:, None]) | is_self)
    return torch.zeros(shut.shape, dtype=dtype, device=valid.device).masked_fill_(shut, -torch.inf)[:, None]


def cross_mask(valid: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Gives which conditions a clip hears, [B, 1, 1, S]. valid: bool [B, S]."""
    shut = ~(valid | ~valid.any(1, keepdim=True))
    return torch.zeros(shut.shape, dtype=dtype, device=valid.device).masked_fill_(shut, -torch.inf)[:, None, None]


def self_attention(layer: Any, x: torch.Tensor, batch: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Gives [B * L, D] of x [B * L, D]: causal attention as `layer` does it. mask: None where causality is all."""
    held = layer.self_attn
    own = held if held.custom else held.mha
    packed = functional.linear(x, own.in_proj_weight, own.in_proj_bias).view(batch, -1, 3, held.embed_dim)
    q, k, v = packed.unbind(2)
    if held.qk_layer_norm:
        q, k = held.q_layer_norm(q), held.k_layer_norm(k)
    q, k, v = (_by_head(part, held.num_heads) for part in (q, k, v))
    if held.rope is not None:
        q, k = held.rope.rotate_qk(q, k, time_dim=2)
    found = _attend(held, q, k, v, mask, is_causal=mask is None)
    return dropped(own.out_proj(found), layer.dropout1)


def cross_attention(
    layer: Any, x: torch.Tensor, conditions: torch.Tensor, batch: int, mask: torch.Tensor | None
) -> torch.Tensor:
    """Gives [B * L, D] of x [B * L, D] and conditions [B, S, D], as `layer` does it. mask: as `cross_mask` gives it."""
    held = layer.cross_attention
    own = held if held.custom else held.mha
    weights, biases, dim = own.in_proj_weight, own.in_proj_bias, held.embed_dim
    q = functional.linear(x, weights[:dim], None if biases is None else biases[:dim]).view(batch, -1, dim)
    both = functional.linear(conditions, weights[dim:], None if biases is None else biases[dim:])
    k, v = both.chunk(2, dim=-1)
    if held.qk_layer_norm:
        q, k = held.q_layer_norm(q), held.k_layer_norm(k)
    q, k, v = (_by_head(part, held.num_heads) for part in (q, k, v))
    return dropped(own.out_proj(_attend(held, q, k, v, mask, is_causal=False)), layer.dropout_cross)


def dropped(x: torch.Tensor, dropout: nn.Dropout) -> torch.Tensor:
    """Gives `x` after dropout; `x` itself where nothing is dropped, which saves a pass over memory."""
    return dropout(x) if dropout.p and dropout.training else x


def _by_head(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Gives [B, H, L, D / H] of x [B, L, D]."""
    return torch.unflatten(x, -1, (num_heads, -1)).transpose(1, 2)


def _attend(
    held: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *, is_causal: bool
) -> torch.Tensor:
    """Gives rows [B * L, D] of queries, keys and values by head."""
    dtype = v.dtype
    if held.attention_as_float32:
        q, k, v = q.float(), k.float(), v.float()
    mask = None if mask is None else mask.to(q.dtype)
    dropout = held.dropout if held.training else 0.0
    found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, dropout_p=dropout)
    return found.to(dtype).transpose(1, 2).flatten(2).flatten(0, 1)
