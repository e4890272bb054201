"""Patches of audiocraft.models, .modules and .utils: shown broken without, and mended with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from micro_musicgen.upstream import audiocraft_module


def test_delete_param_stops_at_null(unpatched: Any) -> None:
    loaders = audiocraft_module("models.loaders")
    cfg = OmegaConf.create({"conditioners": None})
    with unpatched("audiocraft.models.loaders:_delete_param"), pytest.raises(TypeError):
        loaders._delete_param(cfg, "conditioners.args.drop_desc_p")
    loaders._delete_param(cfg, "conditioners.args.drop_desc_p")
    assert cfg == {"conditioners": None}


def test_delete_param_still_deletes() -> None:
    cfg = OmegaConf.create({"conditioners": {"args": {"drop_desc_p": 0.5, "kept": 1}}})
    audiocraft_module("models.loaders")._delete_param(cfg, "conditioners.args.drop_desc_p")
    assert cfg == {"conditioners": {"args": {"kept": 1}}}


def test_top_k_takes_at_most_all_codes(unpatched: Any) -> None:
    utils = audiocraft_module("utils.utils")
    probabilities = torch.full((2, 4, 64), 1 / 64)
    with unpatched("audiocraft.utils.utils:sample_top_k"), pytest.raises(RuntimeError, match="out of range"):
        utils.sample_top_k(probabilities.clone(), 250)
    assert utils.sample_top_k(probabilities.clone(), 250).shape == (2, 4, 1)


def test_top_k_of_one_is_the_likeliest() -> None:
    probabilities = torch.softmax(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)), -1)
    found = audiocraft_module("utils.utils").sample_top_k(probabilities.clone(), 1)
    assert torch.equal(found[:, 0], probabilities.argmax(-1))


def _sample() -> Any:
    conditioners = audiocraft_module("modules.conditioners")
    wav = torch.ones(1, 1, 8)
    length = torch.tensor([8])
    return conditioners.ConditioningAttributes(
        text={"description": "acid"},
        wav={"self_wav": conditioners.WavCondition(wav, length, [32000], [None], [0.0])},
        joint_embed={"clap": conditioners.JointEmbedCondition(wav, ["acid"], length, [32000], ["a.wav"], [0.0])},
    )


def test_guidance_dropout_drops_every_kind(unpatched: Any) -> None:
    conditioners = audiocraft_module("modules.conditioners")
    dropout = conditioners.ClassifierFreeGuidanceDropout(p=1.0).train()
    with unpatched("audiocraft.modules.conditioners:ClassifierFreeGuidanceDropout.forward"):
        assert dropout([_sample()])[0].joint_embed["clap"].text == ["acid"]
    (dropped,) = dropout([_sample()])
    assert dropped.text == {"description": None}
    assert not dropped.wav["self_wav"].wav.any()
    assert dropped.joint_embed["clap"].text == [None] and not dropped.joint_embed["clap"].wav.any()


def test_guidance_dropout_refuses_a_kind_that_nobody_can_null() -> None:
    conditioners = audiocraft_module("modules.conditioners")

    class WithTempo(conditioners.ConditioningAttributes):
        @property
        def attributes(self) -> dict[str, Any]:
            return {**super().attributes, "tempo": ["bpm"]}

    with pytest.raises(ValueError, match="unexpected condition type"):
        conditioners.ClassifierFreeGuidanceDropout(p=1.0).train()([WithTempo()])


def test_guidance_dropout_leaves_samples_alone_when_it_does_not_drop() -> None:
    samples = [_sample()]
    dropout = audiocraft_module("modules.conditioners").ClassifierFreeGuidanceDropout(p=0.0)
    assert dropout.train()(samples) is samples
    assert dropout.eval()(samples) is samples


@pytest.mark.skipif(torch.cuda.is_available(), reason="the defect shows only without CUDA")
def test_ema_device_falls_back_to_where_the_weights_are(unpatched: Any) -> None:
    ema = audiocraft_module("optim.ema")
    modules = torch.nn.ModuleDict({"model": torch.nn.Linear(2, 2)})
    with (
        unpatched("audiocraft.optim.ema:ModuleDictEMA.__init__"),
        pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"),
    ):
        ema.ModuleDictEMA(modules, decay=0.5, device="cuda")
    average = ema.ModuleDictEMA(modules, decay=0.5, device="cuda")
    average.step()
    assert average.state["model"]["weight"].device.type == "cpu"
