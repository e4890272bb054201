"""A llama-style language model over codes: grouped-query attention, rotary positions, RMSNorm, SwiGLU; no biases.

What is around the layers is audiocraft's: a table and a head for each codebook (`emb.K`, `linears.K`), the steps'
embeddings summed, conditions added, put before the sequence or attended to. The engine's form is `engine.llama`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.lm.attention import cross_mask, dropped, prefix_mask
from micro_musicgen.lm.llama_shape import LlamaShape
from micro_musicgen.lm.rms_norm import RMSNorm
from micro_musicgen.lm.rotary import turned, turns

NO_CONDITIONS = Fused(rows=0)


@dataclass(frozen=True, kw_only=True)
class Around:
    """What all layers have alike. batch: B of rows [B * L, D]. turns: of the L positions, see `lm.rotary`.

    Masks are additive, None where causality (and every condition) is all. cross: conditions [B, S, D].
    """

    batch: int
    turns: torch.Tensor
    mask: torch.Tensor | None = None
    cross: torch.Tensor | None = None
    cross_mask: torch.Tensor | None = None


class SelfAttention(nn.Module):
    """Causal attention, with fewer heads of keys and values than of queries where the shape says so.

    project_in: queries, keys and values side by side. With `qk_norm` each head of queries and keys is normalised before
    it is turned.
    """

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.project_in = nn.Linear(shape.dim, shape.num_packed_heads * shape.head_dim, bias=False)
        self.project_out = nn.Linear(shape.dim, shape.dim, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None

    def forward(self, x: torch.Tensor, around: Around) -> torch.Tensor:
        """Gives [B * L, D] of x [B * L, D]."""
        shape = self.shape
        heads = self.project_in(x).view(around.batch, -1, shape.num_packed_heads, shape.head_dim)
        q, k, v = torch.split(heads, [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = turned(self.q_norm(q), around.turns).to(v.dtype), turned(self.k_norm(k), around.turns).to(v.dtype)
        else:
            both = turned(heads[:, :, : shape.num_heads + shape.num_kv_heads], around.turns)
            q, k = torch.split(both, [shape.num_heads, shape.num_kv_heads], dim=2)
        dropout = shape.attention_dropout if self.training else 0.0
        found = _attend(q, k, v, around.mask, dropout=dropout, is_causal=around.mask is None)
        out: torch.Tensor = self.project_out(found)
        return out


class CrossAttention(nn.Module):
    """Attention to conditions. Each head of queries has keys and values of its own: they are made once a clip."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.project_q = nn.Linear(shape.dim, shape.dim, bias=False)
        self.project_kv = nn.Linear(shape.dim, 2 * shape.dim, bias=False)
        self.project_out = nn.Linear(shape.dim, shape.dim, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None

    def forward(self, x: torch.Tensor, around: Around) -> torch.Tensor:
        """Gives [B * L, D] of x [B * L, D]."""
        shape = self.shape
        assert around.cross is not None
        q = self.project_q(x).view(around.batch, -1, shape.num_heads, shape.head_dim)
        kv = self.project_kv(around.cross).view(around.batch, -1, 2 * shape.num_heads, shape.head_dim)
        k, v = kv.chunk(2, dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        dropout = shape.attention_dropout if self.training else 0.0
        out: torch.Tensor = self.project_out(_attend(q, k, v, around.cross_mask, dropout=dropout, is_causal=False))
        return out


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *, dropout: float, is_causal: bool
) -> torch.Tensor:
    """Gives rows [B * L, D] of queries [B, L, H, hd], keys and values [B, S, Hkv, hd]."""
    found = functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask.to(q.dtype),
        is_causal=is_causal,
        dropout_p=dropout,
        # 5 to 20 % faster on a CPU than keys that are repeated first.
        enable_gqa=k.shape[2] != q.shape[2],
    )
    return found.transpose(1, 2).flatten(2).flatten(0, 1)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): outer(silu(gate) * value), gate and value the two halves of inner(x)."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.inner = nn.Linear(shape.dim, 2 * shape.ffn_dim, bias=False)
        self.outer = nn.Linear(shape.ffn_dim, shape.dim, bias=False)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives [M, D] of x [M, D]."""
        gate, value = self.inner(x).chunk(2, dim=-1)
        out: torch.Tensor = self.outer(dropped(functional.silu(gate) * value, self.dropout))
        return out


class LlamaLayer(nn.Module):
    """Self-attention, attention to conditions where there are some, feed-forward part: each normalised, then added."""

    def __init__(self, shape: LlamaShape, *, crosses: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.attention = SelfAttention(shape)
        self.cross_norm = RMSNorm(shape.dim, shape.norm_eps) if crosses else None
        self.cross = CrossAttention(shape) if crosses else None
        self.feed_forward_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.feed_forward = FeedForward(shape)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: torch.Tensor, around: Around) -> torch.Tensor:
        """Gives rows [B * L, D]."""
        x = x + dropped(self.attention(self.attention_norm(x), around), self.dropout)
        if self.cross is not None and self.cross_norm is not None and around.cross is not None:
            x = x + dropped(self.cross(self.cross_norm(x), around), self.dropout)
        return x + dropped(self.feed_forward(self.feed_forward_norm(x)), self.dropout)


class LlamaLM(nn.Module):
    """The whole. pattern_provider: audiocraft's, of the order of codes. condition_provider: whoever makes conditions;
    part of the weights.

    Invariant: what a step gives depends on no step after it.
    """

    def __init__(
        self, shape: LlamaShape, *, crosses: bool, pattern_provider: Any, condition_provider: nn.Module
    ) -> None:
        super().__init__()
        self.shape = shape
        self.card, self.dim, self.num_codebooks = shape.card, shape.dim, shape.num_codebooks
        self.special_token_id = shape.card
        self.attends_to_conditions = crosses
        self.pattern_provider = pattern_provider
        self.condition_provider = condition_provider
        books = range(shape.num_codebooks)
        self.emb = nn.ModuleList(Table(shape.card + 1, shape.dim, lr=shape.emb_lr) for _ in books)
        self.layers = nn.ModuleList(LlamaLayer(shape, crosses=crosses) for _ in range(shape.num_layers))
        self.out_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.linears = nn.ModuleList(nn.Linear(shape.dim, shape.card, bias=False) for _ in books)
        self._start()

    def _start(self) -> None:
        """Draws the weights: outputs of unit variance, those that are added to the residual stream smaller by the
        square root of how many there are (GPT-2's).
        """
        own = [(name, p) for name, p in self.named_parameters() if not name.startswith("condition_provider.")]
        added = {name for name, _ in own if name.endswith(("project_out.weight", "outer.weight"))}
        for name, weight in own:
            if weight.ndim == 2:
                std = (weight.shape[1] * (len(added) if name in added else 1)) ** -0.5
                nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)

    def position_table(self, length: int, device: torch.device) -> torch.Tensor:
        """Gives what `hidden_states` takes for `length` positions, made once."""
        return turns(length, self.shape.head_dim, self.shape.max_period, device)

    def hidden_states(
        self, sequence: torch.Tensor, places: torch.Tensor, conditions: Fused = NO_CONDITIONS
    ) -> torch.Tensor:
        """Gives what the output heads see, [B * S, D], for pattern steps `sequence`, int64 [B, K, S].

        places: what `position_table` gives for P + S, P being the positions before the sequence. conditions: of B rows.
        """
        batch = len(sequence)
        x = self.emb[0](sequence[:, 0])
        for k in range(1, self.num_codebooks):
            x = x + self.emb[k](sequence[:, k])
        if conditions.added is not None:
            x = x + conditions.added[:, None].to(x.dtype)
        if conditions.prefix is not None:
            x = torch.cat([conditions.prefix.to(x.dtype), x], dim=1)
        valid, valid_cross = conditions.prefix_mask, conditions.cross_mask
        around = Around(
            batch=batch,
            turns=places,
            mask=None if valid is None else prefix_mask(valid, x.shape[1], x.dtype),
            cross=conditions.cross,
            cross_mask=None if valid_cross is None else cross_mask(valid_cross, x.dtype),
        )
        x = x.flatten(0, 1)
        for layer in self.layers:
            x = layer(x, around)
        if conditions.prefix is not None:
            x = torch.unflatten(x, 0, (batch, -1))[:, conditions.prefix_length :].flatten(0, 1)
        found: torch.Tensor = self.out_norm(x)
        return found

    def forward(self, sequence: torch.Tensor, conditions: Fused = NO_CONDITIONS) -> torch.Tensor:
        """Gives logits [B, K, S, card] for pattern steps `sequence`, int64 [B, K, S], the empty code being `card`."""
        places = self.position_table(conditions.prefix_length + sequence.shape[-1], sequence.device)
        hidden = torch.unflatten(self.hidden_states(sequence, places, conditions), 0, (len(sequence), -1))
        return torch.stack([head(hidden) for head in self.linears], dim=1)


class Table(nn.Embedding):
    """Embeddings of a codebook. lr: their learning rate, where it is one of their own."""

    def __init__(self, num_rows: int, dim: int, *, lr: float | None) -> None:
        super().__init__(num_rows, dim)
        self.lr = lr
