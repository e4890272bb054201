"""The parts of a transformer that the engine runs, as plain objects over loaded weights: no modules, no state.

A backbone is a list of `Block`s made of these (see `transformer_lm.py`); another one brings its own norms or
feed-forward parts and keeps the rest. Where keys and values live is the business of the `Attention` that a block is
called with. Activations are [M, D]: M is rows in a step, and positions of one clip when a prompt is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from micro_musicgen.engine.linear import Linear

Part = Callable[[torch.Tensor], torch.Tensor]
"""[M, D] -> [M, D], a new tensor."""


class Attention(Protocol):
    """Attends from new positions to everything that may be heard: in a step, in a prompt, or without a cache."""

    def attend_projected(self, layer: int, projected: torch.Tensor) -> torch.Tensor:
        """Gives [M, D] of queries, keys and values side by side, [M, (H + 2 Hkv) hd]: `attend` in fewer calls."""

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Gives [M, D] of queries [M, H, hd] (already scaled), after taking in their keys and values [M, Hkv, hd]."""

    def cross(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Gives [M, D] of queries [M, H, hd] against the conditions' keys and values."""

    def rotate(self, x: torch.Tensor, *, is_key: bool) -> torch.Tensor:
        """Gives [M, H, hd] rotated by the positions that M stands for."""

    def rotate_projected(self, projected: torch.Tensor, num_heads: int) -> None:
        """Rotates the first `num_heads` heads of [M, W] where they are: queries and keys at once, in fewer calls."""


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation; upstream's epsilon."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float = 1e-5

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x normalised over its last axis."""
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Gives F.gelu of a contiguous x with an even number of elements, on a CPU twice as fast for a single row.

    Torch hands what is contiguous to oneDNN, whose call alone costs as much as a few thousand elements: hence seen as
    two columns. The sizes of a batch don't choose between the two, since their last bits differ.
    """
    columns = x.as_strided((2, x.numel() // 2), (1, 2))
    return F.gelu(columns).as_strided(x.shape, x.stride())


@dataclass(frozen=True)
class FeedForward:
    """Two products with an activation between them."""

    inner: Linear
    outer: Linear
    activation: Part

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives outer(activation(inner(x)))."""
        return self.outer(self.activation(self.inner(x)))


@dataclass(frozen=True)
class SelfAttention:
    """Projections around causal attention.

    Invariant: the queries that `project` gives are scaled by 1/sqrt(head_dim); the scale lies in the weights.
    """

    project_in: Linear
    project_out: Linear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotates: bool = False
    q_norm: Part | None = None
    k_norm: Part | None = None

    def __call__(self, x: torch.Tensor, layer: int, attention: Attention) -> torch.Tensor:
        """Gives [M, D] of x [M, D]."""
        projected = self.project_in(x)
        if not self.rotates and self.q_norm is None:
            return self.project_out(attention.attend_projected(layer, projected))
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        q, k, v = torch.split(projected, [queries, keys, keys], dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = torch.unflatten(q, -1, (self.num_heads, self.head_dim))
        k = torch.unflatten(k, -1, (self.num_kv_heads, self.head_dim))
        if self.rotates:
            q, k = attention.rotate(q, is_key=False), attention.rotate(k, is_key=True)
        v = torch.unflatten(v, -1, (self.num_kv_heads, self.head_dim))
        return self.project_out(attention.attend(layer, q, k, v))


@dataclass(frozen=True)
class CrossAttention:
    """Projections around attention to the conditions, whose keys and values are computed once per generation."""

    project_q: Linear
    project_kv: Linear
    project_out: Linear
    num_heads: int
    head_dim: int
    q_norm: Part | None = None
    k_norm: Part | None = None

    def __call__(self, x: torch.Tensor, layer: int, attention: Attention) -> torch.Tensor:
        """Gives [M, D] of x [M, D]."""
        q = self.project_q(x)
        if self.q_norm is not None:
            q = self.q_norm(q)
        return self.project_out(attention.cross(layer, torch.unflatten(q, -1, (self.num_heads, self.head_dim))))

    def keys_and_values(self, conditions: torch.Tensor) -> torch.Tensor:
        """Gives keys and values [2, B, H, S, hd] of conditions [B, S, D]."""
        batch, length, dim = conditions.shape
        k, v = self.project_kv(conditions.reshape(-1, dim)).chunk(2, dim=-1)
        if self.k_norm is not None:
            k = self.k_norm(k)
        both = torch.stack([k, v]).view(2, batch, length, self.num_heads, self.head_dim)
        return both.transpose(2, 3).contiguous()


Mixer = Callable[[torch.Tensor, int, Attention], torch.Tensor]
"""x [M, D], the layer's number, what it attends with -> [M, D]. `SelfAttention` is one."""


@dataclass(frozen=True)
class Block:
    """One layer. norm_first: normalise what enters a part (true), or the sum that leaves it."""

    attention: Mixer
    attention_norm: Part
    feed_forward: FeedForward | Part
    feed_forward_norm: Part
    cross: CrossAttention | None = None
    cross_norm: Part | None = None
    norm_first: bool = True

    def __call__(self, x: torch.Tensor, layer: int, attention: Attention) -> torch.Tensor:
        """Gives [M, D] of x [M, D]."""
        return (self._norm_first if self.norm_first else self._norm_last)(x, layer, attention)

    def _norm_first(self, x: torch.Tensor, layer: int, attention: Attention) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), layer, attention)
        if self.cross is not None and self.cross_norm is not None:
            x.add_(self.cross(self.cross_norm(x), layer, attention))
        return x.add_(self.feed_forward(self.feed_forward_norm(x)))

    def _norm_last(self, x: torch.Tensor, layer: int, attention: Attention) -> torch.Tensor:
        first = self.attention_norm(x + self.attention(x, layer, attention))
        if self.cross is not None and self.cross_norm is not None:
            # audiocraft asks the conditions with what entered the layer, not with what left the attention.
            first = self.cross_norm(first + self.cross(x, layer, attention))
        return self.feed_forward_norm(first + self.feed_forward(first))
