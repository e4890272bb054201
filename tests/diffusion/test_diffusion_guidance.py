"""Guidance: what it mixes, what it is at 0 and at 1, and how many calls it takes."""

from __future__ import annotations

import pytest
import torch
from linear_denoiser import CHANNELS, CONDITION, TEXT, LinearDenoiser, linear_model

from micro_musicgen.diffusion import guidance as guidance_module
from micro_musicgen.diffusion.denoiser import Told
from micro_musicgen.diffusion.guidance import Guided
from micro_musicgen.diffusion.model import LatentDiffusion
from micro_musicgen.diffusion.samplers import samplers, times
from micro_musicgen.errors import MicroMusicGenError

CLIPS, FRAMES, STEP = 3, 8, 42


def some_told(*, text: bool = False) -> Told:
    generator = torch.Generator().manual_seed(1)
    aligned = torch.randn(CLIPS, CONDITION, FRAMES, generator=generator)
    if not text:
        return Told(aligned)
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    return Told(aligned, (torch.randn(CLIPS, 3, TEXT, generator=generator), mask))


def some_x() -> torch.Tensor:
    return torch.randn(CLIPS, CHANNELS, FRAMES, generator=torch.Generator().manual_seed(2))


def counted(model: LatentDiffusion) -> LinearDenoiser:
    assert isinstance(model.denoiser, LinearDenoiser)
    return model.denoiser


def branch(model: LatentDiffusion, told: Told, *, dropped: bool) -> torch.Tensor:
    """What the network predicts when asked by hand, all clips told or none."""
    heard = model.denoiser.hear(model.told(told, torch.full((CLIPS,), dropped)))
    return model.predict(some_x(), torch.full((CLIPS,), STEP), heard)


@pytest.mark.parametrize("objective", ["v", "eps", "x0"])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
@torch.no_grad()
def test_guidance_mixes_predictions_and_is_one_branch_alone_at_0_and_1(
    objective: str, text: bool, guidance: float
) -> None:
    model, told = linear_model(objective, text_channels=TEXT if text else 0), some_told(text=text)
    conditional, null = branch(model, told, dropped=False), branch(model, told, dropped=True)
    assert not torch.allclose(conditional, null)
    mixed = {0.0: null, 1.0: conditional}.get(guidance, null + guidance * (conditional - null))
    wanted = model.x0(mixed, some_x(), torch.full((CLIPS,), STEP))
    found = Guided(model, told, guidance=guidance)(some_x(), STEP)
    tolerance = 0 if guidance in (0, 1) else 1e-5
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def test_the_null_branch_hears_nothing_of_what_is_told() -> None:
    model, told = linear_model(text_channels=TEXT), some_told(text=True)
    assert told.aligned is not None and told.text is not None
    other = Told(told.aligned + 5, (told.text[0] - 2, told.text[1]))
    null, other_null = (Guided(model, one, guidance=0)(some_x(), STEP) for one in (told, other))
    assert torch.equal(null, other_null)
    assert not torch.equal(
        Guided(model, told, guidance=1)(some_x(), STEP), Guided(model, other, guidance=1)(some_x(), STEP)
    )


@pytest.mark.parametrize(("guidance", "branches"), [(0, 1), (1, 1), (3, 2)])
def test_both_branches_are_one_batch_and_what_is_told_is_heard_once(guidance: float, branches: int) -> None:
    model = linear_model()
    guided = Guided(model, some_told(), guidance=guidance)
    chosen = times(model.schedule, 20, "log_snr")
    samplers.get("dpm")(guided, some_x(), model.schedule, chosen, noise=some_x)
    assert (guided.calls, guided.branch_calls) == (20, 20 * branches)
    assert counted(model).batches == [branches * CLIPS] * 20
    assert counted(model).heard == 1


def test_clips_are_alone_in_their_batch() -> None:
    model, told = linear_model(text_channels=TEXT), some_told(text=True)
    assert told.aligned is not None and told.text is not None
    together = Guided(model, told, guidance=3)(some_x(), STEP)
    for clip in range(CLIPS):
        only = slice(clip, clip + 1)
        alone = Told(told.aligned[only], (told.text[0][only], told.text[1][only]))
        torch.testing.assert_close(Guided(model, alone, guidance=3)(some_x()[only], STEP), together[only])


def test_nothing_keeps_a_gradient_or_changes_the_state() -> None:
    model = linear_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not Guided(model, some_told(), guidance=3)(some_x(), STEP).requires_grad
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    model.loss(torch.randn(CLIPS, CHANNELS, FRAMES), some_told()).loss.sum().backward()  # and training still works


def test_a_dtype_is_that_of_the_network_alone() -> None:
    model = linear_model()
    found = Guided(model, some_told(), guidance=3, dtype=torch.bfloat16)(some_x(), STEP)
    assert counted(model).dtypes == [torch.bfloat16]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Guided(model, some_told(), guidance=3)(some_x(), STEP), rtol=0, atol=0.1)


def test_casting_weights_once_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast would cast the same matrices to the same numbers at every call."""
    model = linear_model()
    once = Guided(model, some_told(), guidance=3, dtype=torch.bfloat16)
    assert {each.dtype for each in once._weights.values()} == {torch.bfloat16}
    monkeypatch.setattr(guidance_module, "_matrices", lambda denoiser, dtype: {})
    each_time = Guided(model, some_told(), guidance=3, dtype=torch.bfloat16)
    assert torch.equal(once(some_x(), STEP), each_time(some_x(), STEP))
    assert {each.dtype for each in model.denoiser.parameters()} == {torch.float32}


def test_a_model_without_a_condition_takes_no_guidance() -> None:
    model = linear_model(condition_channels=0)
    assert Guided(model, Told(), guidance=1)(some_x(), STEP).shape == (CLIPS, CHANNELS, FRAMES)
    for guidance in (0, 3):
        with pytest.raises(MicroMusicGenError, match=f"sampling.guidance={guidance} has nothing to guide.*use 1"):
            Guided(model, Told(), guidance=guidance)


def test_a_model_in_training_mode_does_not_play() -> None:
    with pytest.raises(AssertionError, match="eval"):
        Guided(linear_model().train(), some_told(), guidance=1)
