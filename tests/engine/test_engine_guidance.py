"""Guidance: the formulas, what is computed for them, and that nothing else changes a clip."""

from __future__ import annotations

from typing import Any

import conditioned_models as own
import pytest
import torch

from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.conditions import Heard, guided_logits, guided_rows
from micro_musicgen.engine.fixed import FixedStep
from micro_musicgen.errors import MicroMusicGenError

LONG = "one two three four five six seven"
SAID: list[tuple[str | None, int | None]] = [("acid", 0), ("acid", None), (None, 1), (None, None), (LONG, 2)]
"""What five clips are told: both, one of the two, nothing, and a text that leaves no padding."""


def sounds(said: list[tuple[str | None, int | None]]) -> list[torch.Tensor | None]:
    return [None if seed is None else own.noise(seed=seed) for _, seed in said]


def codes(model: Any, said: list[tuple[str | None, int | None]] = SAID, first_clip: int = 0, **more: Any) -> Any:
    texts = [text for text, _ in said]
    return model.codes(len(said), descriptions=texts, audio_prompts=sounds(said), first_clip=first_clip, **more)


def rows_of(model: Any) -> int:
    return int(model.runner._buffers[0].rows)


def test_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    at, a, u = torch.randn(3, 2, 4, 9, generator=generator)
    plain = guided_logits(torch.cat([at, u]), (3.0,), 2)
    torch.testing.assert_close(plain, u + 3 * (at - u), atol=0, rtol=0)
    nested = guided_logits(torch.cat([at, a, u]), (3.0, 2.0), 2)
    torch.testing.assert_close(nested, u + 2 * (a - u) + 3 * (at - a))
    assert torch.equal(guided_logits(at, (), 2), at)
    same = guided_logits(torch.cat([at, a, u]), (3.0, 3.0), 2)
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=0)
    assert torch.equal(guided_logits(torch.cat([at, u, u, at]), (1.0, 5.0), 2)[:2], at), "exact where one of them is 1"


def _tensors(value: float, heard: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((1, 2, 4), value), torch.full((1, 2), heard)


@pytest.mark.parametrize(
    ("said", "coef", "coef_audio", "branches", "coefs"),
    [
        ("ta", 3.0, None, ["ta", ""], (3.0,)),
        ("ta", 3.0, 2.0, ["ta", "a", ""], (3.0, 2.0)),
        ("ta", 1.0, None, ["ta"], ()),
        ("ta", 1.0, 1.0, ["ta"], ()),
        ("ta", 0.0, None, [""], ()),
        ("ta", 0.0, 0.0, [""], ()),
        ("ta", 2.0, 2.0, ["ta", ""], (2.0,)),
        ("ta", 3.0, 1.0, ["ta", "a"], (3.0,)),
        ("ta", 0.0, 2.0, ["a", ""], (2.0,)),
        ("ta", 1.0, 2.0, ["ta", "a", ""], (1.0, 2.0)),
        ("t", 3.0, 2.0, ["t", ""], (3.0,)),
        ("a", 3.0, 2.0, ["a", ""], (2.0,)),
        ("a", 3.0, None, ["a", ""], (3.0,)),
        ("", 3.0, 2.0, [""], ()),
    ],
)
def test_only_branches_that_matter_are_computed(
    said: str, coef: float, coef_audio: float | None, branches: list[str], coefs: tuple[float, ...]
) -> None:
    conditional = {name: _tensors(1.0, name in said) for name in "ta"}
    null = {name: _tensors(0.0, False) for name in "ta"}
    rows = guided_rows(Heard(conditional=conditional, null=null, audio=frozenset("a")), coef, coef_audio)
    assert rows.coefs == coefs
    for name in "ta":
        wanted = [float(name in branch) for branch in branches]
        assert rows.conditions[name][0][:, 0, 0].tolist() == wanted, name
        assert rows.conditions[name][1].shape == (len(branches), 2)


@pytest.mark.parametrize("form", own.FORMS)
def test_weight_1_is_conditional_and_weight_0_unconditional(form: str) -> None:
    """Bit for bit, and the branch that matters is computed alone."""
    model = own.make_player(form)
    said = [(text if "text" in form or "prefix" in form else None, 0 if "sound" in form else None)
            for text in ("acid", LONG)]  # fmt: skip
    unconditional = model.codes(2)
    assert rows_of(model) == 2, "nothing is said, so nothing is guided"
    conditional = codes(model, said, conditions=None, cfg_coef=1.0)
    assert rows_of(model) == 2
    guided = codes(model, said)
    assert rows_of(model) == 4 and model.params.cfg_coef == 3.0
    assert torch.equal(codes(model, said, cfg_coef=0.0), unconditional)
    assert rows_of(model) == 2
    assert not torch.equal(conditional, unconditional) and not torch.equal(guided, conditional)
    if "sound" in form:
        for weight, wanted in ((1.0, conditional), (0.0, unconditional), (3.0, guided)):
            assert torch.equal(codes(model, said, cfg_coef=weight, cfg_coef_audio=weight), wanted)


def test_every_kind_is_nulled_in_the_unconditional_branch() -> None:
    """Whatever is said, text or sound, weight 0 doesn't hear it; and each kind has a weight of its own."""
    model = own.make_player()
    first = codes(model, [("acid", 0)], cfg_coef=0.0)
    assert torch.equal(codes(model, [("piano", 3)], cfg_coef=0.0), first)
    deaf_to_text = codes(model, [("acid", 0)], cfg_coef=0.0, cfg_coef_audio=2.0)
    assert torch.equal(codes(model, [("piano", 0)], cfg_coef=0.0, cfg_coef_audio=2.0), deaf_to_text)
    assert torch.equal(codes(model, [(None, 0)], cfg_coef=2.0), deaf_to_text)
    assert not torch.equal(codes(model, [("acid", 3)], cfg_coef=0.0, cfg_coef_audio=2.0), deaf_to_text)


@pytest.mark.parametrize("form", ["text and sound", "prefix and sound"])
@pytest.mark.parametrize("coefs", [(3.0, None), (3.0, 2.0), (1.0, 2.0), (2.0, 1.0), (0.0, 2.0), (1.0, 0.0), (1.0, 1.0)])
def test_a_clip_does_not_depend_on_its_batch(form: str, coefs: tuple[float, float | None]) -> None:
    """Nor on what its neighbours are told: some have both, some one kind, some nothing."""
    model = own.make_player(form)
    guidance = {"cfg_coef": coefs[0], "cfg_coef_audio": coefs[1]}
    together = codes(model, **guidance)
    for index, said in enumerate(SAID):
        alone = codes(model, [said], first_clip=index, **guidance)
        assert torch.equal(alone[0], together[index]), said
    pair = codes(model, SAID[3:], first_clip=3, **guidance)
    assert torch.equal(pair, together[3:])


def test_three_branches_in_steps_of_fixed_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph records, run as it is."""
    monkeypatch.setattr(FixedStep, "_recorded", lambda self: (self._eager(), self._eager)[1])
    model = own.make_player()
    guidance = {"cfg_coef": 3.0, "cfg_coef_audio": 2.0}
    wanted = [codes(model, **guidance), codes(model, SAID[:2], **guidance), codes(model, cfg_coef=2.0)]
    assert rows_of(model) == 10
    model.runner.mode = "graph"
    assert torch.equal(codes(model, **guidance), wanted[0]) and rows_of(model) == 15
    assert torch.equal(codes(model, SAID[:2], **guidance), wanted[1]) and rows_of(model) == 6
    assert torch.equal(codes(model, cfg_coef=2.0), wanted[2])


@pytest.mark.slow
def test_three_branches_compiled() -> None:
    lm = own.make_lively(own.own_config("text and sound"))
    eager, compiled = (own.make_player(lm=lm, precision="fp32", mode=mode) for mode in ("eager", "compile"))
    for model in (eager, compiled):
        model.set_generation_params(duration=0.3, use_sampling=False, cfg_coef=3.0, cfg_coef_audio=2.0)
    assert torch.equal(codes(compiled), codes(eager))


def test_coefficients_of_a_call_leave_the_parameters() -> None:
    model = own.make_player()
    kept = model.params
    loud = codes(model, cfg_coef=5.0)
    assert model.params is kept
    model.set_generation_params(duration=0.3, seed=1, cfg_coef=5.0)
    assert torch.equal(codes(model), loud)
    model.set_generation_params(duration=0.3, seed=1, cfg_coef=5.0, cfg_coef_audio=1.0)
    assert model.params.cfg_coef_audio == 1.0 and not torch.equal(codes(model), loud)


@pytest.mark.parametrize("name", ["cfg_coef", "cfg_coef_audio"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_coefficients_are_finite(name: str, value: float) -> None:
    with pytest.raises(MicroMusicGenError, match=f"{name} (nan|inf) must be a finite number; 1 is no guidance"):
        GenerationParams(**{name: value})
    model = own.make_player()
    with pytest.raises(MicroMusicGenError, match=f"{name} (nan|inf) must be a finite number"):
        codes(model, **{name: value})


def test_a_coefficient_of_sounds_for_a_model_without() -> None:
    model = own.make_player("text")
    before = model.params
    for attempt in (
        lambda: model.set_generation_params(cfg_coef_audio=2.0),
        lambda: model.codes(1, cfg_coef_audio=2.0),
    ):
        with pytest.raises(MicroMusicGenError, match="cfg_coef_audio 2 means nothing to a model without audio prompts"):
            attempt()
    assert model.params is before
