"""Which numbers a device gets: rules against made-up device facts, and fused AdamW under a scaler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers import machine
from micro_musicgen.solvers.optimise import precision
from micro_musicgen.solvers.optimise.precision import build_scaler, has_bf16_units, precision_name, settle_precision


def config(device: str, autocast: Any = "auto", dtype: str = "auto") -> Any:
    return OmegaConf.create({"device": device, "autocast": autocast, "autocast_dtype": dtype})


def pretend(monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int] = (7, 5), amx: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)


@pytest.mark.parametrize(
    ("device", "facts", "expected"),
    [
        ("cuda", {"capability": (9, 0)}, "bf16"),
        ("cuda:0", {"capability": (8, 0)}, "bf16"),
        ("cuda", {"capability": (8, 6)}, "bf16"),
        ("cuda", {"capability": (7, 5)}, "fp16"),
        ("cpu", {"amx": True}, "bf16"),
        ("cpu", {}, "fp32"),
        ("mps", {}, "fp32"),
    ],
)
def test_auto_takes_what_the_device_has_units_for(
    device: str, facts: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **facts)
    cfg = config(device)
    settle_precision(cfg)
    assert precision_name(cfg) == expected
    assert isinstance(cfg.autocast, bool) and hasattr(torch, cfg.autocast_dtype)
    settle_precision(cfg)
    assert precision_name(cfg) == expected, "settling twice changes nothing"


@pytest.mark.parametrize(
    ("device", "autocast", "dtype", "expected"),
    [
        ("cuda", "auto", "float16", "fp16"),
        ("cuda", "auto", "bfloat16", "fp32"),
        ("cuda", True, "bfloat16", "bf16"),
        ("cuda", "true", "auto", "fp16"),
        ("cuda", False, "auto", "fp32"),
        ("cuda", "false", "float16", "fp32"),
        ("cpu", "auto", "float16", "fp32"),
        ("cpu", True, "auto", "bf16"),
        ("cpu", True, "float16", "fp16"),
    ],
)
def test_what_is_asked_for_is_done_on_a_device_without_bf16(
    device: str, autocast: Any, dtype: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    cfg = config(device, autocast, dtype)
    settle_precision(cfg)
    assert precision_name(cfg) == expected


def test_avx512_bf16_counts_and_a_torch_without_the_question_has_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert has_bf16_units("cpu")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not has_bf16_units("cpu")


@pytest.mark.parametrize(
    ("autocast", "dtype", "message"),
    [("maybe", "auto", "autocast=maybe is unknown; use auto, true or false"), (True, "int8", "autocast_dtype=int8")],
)
def test_other_values_are_refused(autocast: Any, dtype: str, message: str) -> None:
    with pytest.raises(MicroMusicGenError, match=message):
        settle_precision(config("cpu", autocast, dtype))


def test_settle_uses_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16_units", lambda device: True)
    cfg = OmegaConf.merge(config("cpu"), {"num_threads": 1})
    assert precision_name(machine.settle(cfg)) == "bf16"


@pytest.mark.parametrize(("device", "name"), [("cpu", "bf16"), ("cpu", "fp32"), ("cpu", "fp16")])
def test_only_fp16_gets_a_scaler(device: str, name: str) -> None:
    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "bfloat16"}[name]
    assert build_scaler(config(device, name != "fp32", dtype)).is_enabled() == (name == "fp16")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_fused_adamw_under_a_scaler_steps_as_without_one_and_skips_an_overflow(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def descend(model: nn.Module, optimizer: Any, scaler: torch.amp.GradScaler, value: float) -> None:
        optimizer.zero_grad()
        loss = model(torch.full((2, 4), value, device=device)).square().mean()
        torch.autograd.backward(scaler.scale(loss))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    models, scalers = {}, {}
    for scaled in (True, False):
        torch.manual_seed(0)
        models[scaled] = nn.Linear(4, 3).to(device)
        optimizer = torch.optim.AdamW(models[scaled].parameters(), lr=1e-2, fused=True)
        scalers[scaled] = build_scaler(config(device, scaled, "float16"))
        for step in range(4):
            descend(models[scaled], optimizer, scalers[scaled], 1.0 + step)
    torch.testing.assert_close(models[True].weight, models[False].weight)

    optimizer = torch.optim.AdamW(models[True].parameters(), lr=1e-2, fused=True)
    weights, scale = models[True].weight.detach().clone(), scalers[True].get_scale()
    descend(models[True], optimizer, scalers[True], float("inf"))
    assert torch.equal(models[True].weight.detach(), weights), "a step with an overflow is left out"
    assert scalers[True].get_scale() == scale / 2
