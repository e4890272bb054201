"""The pass through a language model that training takes, over whole sequences with their conditions.

Of an audiocraft `LMModel` it is written here: the same function of the same parameters, in fewer and larger operations.
The module stays as it is, so that checkpoints, averages and optimisers see nothing new. A model that does more than is
covered goes through its own forward: see `Plan` for what is covered. Language models of this project bring their pass.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn import functional

from micro_musicgen.allocator import keep_freed_memory
from micro_musicgen.conditioners.fusing import Fused, sin_embedding
from micro_musicgen.lm.attention import cross_attention, cross_mask, dropped, prefix_mask, self_attention
from micro_musicgen.upstream import audiocraft_module

NO_CONDITIONS = Fused(rows=0)

Hidden = Callable[[Any, torch.Tensor, Any, Fused], torch.Tensor]
"""(model, pattern steps [B, K, S], what `position_table` gives, conditions) -> [B * S, D]."""


@runtime_checkable
class BringsPass(Protocol):
    """A language model that is run in training as it says itself.

    Beside these it has audiocraft's `num_codebooks`, `special_token_id`, `pattern_provider` and the heads `linears`.
    attends_to_conditions: its layers have cross-attention.
    """

    attends_to_conditions: bool

    def position_table(self, length: int, device: torch.device) -> torch.Tensor:
        """Gives what `hidden_states` is to be given for so many positions."""

    def hidden_states(self, sequence: torch.Tensor, places: torch.Tensor, conditions: Fused) -> torch.Tensor:
        """Gives [B * S, D], as the function `hidden_states` does."""


@dataclass
class Plan:
    """How one model is run in training. refusal: why it takes its own forward; empty when it is covered.

    Covered: audiocraft's LMModel on its own causal layers with all of the past in sight, normalised before or after,
    with or without biases, layer scale, dropout, normalised queries and keys, sines, rope or xPos, and conditions
    before the sequence, attended to, or added. Not covered: shared keys and values, a limited past, checkpointing,
    FSDP, subclasses.
    """

    refusal: str = ""
    hidden: Hidden | None = None
    steps: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


_plans: weakref.WeakKeyDictionary[Any, Plan] = weakref.WeakKeyDictionary()


def training_plan(model: Any) -> Plan:
    """Gives the plan of `model`, found out on the first call and the same object ever after.

    That call also has a process that trains on a CPU keep its memory: see `allocator`.
    """
    plan = _plans.get(model)
    if plan is None:
        if next(model.parameters()).device.type == "cpu":
            keep_freed_memory()
        if isinstance(model, BringsPass):
            plan = Plan(hidden=type(model).hidden_states)
        else:
            plan = Plan(refusal=_refusal(model), hidden=hidden_states)
        _plans[model] = plan
    return plan


def attends_to_conditions(model: Any) -> bool:
    """Says whether the layers of `model`, one that is covered, have cross-attention."""
    if isinstance(model, BringsPass):
        return model.attends_to_conditions
    return model.transformer.layers[0].cross_attention is not None


def compile_training(model: Any, **options: Any) -> None:
    """Has the training pass of `model` compiled by torch.compile(**options) on its next use, where it is covered.

    Worth trying on a GPU. On a CPU it takes a minute and gains little (bench/NOTES_train.md).
    """
    plan = training_plan(model)
    if not plan.refusal:
        assert plan.hidden is not None
        plan.hidden = torch.compile(plan.hidden, **options)


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
    """Gives what `model` adds to `length` positions, fp32 [length, D], made once; None for a model with rope alone.

    Of a model that brings its pass, what that takes.
    """
    if isinstance(model, BringsPass):
        return model.position_table(length, device)
    transformer = model.transformer
    if transformer.positional_embedding == "rope":
        return None
    return _sines(length, model.dim, float(transformer.max_period), float(transformer.positional_scale), device)


def hidden_states(
    model: Any, sequence: torch.Tensor, places: torch.Tensor | None, conditions: Fused = NO_CONDITIONS
) -> torch.Tensor:
    """Gives what the output heads of `model` see, [B * S, D], for pattern steps `sequence`, int64 [B, K, S].

    places: what `position_table` gives for P + S, P being the positions before the sequence. conditions: of B rows.
    """
    batch, num_codebooks, _ = sequence.shape
    x = functional.embedding(sequence[:, 0], model.emb[0].weight)
    for k in range(1, num_codebooks):
        x = x + functional.embedding(sequence[:, k], model.emb[k].weight)
    if conditions.added is not None:
        x = x + conditions.added[:, None].to(x.dtype)
    if conditions.prefix is not None:
        x = torch.cat([conditions.prefix.to(x.dtype), x], dim=1)
    if places is not None:
        x = x + places.to(x.dtype)
    valid, valid_cross = conditions.prefix_mask, conditions.cross_mask
    mask = None if valid is None else prefix_mask(valid, x.shape[1], x.dtype)
    mask_cross = None if valid_cross is None else cross_mask(valid_cross, x.dtype)
    x = x.flatten(0, 1)
    for layer in model.transformer.layers:
        x = _layer(layer, x, batch, mask, conditions.cross, mask_cross)
    if conditions.prefix is not None:
        x = torch.unflatten(x, 0, (batch, -1))[:, conditions.prefix_length :].flatten(0, 1)
    return x if model.out_norm is None else model.out_norm(x)


@functools.lru_cache(maxsize=16)
def _sines(length: int, dim: int, max_period: float, scale: float, device: torch.device) -> torch.Tensor:
    return scale * sin_embedding(length, dim, max_period).to(device)


def _layer(
    layer: Any,
    x: torch.Tensor,
    batch: int,
    mask: torch.Tensor | None,
    conditions: torch.Tensor | None,
    condition_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Gives rows [B * (P + S), D] after one layer. conditions: [B, C, D], attended to."""
    entered = x
    if layer.norm_first:
        x = x + layer.layer_scale_1(self_attention(layer, layer.norm1(x), batch, mask))
        if conditions is not None:
            heard = cross_attention(layer, layer.norm_cross(x), conditions, batch, condition_mask)
            x = x + layer.layer_scale_cross(heard)
        x = x + layer.layer_scale_2(_feed_forward(layer, layer.norm2(x)))
    else:
        x = layer.norm1(x + layer.layer_scale_1(self_attention(layer, x, batch, mask)))
        if conditions is not None:
            # audiocraft asks the conditions with what entered the layer, not with what left the attention.
            heard = cross_attention(layer, entered, conditions, batch, condition_mask)
            x = layer.norm_cross(x + layer.layer_scale_cross(heard))
        x = layer.norm2(x + layer.layer_scale_2(_feed_forward(layer, x)))
    return x


def _feed_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    middle = dropped(layer.activation(layer.linear1(x)), layer.dropout)
    return dropped(layer.linear2(middle), layer.dropout2)


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
        if not held.causal or held.past_context is not None:
            return "attention that is not over all of the past"
        if held.kv_repeat != 1:
            return "shared keys and values"
    return ""
