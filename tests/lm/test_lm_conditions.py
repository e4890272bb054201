"""Conditions in the training pass: against audiocraft's forward, against the engine, and against clips run alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conditioned_lms import COVERED, CUSTOM, WAYS, Tensors, config, fused, make, some_codes, some_tensors
from fixtures_models import CARD, make_runner

from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.engine.scoring import step_logits
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.losses import code_losses, cross_entropy
from micro_musicgen.lm.training import (
    compile_training,
    hidden_states,
    pattern_sequence,
    pattern_steps,
    position_table,
    training_plan,
)

WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 0.1])
"""Of the codebooks in what gradients are taken of."""


def upstreams_losses(model: Any, codes: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    output = model.compute_predictions(codes, [], condition_tensors=tensors)
    return cross_entropy(output.logits, codes, output.mask)


def gradients(model: Any, tensors: Tensors, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a sum in which no two codebooks count the same, by every weight and every condition."""
    named = {name: p for name, p in model.named_parameters() if not name.startswith("condition_provider")}
    named.update({f"condition {name}": x for name, (x, _) in tensors.items()})
    found = torch.autograd.grad((losses * WEIGHTS).sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def hidden_of(model: Any, codes: torch.Tensor, conditions: Fused) -> torch.Tensor:
    """[B, S, D]."""
    sequence, _ = pattern_sequence(model, codes)
    places = position_table(model, conditions.prefix_length + sequence.shape[-1], sequence.device)
    return hidden_states(model, sequence, places, conditions).unflatten(0, (len(codes), -1))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", COVERED)
def test_loss_logits_and_every_gradient_are_upstreams(name: str, way: str) -> None:
    settings = config(way, positions=0.7 if name == "rope" else 0.0, **COVERED[name])
    model, codes, tensors = make(settings), some_codes(), some_tensors(way)
    assert training_plan(model).refusal == ""
    conditions = fused(settings, tensors)
    assert conditions.prefix_mask is None and conditions.cross_mask is None
    ours, theirs = code_losses(model, codes, conditions), upstreams_losses(model, codes, tensors)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert_same(gradients(model, tensors, ours), gradients(model, tensors, theirs))
    sequence, _ = pattern_sequence(model, codes)
    hidden = hidden_of(model, codes, conditions)
    logits = torch.stack([head(hidden) for head in model.linears], dim=1)
    torch.testing.assert_close(logits, model(sequence, [], tensors), atol=1e-5, rtol=1e-5)


PADDED = {"prepend": {"a": [4, 10, 0], "b": [9, 1, 0]}, "cross": {"a": [10, 0, 0], "b": [4, 9, 0]},
          "all": {"b": [3, 0, 10], "c": [9, 4, 0]}}  # fmt: skip


def trained_on(model: Any, codes: torch.Tensor) -> torch.Tensor:
    """Which codes count in training, bool like `codes`: delays leave the last steps out."""
    index, mask = pattern_steps(model, codes.shape[-1], codes.device)
    counts = torch.zeros(codes[0].numel(), dtype=torch.bool)
    counts[index[mask]] = True
    return counts.view_as(codes[0]).expand_as(codes)


def all_valid(tensors: Tensors) -> Tensors:
    return {name: (x, torch.ones_like(mask)) for name, (x, mask) in tensors.items()}


@pytest.mark.parametrize("way", PADDED)
@pytest.mark.parametrize("name", COVERED)
def test_padded_conditions_are_heard_as_the_engine_hears_them(name: str, way: str) -> None:
    settings = config(way, **COVERED[name])
    model, codes = make(settings).eval(), some_codes()
    conditions = fused(settings, some_tensors(way, PADDED[way]))
    assert conditions.prefix_mask is not None or conditions.cross_mask is not None
    logits = step_logits(make_runner(settings, lm=model), codes, conditions)
    wanted = cross_entropy(logits, codes, trained_on(model, codes))
    found = code_losses(model, codes, conditions)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    unpadded = code_losses(model, codes, fused(settings, all_valid(some_tensors(way, PADDED[way]))))
    assert ((unpadded - found).abs() > 1e-3).any(), "what is padding makes no difference here"


@pytest.mark.parametrize("name", ["as shipped", "torch's attention", "normalised after"])
def test_padded_cross_attention_is_that_of_each_clip_alone_without_padding(name: str) -> None:
    settings = config("cross", **COVERED[name])
    model, codes, tensors = make(settings), some_codes(), some_tensors("cross", PADDED["cross"])
    ours = code_losses(model, codes, fused(settings, tensors))
    alone = []
    for clip in range(3):
        # A clip about which nothing is said hears all that stands there.
        some = any(mask[clip].any() for _, mask in tensors.values())
        cut = {n: (x[clip : clip + 1, mask[clip]] if some else x[clip : clip + 1], mask[:1]) for n, (x, mask) in
               tensors.items()}  # fmt: skip
        alone.append(upstreams_losses(model, codes[clip : clip + 1], cut))
    theirs = torch.stack(alone).mean(0)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert_same(gradients(model, tensors, ours), gradients(model, tensors, theirs))


@pytest.mark.parametrize("name", ["audiocraft's attention", "rope"])
def test_a_padded_prefix_is_audiocrafts_attention_under_the_mask_written_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("prepend", **COVERED[name], **CUSTOM if name == "rope" else {})
    model, codes, tensors = make(settings), some_codes(), some_tensors("prepend", PADDED["prepend"])
    conditions = fused(settings, tensors)
    assert conditions.prefix_mask is not None
    ours = code_losses(model, codes, conditions)
    alone = []
    for clip, valid in enumerate(conditions.prefix_mask.tolist()):

        def mask(length: int, *_: Any, valid: list[bool] = valid) -> torch.Tensor:
            padded = {place for place, each in enumerate(valid) if not each}
            return torch.tensor([
                [0.0 if key == query or (key < query and key not in padded) else -math.inf for key in range(length)]
                for query in range(length)
            ])  # fmt: skip

        for layer in model.transformer.layers:
            monkeypatch.setattr(layer.self_attn, "_get_mask", mask)
        cut = {name: (x[clip : clip + 1], m[:1]) for name, (x, m) in tensors.items()}
        alone.append(upstreams_losses(model, codes[clip : clip + 1], cut))
    theirs = torch.stack(alone).mean(0)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert_same(gradients(model, tensors, ours), gradients(model, tensors, theirs))


@pytest.mark.parametrize("way", PADDED)
def test_padding_gets_no_gradient_and_all_else_does(way: str) -> None:
    settings = config(way)
    model, tensors = make(settings), some_tensors(way, PADDED[way])
    code_losses(model, some_codes(), fused(settings, tensors)).sum().backward()
    null = ~torch.stack([m.any(1) for n, (_, m) in tensors.items() if n in settings["fuser"]["cross"]] or
                        [torch.ones(3, dtype=torch.bool)]).any(0)  # fmt: skip
    for name, (x, mask) in tensors.items():
        assert x.grad is not None
        heard = mask | (null[:, None] if name in settings["fuser"]["cross"] else torch.zeros_like(mask))
        assert torch.equal(x.grad.abs().sum(-1) > 0, heard)


@pytest.mark.parametrize("way", ["prepend", "cross"])
def test_nothing_said_is_nothing_heard(way: str) -> None:
    """Zeros, all masked: cross-attention adds nothing, and a prefix only moves the positions on."""
    settings = config(way, positional_embedding="rope")
    model, codes = make(settings), some_codes()
    zeros = {n: (torch.zeros_like(x), torch.zeros_like(m)) for n, (x, m) in some_tensors(way).items()}
    found = code_losses(model, codes, fused(settings, zeros))
    for layer in model.transformer.layers:
        layer.cross_attention = None
    torch.testing.assert_close(found, code_losses(model, codes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", PADDED)
def test_the_future_is_not_heard_and_conditions_are_at_every_step(way: str) -> None:
    settings = config(way)
    model, codes, tensors = make(settings), some_codes(), some_tensors(way, PADDED[way])
    conditions = fused(settings, tensors)
    hidden = hidden_of(model, codes, conditions)
    num_steps = pattern_sequence(model, codes)[0].shape[-1]
    assert hidden.shape == (3, num_steps, 32), "of the sequence's steps alone"
    other = codes.clone()
    other[..., 6:] = (other[..., 6:] + 1) % CARD
    changed = (hidden_of(model, other, conditions) - hidden).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [step > 6 for step in range(num_steps)]
    for step in range(num_steps):
        inputs = [x for x, _ in tensors.values()]
        for x in torch.autograd.grad(hidden[0, step].square().sum(), inputs, retain_graph=True):
            assert x[0].any() and not x[1:].any()


def test_dropout_of_cross_attention_follows_the_seed_and_averages_to_upstreams() -> None:
    settings = config("cross", dropout=0.2)
    model, codes, tensors = make(settings), some_codes(), some_tensors("cross")
    conditions = fused(settings, tensors)

    def drawn(first: int, theirs: bool) -> torch.Tensor:
        found = []
        for seed in range(first, first + 60):
            torch.manual_seed(seed)
            losses = upstreams_losses(model, codes, tensors) if theirs else code_losses(model, codes, conditions)
            found.append(losses.mean().detach())
        return torch.stack(found)

    ours, theirs = drawn(0, False), drawn(1000, True)
    assert abs(float(ours.mean() - theirs.mean())) < 4 * math.hypot(float(ours.std()), float(theirs.std())) / 60**0.5
    assert 0.6 < float(ours.std() / theirs.std()) < 1.6
    for layer in model.transformer.layers:
        for each in (layer.dropout, layer.dropout1, layer.dropout2):
            each.p = 0.0
        layer.self_attn.dropout = layer.cross_attention.dropout = 0.0
    assert drawn(0, False).unique().numel() > 50, "dropout_cross alone"


def test_autocast_rounds_conditions_too() -> None:
    settings = config("all", qk_layer_norm_cross=True, attention_as_float32=True)
    model, codes = make(settings), some_codes()
    conditions = fused(settings, some_tensors("all", PADDED["all"]))
    exact = code_losses(model, codes, conditions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = code_losses(model, codes, conditions)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).detach().abs().max()) < 0.1


@pytest.mark.slow
def test_a_compiled_pass_hears_the_same() -> None:
    settings = config("all")
    model, codes = make(settings), some_codes()
    many, few = some_tensors("all", PADDED["all"]), some_tensors("all")
    wanted = [gradients(model, t, code_losses(model, codes, fused(settings, t))) for t in (many, few)]
    compile_training(model, backend="aot_eager")
    for tensors, each in zip((many, few), wanted, strict=True):
        assert_same(gradients(model, tensors, code_losses(model, codes, fused(settings, tensors))), each)


def test_conditions_that_a_model_cannot_take() -> None:
    settings, codes = config("cross"), some_codes()
    model, conditions = make(settings), fused(settings, some_tensors("cross"))
    with pytest.raises(MicroMusicGenError, match="attends to conditions at every step and was given none"):
        code_losses(model, codes)
    with pytest.raises(MicroMusicGenError, match="conditions of 3 clips for a batch of 2"):
        code_losses(model, codes[:2], conditions)
    with pytest.raises(MicroMusicGenError, match="has no cross-attention"):
        code_losses(make(config("prepend")), codes, conditions)
    refused = config("prepend", checkpointing="torch")
    with pytest.raises(MicroMusicGenError, match="with checkpointing is not trained with conditions") as error:
        code_losses(make(refused), codes, fused(refused, some_tensors("prepend")))
    assert "\n" not in str(error.value)
