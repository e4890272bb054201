"""From parameters and a condition to frames as the data has them; and noise that belongs to frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_denoiser import CHANNELS, CONDITION, LinearDenoiser, linear_model

from micro_musicgen.diffusion.denoiser import Told
from micro_musicgen.diffusion.samplers import samplers
from micro_musicgen.diffusion.sampling import FrameNoise, SamplingParams, params_of, sample
from micro_musicgen.errors import MicroMusicGenError

FRAMES = 150


def some_told(clips: int = 2, frames: int = FRAMES) -> Told:
    return Told(torch.randn(clips, CONDITION, frames, generator=torch.Generator().manual_seed(1)))


def some_params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"sampler": "dpm", "steps": 8, "guidance": 2.0, **changes})


def test_a_frames_noise_does_not_depend_on_the_window() -> None:
    noise = FrameNoise(seed=5, channels=CHANNELS)
    whole = noise.at(0, 300, 2)
    assert whole.shape == (CHANNELS, 300) and whole.dtype == torch.float32
    for start, count in ((0, 1), (1, 63), (63, 2), (64, 64), (100, 200), (299, 1)):
        assert torch.equal(noise.at(start, count, 2), whole[:, start : start + count])
        assert torch.equal(noise.window(start, count)(2), whole[:, start : start + count])


def test_other_seeds_steps_and_blocks_have_other_noise() -> None:
    big = 2**40  # a generator that kept 32 bits would take it for 0
    several = [
        FrameNoise(seed, 2).at(64 * block, 64, step) for seed in (0, 1, big) for block in (0, 1) for step in (0, 1)
    ]
    flat = torch.stack(several).flatten(1)
    close = torch.corrcoef(flat) - torch.eye(len(flat))
    assert close.abs().max() < 0.4  # 128 values each: 0.09 is one deviation


def test_noise_is_unit_normal() -> None:
    drawn = FrameNoise(seed=3, channels=64).at(0, 4096, 0).double()
    assert abs(drawn.mean().item()) < 0.01 and abs(drawn.std().item() - 1) < 0.01
    assert abs((drawn**4).mean().item() - 3) < 0.1
    assert abs((drawn[:, 1:] * drawn[:, :-1]).mean().item()) < 0.01
    assert FrameNoise(seed=0, channels=2).at(0, 1, 0).tolist() == FrameNoise(seed=0, channels=2).at(0, 1, 0).tolist()


@pytest.mark.parametrize("sampler", list(samplers))
def test_sampling_is_a_function_of_seed_and_condition(sampler: str) -> None:
    model, told = linear_model(), some_told()
    params = some_params(sampler=sampler)
    found = sample(model, told, num_frames=FRAMES, params=params)
    assert found.shape == (2, CHANNELS, FRAMES) and found.dtype == torch.float32
    assert torch.equal(found, sample(model, told, num_frames=FRAMES, params=params))
    assert not torch.allclose(
        found, sample(model, told, num_frames=FRAMES, params=some_params(sampler=sampler, seed=1))
    )
    assert told.aligned is not None
    alone = [sample(model, Told(clip[None]), num_frames=FRAMES, params=params) for clip in told.aligned]
    torch.testing.assert_close(torch.cat(alone), found)
    same = sample(model, Told(told.aligned[:1].repeat(2, 1, 1)), num_frames=FRAMES, params=params)
    torch.testing.assert_close(same[0], same[1])  # what is told decides alone


@pytest.mark.parametrize("sampler", list(samplers))
def test_a_network_that_looks_at_single_frames_makes_the_same_of_a_window(sampler: str) -> None:
    model, told, noise = linear_model(), some_told(), FrameNoise(0, CHANNELS)
    assert told.aligned is not None
    params = some_params(sampler=sampler)
    whole = sample(model, told, num_frames=FRAMES, params=params)
    window = Told(told.aligned[..., 70:110])
    found = sample(model, window, num_frames=40, params=params, noise=noise.window(70, 40))
    torch.testing.assert_close(found, whole[..., 70:110])


def test_frames_come_out_as_the_data_has_them() -> None:
    model = linear_model("x0")
    seen = []
    found = sample(
        model, some_told(), num_frames=FRAMES, params=some_params(), on_step=lambda t, x, x0: seen.append((t, x, x0))
    )
    assert len(seen) == 8 and seen[0][0] == model.schedule.num_timesteps - 1
    torch.testing.assert_close(found, model.normaliser.undo(seen[-1][2]), rtol=0, atol=0)
    assert torch.equal(seen[0][1], FrameNoise(0, CHANNELS).at(0, FRAMES, 0).expand(2, -1, -1))


def test_noise_scale_scales_what_is_drawn() -> None:
    model, seen = linear_model(), []
    sample(
        model,
        some_told(),
        num_frames=FRAMES,
        params=some_params(noise_scale=0.5),
        on_step=lambda t, x, x0: seen.append(x.clone()),
    )
    torch.testing.assert_close(seen[0], 0.5 * FrameNoise(0, CHANNELS).at(0, FRAMES, 0).expand(2, -1, -1))
    for sampler in samplers:  # without noise the seed says nothing
        still = [some_params(sampler=sampler, noise_scale=0, seed=seed) for seed in (0, 1)]
        one, other = (sample(model, some_told(), num_frames=FRAMES, params=params) for params in still)
        assert torch.equal(one, other)


def test_noise_of_each_clip_can_be_given() -> None:
    model = linear_model()
    apart = torch.stack([FrameNoise(seed, CHANNELS).at(0, FRAMES, 0) for seed in (0, 9)])
    told = some_told(1)
    assert told.aligned is not None
    found = sample(
        model, Told(told.aligned.repeat(2, 1, 1)), num_frames=FRAMES, params=some_params(), noise=lambda step: apart
    )
    assert not torch.allclose(found[0], found[1])


def test_regression_is_one_call_under_the_condition() -> None:
    model, told = linear_model(None), some_told()
    found = sample(model, told, num_frames=FRAMES, params=some_params(steps=500, guidance=3.0))
    assert isinstance(model.denoiser, LinearDenoiser) and model.denoiser.batches == [2]
    heard = model.denoiser.hear(model.told(told))
    guess = model.predict(torch.zeros(2, CHANNELS, FRAMES), torch.zeros(2, dtype=torch.int64), heard)
    torch.testing.assert_close(found, model.normaliser.undo(guess).detach(), rtol=0, atol=0)


def test_a_model_that_is_told_nothing_is_told_how_many() -> None:
    model = linear_model(condition_channels=0)
    params = some_params(guidance=1)
    assert sample(model, Told(), num_frames=16, params=params, num_clips=3).shape == (3, CHANNELS, 16)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sampler": "heun"}, "unknown sampler 'heun'; known: ancestral, ddim, dpm, dpm_sde"),
        ({"spacing": "karras"}, "unknown spacing 'karras'; known: log_snr, trailing"),
        ({"steps": 0}, "sampling.steps=0 must be a whole number from 1 on"),
        ({"steps": 2.5}, "sampling.steps=2.5 must be a whole number"),
        ({"guidance": float("nan")}, "sampling.guidance=nan must be a finite number"),
        ({"noise_scale": -1.0}, "sampling.noise_scale=-1 must be 0 or more"),
        ({"seed": -1}, "sampling.seed=-1 must be a whole number from 0 to"),
    ],
)
def test_parameters_out_of_range_get_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(MicroMusicGenError, match=line):
        some_params(**changes)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(MicroMusicGenError, match=r"sampler 'heun'.*; sampling.steps=0 .*; sampling.seed=-2 "):
        some_params(sampler="heun", steps=0, seed=-2)


def test_a_section_of_a_config_becomes_parameters() -> None:
    section = {"sampler": "ddim", "steps": 50, "guidance": 3, "noise_scale": 0.8, "spacing": None, "seed": 4}
    assert params_of(section) == SamplingParams(sampler="ddim", steps=50, guidance=3, noise_scale=0.8, seed=4)
    with pytest.raises(MicroMusicGenError, match=r"unknown key sampling.eta; known: .*; sampling.sampler is missing"):
        params_of({"steps": 50, "guidance": 3, "eta": 0})


def test_what_can_not_be_sampled_gets_one_line() -> None:
    with pytest.raises(MicroMusicGenError, match="sampling.steps=101 is not possible; this model has 1 to 100"):
        sample(linear_model(), some_told(), num_frames=FRAMES, params=some_params(steps=101))
    with pytest.raises(MicroMusicGenError, match="150 frames are not a multiple of the network's stride 8"):
        sample(linear_model(stride=8), some_told(), num_frames=FRAMES, params=some_params())
    model = linear_model()
    model.normaliser.fitted.fill_(False)
    with pytest.raises(MicroMusicGenError, match="normaliser was never fitted"):
        sample(model, some_told(), num_frames=FRAMES, params=some_params())
