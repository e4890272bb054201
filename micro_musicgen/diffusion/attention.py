"""Attention among frames and from frames to a text, with as many heads of keys and values as one likes.

One of them is multi-query attention (Shazeer, 2019), as many as there are queries is full attention. Text padding is
masked wherever text is heard.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from micro_musicgen.diffusion.rope import Rope


@dataclass(frozen=True)
class Heads:
    """num_queries and num_keys: heads of queries, and of keys and values; the first is a multiple of the second.
    dim: features of each.
    """

    num_queries: int
    num_keys: int
    dim: int

    @property
    def width(self) -> int:
        """Features of all queries of a frame."""
        return self.num_queries * self.dim

    @property
    def key_width(self) -> int:
        """Features of all keys of a frame; the values have as many."""
        return self.num_keys * self.dim


@dataclass(frozen=True)
class TextKeys:
    """A text as one attention hears it. keys, values: [B, S, G, d]. mask: bool [B, 1, 1, S], True where valid."""

    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Gives what queries [B, T, H, d] find among keys and values [B, S, G, d], [B, T, H * d]; G divides H.

    mask: bool, True where a key is heard, as [B, 1, 1, S].
    """
    batch, length, num_queries, dim = q.shape
    if k.shape[2] == 1:
        # The queries of all heads ask the same keys and don't know of each other: one long row of queries, no copy.
        rows = q.reshape(batch, 1, length * num_queries, dim)
        found = functional.scaled_dot_product_attention(rows, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        return found.reshape(batch, length, num_queries * dim)
    found = functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, enable_gqa=k.shape[2] != num_queries
    )
    return found.transpose(1, 2).reshape(batch, length, num_queries * dim)


class SelfAttention(nn.Module):
    """Frames among themselves, both ways. text_channels: E of a text that stands beside them in the same softmax, 0 for
    none. Invariant: the text is not changed by it, so its keys serve a whole generation.
    """

    def __init__(self, dim: int, heads: Heads, rope: Rope, text_channels: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.rope = rope
        self.in_proj = nn.Linear(dim, heads.width + 2 * heads.key_width, bias=False)
        self.out_proj = nn.Linear(heads.width, dim, bias=False)
        self.text_proj = nn.Linear(text_channels, 2 * heads.key_width, bias=False) if text_channels else None

    def forward(self, x: torch.Tensor, text: TextKeys | None = None) -> torch.Tensor:
        """Gives [B, T, dim] of x [B, T, dim]."""
        heads, mask = self.heads, None
        packed = torch.unflatten(self.in_proj(x), -1, (-1, heads.dim))
        q, k, v = torch.split(packed, [heads.num_queries, heads.num_keys, heads.num_keys], dim=2)
        q, k = self._turned(q), self._turned(k)
        if text is not None:
            k, v = torch.cat([k, text.keys], dim=1), torch.cat([v, text.values], dim=1)
            mask = functional.pad(text.mask, (x.shape[1], 0), value=True)
        found: torch.Tensor = self.out_proj(attend(q, k, v, mask))
        return found

    def _turned(self, rows: torch.Tensor) -> torch.Tensor:
        """Gives rows [B, T, H, d] at their positions."""
        return self.rope.rotate(rows.transpose(1, 2)).transpose(1, 2)

    def hear(self, text: torch.Tensor, mask: torch.Tensor) -> TextKeys:
        """Gives the keys of a text [B, S, E]; mask: bool [B, S]."""
        assert self.text_proj is not None
        return text_keys(self.text_proj(text), mask, self.heads)


class CrossAttention(nn.Module):
    """Frames to a text of E = text_channels."""

    def __init__(self, dim: int, heads: Heads, text_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(dim, heads.width, bias=False)
        self.text_proj = nn.Linear(text_channels, 2 * heads.key_width, bias=False)
        self.out_proj = nn.Linear(heads.width, dim, bias=False)

    def forward(self, x: torch.Tensor, text: TextKeys) -> torch.Tensor:
        """Gives [B, T, dim] of x [B, T, dim]."""
        q = torch.unflatten(self.in_proj(x), -1, (-1, self.heads.dim))
        found: torch.Tensor = self.out_proj(attend(q, text.keys, text.values, text.mask))
        return found

    def hear(self, text: torch.Tensor, mask: torch.Tensor) -> TextKeys:
        """Gives the keys of a text [B, S, E]; mask: bool [B, S]."""
        return text_keys(self.text_proj(text), mask, self.heads)


def text_keys(packed: torch.Tensor, mask: torch.Tensor, heads: Heads) -> TextKeys:
    """Gives keys and values out of a projection [B, S, 2 * G * d]."""
    keys, values = torch.unflatten(packed, -1, (2, heads.num_keys, heads.dim)).unbind(2)
    return TextKeys(keys, values, mask[:, None, None])
