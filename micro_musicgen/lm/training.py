"""The pass through an audiocraft `LMModel` that training takes: the same function of the same parameters, in fewer and
larger operations, over whole sequences and without conditions.

The module stays as it is, so that checkpoints, averages and optimisers see nothing new. A model that does more than is
covered here goes through its own forward: see `Plan` for what is covered.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from micro_musicgen.lm.allocator import keep_freed_memory
from micro_musicgen.upstream import audiocraft_module

Hidden = Callable[[Any, torch.Tensor, "torch.Tensor | None"], torch.Tensor]


@dataclass
class Plan:
    """How one model is run in training. refusal: why it takes its own forward; empty when it is covered.

    Covered: audiocraft's LMModel on its own causal layers with all of the past in sight, normalised before or after,
    with or without biases, layer scale, dropout, normalised queries and keys, sines, rope or xPos. Not covered:
    cross-attention, shared keys and values, a limited past, checkpointing, FSDP, subclasses.
    """

    refusal: str = ""
    hidden: Hidden | None = None
    steps: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


_plans: weakref.WeakKeyDictionary[Any, Plan] = weakref.WeakKeyDictionary()


def training_plan(model: Any) -> Plan:
    """Gives the plan of `model`, found out on the first call and the same object ever after.

    That call also has a process that trains on a CPU keep its memory: see `lm.allocator`.
    """
    plan = _plans.get(model)
    if plan is None:
        if next(model.parameters()).device.type == "cpu":
            keep_freed_memory()
        plan = _plans[model] = Plan(refusal=_refusal(model), hidden=hidden_states)
    return plan


def compile_training(model: Any, **options: Any) -> None:
    """Has the training pass of `model` compiled by torch.compile(**options) on its next use, where it is covered.

    Worth trying on a GPU. On a CPU it takes a minute and gains little (bench/NOTES_train.md).
    """
    plan = training_plan(model)
    if not plan.refusal:
        plan.hidden = torch.compile(hidden_states, **options)


def pattern_steps(model: Any, num_frames: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives where each pattern step takes its codes from, and where it has one: both [K, S], S - 1 of them predicted.

    An index counts through codes [K, T] flattened; K * T stands for the special token.
    """
    steps = training_plan(model).steps
    key = (num_frames, device)
    if key not in steps:
        pattern = model.pattern_provider.get_pattern(num_frames)
        end = model.num_codebooks * num_frames
        places = torch.arange(end, device=device).view(1, model.num_codebooks, num_frames)
        index, _, mask = pattern.build_pattern_sequence(places, end, keep_only_valid_steps=True)
        steps[key] = index[0], mask
    return steps[key]


def pattern_sequence(model: Any, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives codes [B, K, T] laid out in pattern steps [B, K, S], and which steps hold a code, bool [K, S]."""
    index, mask = pattern_steps(model, codes.shape[-1], codes.device)
    return functional.pad(codes.flatten(1), (0, 1), value=model.special_token_id)[:, index], mask


def position_table(model: Any, length: int, device: torch.device) -> torch.Tensor | None:
    """Gives what `model` adds to `length` positions, fp32 [length, D], made once; None for a model with rope alone."""
    transformer = model.transformer
    if transformer.positional_embedding == "rope":
        return None
    return _sines(length, model.dim, float(transformer.max_period), float(transformer.positional_scale), device)


def hidden_states(model: Any, sequence: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """Gives what the output heads of `model` see, [B * S, D], for pattern steps `sequence`, int64 [B, K, S].

    places: what `position_table` gives for S.
    """
    batch, num_codebooks, _ = sequence.shape
    x = functional.embedding(sequence[:, 0], model.emb[0].weight)
    for k in range(1, num_codebooks):
        x = x + functional.embedding(sequence[:, k], model.emb[k].weight)
    if places is not None:
        x = x + places.to(x.dtype)
    x = x.flatten(0, 1)
    for layer in model.transformer.layers:
        x = _layer(layer, x, batch)
    return x if model.out_norm is None else model.out_norm(x)


@functools.lru_cache(maxsize=16)
def _sines(length: int, dim: int, max_period: float, scale: float, device: torch.device) -> torch.Tensor:
    """Gives cosines, then sines, of periods that grow from 2 pi to `max_period` times that, times `scale`."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32) / (half - 1)
    phase = torch.arange(length, dtype=torch.float32)[:, None] / torch.tensor(max_period) ** exponents
    return scale * torch.cat([phase.cos(), phase.sin()], dim=-1).to(device)


def _layer(layer: Any, x: torch.Tensor, batch: int) -> torch.Tensor:
    """Gives rows [B * S, D] after one layer."""
    if layer.norm_first:
        x = x + layer.layer_scale_1(_attention(layer, layer.norm1(x), batch))
        x = x + layer.layer_scale_2(_feed_forward(layer, layer.norm2(x)))
    else:
        x = layer.norm1(x + layer.layer_scale_1(_attention(layer, x, batch)))
        x = layer.norm2(x + layer.layer_scale_2(_feed_forward(layer, x)))
    return x


def _feed_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    middle = _dropped(layer.activation(layer.linear1(x)), layer.dropout)
    return _dropped(layer.linear2(middle), layer.dropout2)


def _attention(layer: Any, x: torch.Tensor, batch: int) -> torch.Tensor:
    held = layer.self_attn
    own = held if held.custom else held.mha
    heads, width = held.num_heads, held.embed_dim // held.num_heads
    packed = functional.linear(x, own.in_proj_weight, own.in_proj_bias).view(batch, -1, 3, held.embed_dim)
    q, k, v = packed.unbind(2)
    if held.qk_layer_norm:
        q, k = held.q_layer_norm(q), held.k_layer_norm(k)
    q, k, v = (part.reshape(batch, -1, heads, width).transpose(1, 2) for part in (q, k, v))  # [B, H, S, D / H]
    if held.rope is not None:
        q, k = held.rope.rotate_qk(q, k, time_dim=2)
    dtype = v.dtype
    if held.attention_as_float32:
        q, k, v = q.float(), k.float(), v.float()
    dropout = held.dropout if layer.training else 0.0
    seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout).to(dtype)
    return _dropped(own.out_proj(seen.transpose(1, 2).flatten(2).flatten(0, 1)), layer.dropout1)


def _dropped(x: torch.Tensor, dropout: nn.Dropout) -> torch.Tensor:
    """Gives `x` after dropout; `x` itself where nothing is dropped, which saves a pass over memory."""
    return dropout(x) if dropout.p and dropout.training else x


def _refusal(model: Any) -> str:
    """Says what of `model` the pass above does not do; nothing when it does all."""
    lm, transformers = audiocraft_module("models.lm"), audiocraft_module("modules.transformer")
    if type(model) is not lm.LMModel or type(model.transformer) is not transformers.StreamingTransformer:
        return f"a {type(model).__name__}"
    if model._fsdp is not None:
        return "FSDP"
    if model.transformer.checkpointing != "none":
        return "checkpointing"
    for layer in model.transformer.layers:
        if type(layer) is not transformers.StreamingTransformerLayer:
            return f"layers of class {type(layer).__name__}"
        held = layer.self_attn
        if layer.cross_attention is not None:
            return "cross-attention"
        if not held.causal or held.past_context is not None:
            return "attention that is not over all of the past"
        if held.kv_repeat != 1:
            return "shared keys and values"
    return ""
