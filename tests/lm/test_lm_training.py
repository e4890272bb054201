"""The training pass against audiocraft's own forward and loss: values and every gradient, for whatever it covers."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
from fixtures_models import CARD, lm_config

from micro_musicgen.allocator import keep_freed_memory
from micro_musicgen.lm import head_loss
from micro_musicgen.lm.builder import build_lm
from micro_musicgen.lm.losses import code_losses, cross_entropy
from micro_musicgen.lm.training import (
    _plans,
    compile_training,
    hidden_states,
    pattern_sequence,
    position_table,
    training_plan,
)
from micro_musicgen.upstream import audiocraft_module

BIASED = {"bias_ff": True, "bias_attn": True, "bias_proj": True, "zero_bias_init": False}
TORCHS = {"memory_efficient": False, "custom": False}
CUSTOM = {"memory_efficient": False, "custom": True}
DELAY = {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3], "flatten_first": 0, "empty_initial": 0}}
UNEVEN = {"modeling": "delay", "delay": {"delays": [0, 0, 2, 5], "flatten_first": 2, "empty_initial": 1}}
FLAT = {"modeling": "unroll", "unroll": {"flattening": [0, 1, 2, 3], "delays": [0, 0, 0, 0]}}
PARALLEL = {"modeling": "parallel", "parallel": {}}

COVERED: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "biases": BIASED,
    "normalised after": {"norm_first": False, **BIASED},
    "rope": {"positional_embedding": "rope"},
    "rope half on": {"positional_embedding": "rope", "positional_scale": 0.5},
    "xpos and sines": {"positional_embedding": "sin_rope", "xpos": True, "positional_scale": 0.5},
    "normalised queries and keys": {"qk_layer_norm": True},
    "layer scale": {"layer_scale": 0.1},
    "torch's attention": {**TORCHS, **BIASED},
    "audiocraft's attention": {**CUSTOM, "attention_as_float32": True},
    "relu": {"activation": "relu"},
    "flat pattern": {"pattern": FLAT},
    "parallel pattern": {"pattern": PARALLEL, "norm_first": False},
    "uneven delays": {"pattern": UNEVEN},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "limited past": ({**CUSTOM, "past_context": 5}, "all of the past"),
    "not causal": ({**CUSTOM, "causal": False}, "all of the past"),
    "shared keys": ({"kv_repeat": 2}, "shared keys"),
    "checkpointing": ({"checkpointing": "torch"}, "checkpointing"),
}


def make(*, pattern: dict[str, Any] = DELAY, seed: int = 0, **changes: Any) -> Any:
    config = lm_config()
    config["transformer_lm"].update(changes)
    config["codebooks_pattern"] = pattern
    torch.manual_seed(seed)
    model = build_lm(config, window_s=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))  # norms and biases that are not 1 and 0
    return model


def some_codes(batch: int = 3, num_frames: int = 21) -> torch.Tensor:
    return torch.randint(CARD, (batch, 4, num_frames), generator=torch.Generator().manual_seed(1))


def upstreams_losses(model: Any, codes: torch.Tensor) -> torch.Tensor:
    output = model.compute_predictions(codes, [], condition_tensors={})
    return cross_entropy(output.logits, codes, output.mask)


def gradients(model: Any, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a sum in which no two codebooks count the same."""
    named = dict(model.named_parameters())
    weights = torch.tensor([1.0, 0.5, 2.0, 0.1])
    found = torch.autograd.grad((losses * weights).sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


def assert_same(model: Any, codes: torch.Tensor) -> None:
    theirs, ours = upstreams_losses(model, codes), code_losses(model, codes)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    wanted, found = gradients(model, theirs), gradients(model, ours)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", COVERED)
def test_loss_and_every_gradient_are_upstreams(name: str) -> None:
    model = make(**COVERED[name])
    assert training_plan(model).refusal == ""
    assert_same(model, some_codes())


@pytest.mark.parametrize("name", COVERED)
def test_logits_are_upstreams(name: str) -> None:
    model = make(**COVERED[name])
    sequence, _ = pattern_sequence(model, some_codes())
    places = position_table(model, sequence.shape[-1], sequence.device)
    hidden = hidden_states(model, sequence, places).unflatten(0, (len(sequence), -1))
    logits = torch.stack([head(hidden) for head in model.linears], dim=1)
    torch.testing.assert_close(logits, model(sequence, [], {}), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_left_to_upstream(name: str) -> None:
    changes, reason = REFUSED[name]
    model = make(**changes)
    assert reason in training_plan(model).refusal
    assert_same(model, some_codes())


def test_subclasses_are_left_to_upstream() -> None:
    lm = audiocraft_module("models.lm").LMModel

    class Other(lm):  # type: ignore[misc,valid-type]
        pass

    model = make()
    model.__class__ = Other
    assert training_plan(model).refusal == "a Other"
    assert_same(model, some_codes())


@pytest.mark.parametrize("changes", [{}, CUSTOM, {"attention_dropout": 0.0, "norm_first": False}])
def test_dropout_follows_the_seed_and_averages_to_upstreams(changes: dict[str, Any]) -> None:
    model, codes = make(dropout=0.2, **changes), some_codes()

    def drawn(loss: Any, first: int, count: int) -> torch.Tensor:
        found = []
        for seed in range(first, first + count):
            torch.manual_seed(seed)
            found.append(loss(model, codes).mean().detach())
        return torch.stack(found)

    ours = drawn(code_losses, 0, 100)
    assert torch.equal(ours[:3], drawn(code_losses, 0, 3)) and ours.unique().numel() > 90
    theirs = drawn(upstreams_losses, 1000, 100)
    error = math.hypot(float(ours.std()), float(theirs.std())) / 10
    assert abs(float(ours.mean() - theirs.mean())) < 4 * error
    assert 0.7 < float(ours.std() / theirs.std()) < 1.4
    model.eval()
    torch.testing.assert_close(code_losses(model, codes), upstreams_losses(model, codes))


@pytest.mark.parametrize("kept_bytes", [0, 2**31])
@pytest.mark.parametrize("block_bytes", [1, 4 * CARD * 7, 2**22])
def test_blocks_and_keeping_change_nothing(kept_bytes: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "KEPT_BYTES", kept_bytes)
    monkeypatch.setitem(head_loss.BLOCK_BYTES, "cpu", block_bytes)
    assert_same(make(**BIASED), some_codes())


def test_a_graph_can_be_run_backwards_twice() -> None:
    model = make()
    loss = code_losses(model, some_codes()).mean()
    first = torch.autograd.grad(loss, model.linears[0].weight, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, model.linears[0].weight)[0], first)


def test_a_codebook_without_any_target_costs_nothing() -> None:
    hidden = torch.randn(5, 8, requires_grad=True)
    heads = [torch.nn.Linear(8, 11) for _ in range(2)]
    targets = torch.stack([torch.arange(5), torch.full((5,), -100)])
    losses = head_loss.head_losses(hidden, targets, heads)
    losses.sum().backward()
    assert losses[1] == 0 and not heads[1].weight.grad.any()
    torch.testing.assert_close(losses[0], torch.nn.functional.cross_entropy(heads[0](hidden), targets[0]))


def test_autocast_rounds_products_and_nothing_else() -> None:
    model, codes = make(), some_codes()
    exact = code_losses(model, codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = code_losses(model, codes)
        theirs = upstreams_losses(model, codes)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).detach().abs().max()) < 0.05
    torch.testing.assert_close(rounded, theirs, atol=0.03, rtol=0)
    found, wanted = gradients(model, rounded), gradients(model, exact)
    for name, gradient in wanted.items():
        assert found[name].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.99, name


def test_tables_of_a_length_are_made_once_and_a_plan_dies_with_its_model() -> None:
    model = make()
    for num_frames in (7, 9, 7):
        code_losses(model, some_codes(num_frames=num_frames))
    assert sorted(length for length, _ in training_plan(model).steps) == [7, 9]
    before = len(_plans)
    del model
    gc.collect()
    assert len(_plans) == before - 1


def test_parameters_and_their_names_are_left_alone() -> None:
    model = make()
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    code_losses(model, some_codes()).mean().backward()
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_a_compiled_pass_gives_the_same() -> None:
    model = make()
    compile_training(model, backend="aot_eager")
    assert_same(model, some_codes())


def test_a_process_can_be_told_to_keep_its_memory_more_than_once() -> None:
    assert keep_freed_memory() == keep_freed_memory()
