"""Which parameter gets which optimiser, rate and decay, on a real LM; Muon against its definition and torch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fixtures_models import lm_config
from omegaconf import OmegaConf
from torch import nn

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import build_lm
from micro_musicgen.lm.losses import code_losses
from micro_musicgen.solvers.optimise import muon
from micro_musicgen.solvers.optimise.muon import MuonAdamW, hidden_matrices, orthogonalised
from micro_musicgen.solvers.optimise.optim import build_optimizer, parameter_groups, set_learning_rate

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon before 2.9")


def optim_config(**changes: Any) -> Any:
    config = OmegaConf.create(
        {
            "optimizer": "adamw",
            "lr": 1e-2,
            "adam": {"betas": [0.9, 0.95], "weight_decay": 0.1, "eps": 1e-8},
            "muon": {
                "lr": None,
                "momentum": 0.95,
                "weight_decay": None,
                "nesterov": True,
                "ns_steps": 5,
                "adjust_lr_fn": "match_rms_adamw",
            },
        }
    )
    return OmegaConf.merge(config, changes)


def language_model(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = copy.deepcopy(lm_config())
    config["transformer_lm"].update(changes)
    model: nn.Module = build_lm(config, window_s=1.0)
    return model


def train(model: Any, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """The losses of steps whose codes follow from their number."""
    losses = []
    for step in steps:
        codes = torch.randint(64, (2, 4, 12), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        loss = code_losses(model, codes).mean()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def names(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    chosen = {id(p) for p in parameters}
    return {name for name, p in model.named_parameters() if id(p) in chosen}


def test_a_real_lm_decays_its_matrices_and_heads_and_nothing_else() -> None:
    model = language_model(bias_ff=True, bias_attn=True, bias_proj=True)
    decayed, kept = (names(model, group["params"]) for group in parameter_groups(model, 0.1))
    assert decayed | kept == {name for name, _ in model.named_parameters()} and not decayed & kept
    assert {name for name in kept if "norm" in name} and not {name for name in decayed if "norm" in name}
    assert {name for name in kept if name.endswith("bias")} and not {n for n in decayed if n.endswith("bias")}
    assert {name for name in kept if name.startswith("emb.")} == {f"emb.{k}.weight" for k in range(4)}
    assert {f"linears.{k}.weight" for k in range(4)} <= decayed, "heads are linear maps"
    blocks = {name for name in decayed if name.startswith("transformer.layers.")}
    assert decayed == blocks | {f"linears.{k}.weight" for k in range(4)} and blocks


def test_decay_shrinks_what_decays_and_leaves_the_rest_bit_for_bit() -> None:
    model = language_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, optim_config())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = names(model, optimizer.param_groups[0]["params"])
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 1e-2 * 0.1) if name in decayed else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0 if name not in decayed else 1e-6, atol=0)


def test_adamw_is_fused_and_every_group_knows_its_peak() -> None:
    optimizer = build_optimizer(language_model(emb_lr=3e-4), optim_config())
    assert all(group["fused"] for group in optimizer.param_groups)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-2, 1e-2, 3e-4]
    assert [len(group["params"]) for group in optimizer.param_groups][-1] == 4
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2.5e-3, 2.5e-3, 7.5e-5])


@needs_muon
def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = language_model()
    optimizer = build_optimizer(model, optim_config(optimizer="muon", muon={"lr": 2e-2, "weight_decay": 0.3}))
    assert isinstance(optimizer, MuonAdamW)
    matrices, *others = optimizer.param_groups
    expected = {n for n, p in model.named_parameters() if n.startswith("transformer.layers.") and p.ndim == 2}
    assert names(model, matrices["params"]) == expected == names(model, hidden_matrices(model))
    assert (matrices["initial_lr"], matrices["weight_decay"], matrices["momentum"]) == (2e-2, 0.3, 0.95)
    rest = [p for group in others for p in group["params"]]
    assert len(rest) + len(expected) == len(list(model.parameters())) and all(g["fused"] for g in others)
    assert others[0]["weight_decay"] == 0.1 and others[1]["weight_decay"] == 0.0
    assert names(model, others[0]["params"]) == {f"linears.{k}.weight" for k in range(4)}


@needs_muon
def test_muon_goes_on_bit_for_bit_after_saving_and_loading() -> None:
    config = optim_config(optimizer="muon")
    model = language_model()
    optimizer = build_optimizer(model, config)
    train(model, optimizer, range(3))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = train(model, optimizer, range(3, 6))

    resumed = language_model()
    resumed.load_state_dict(weights)
    other = build_optimizer(resumed, config)
    train(resumed, other, range(1))  # a state that loading has to replace
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    set_learning_rate(other, 1.0)
    assert train(resumed, other, range(3, 6)) == expected
    for key, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert all(group["initial_lr"] == 1e-2 for group in other.param_groups)


@needs_muon
def test_a_factor_on_the_rate_reaches_both_parts_after_loading_too() -> None:
    model = language_model()
    optimizer = build_optimizer(model, optim_config(optimizer="muon"))
    train(model, optimizer, range(1))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = copy.deepcopy(model.state_dict())
    set_learning_rate(optimizer, 0.0)
    train(model, optimizer, range(1, 2))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@needs_muon
def test_muon_learns_and_steps_under_a_scaler() -> None:
    model: Any = language_model()
    optimizer = build_optimizer(model, optim_config(optimizer="muon", lr=3e-3))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    codes = torch.randint(64, (2, 4, 12), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(12):
        optimizer.zero_grad(set_to_none=True)
        loss = code_losses(model, codes).mean()
        torch.autograd.backward(scaler.scale(loss))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_orthogonalising_keeps_directions_and_levels_lengths(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix, num_rounds=5, coefficients=COEFFICIENTS, eps=1e-7)
    # The rounds act on singular values alone: the closed form applies the same polynomial to them.
    values = s / s.norm()
    for _ in range(5):
        values = sum(c * values ** (2 * i + 1) for i, c in enumerate(COEFFICIENTS))
    torch.testing.assert_close(found, u @ torch.diag(values) @ vh, rtol=1e-9, atol=1e-9)
    assert 0.5 < float(values.min()) and float(values.max()) < 1.3


@needs_muon
@pytest.mark.parametrize("adjust_lr_fn", ["match_rms_adamw", "original", None])
@pytest.mark.parametrize("nesterov", [True, False])
def test_fp32_muon_is_torchs_muon_up_to_its_bf16(adjust_lr_fn: str | None, nesterov: bool) -> None:
    options = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(12, 20, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine, its = muon._fp32_muon()([ours], **options), torch.optim.Muon([theirs], **options)
    for _ in range(3):
        ours.grad = torch.randn(12, 20, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step()
        its.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=0.02)
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()
    assert mine.state_dict()["param_groups"] == its.state_dict()["param_groups"], "a run can change machine"
    torch.testing.assert_close(mine.state[ours]["momentum_buffer"], its.state[theirs]["momentum_buffer"])


@needs_muon
@pytest.mark.parametrize("has_units", [True, False])
def test_torchs_own_muon_is_used_where_there_are_bf16_units(has_units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "has_bf16_units", lambda device: has_units)
    optimizer = build_optimizer(language_model(), optim_config(optimizer="muon"))
    assert (type(optimizer._parts[0]) is torch.optim.Muon) == has_units


def test_without_muon_torch_is_told_apart_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(MicroMusicGenError, match=r"needs torch 2\.9 or newer and this is .*optim.optimizer=adamw"):
        build_optimizer(language_model(), optim_config(optimizer="muon"))


@needs_muon
def test_impossible_muon_settings_are_told_in_one_line() -> None:
    with pytest.raises(MicroMusicGenError, match="this model has none"):
        build_optimizer(nn.Sequential(nn.Linear(3, 3)), optim_config(optimizer="muon"))
    with pytest.raises(MicroMusicGenError, match="optim.muon cannot be used.*bogus"):
        build_optimizer(language_model(), optim_config(optimizer="muon", muon={"adjust_lr_fn": "bogus"}))


def test_a_checkpoint_from_before_groups_had_peaks_still_loads() -> None:
    model = language_model()
    optimizer = build_optimizer(model, optim_config())
    train(model, optimizer, range(1))
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        del group["initial_lr"]
        group["lr"] = 1e-5
    optimizer.load_state_dict(old)
    set_learning_rate(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-2]
