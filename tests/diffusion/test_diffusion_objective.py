"""One conversion between what networks predict, clean frames and noise; and what a clip's error weighs."""

from __future__ import annotations

import math

import pytest
import torch

from micro_musicgen.diffusion.objective import loss_weight, loss_weights, noised, objectives
from micro_musicgen.diffusion.schedule import make_schedule
from micro_musicgen.errors import MicroMusicGenError


def some_frames(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 1, 4, 6, generator=generator, dtype=dtype)
    return x0, noise


@pytest.mark.parametrize("name", ["v", "eps", "x0"])
def test_every_prediction_gives_back_frames_and_noise_in_float64(name: str) -> None:
    objective, schedule = objectives.get(name), make_schedule("cosine", 800)
    kept = torch.from_numpy(schedule.alpha_bar64)[:, None, None]
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    x0, noise = (frames.expand(800, 4, 6) for frames in some_frames(torch.float64))
    x, prediction = noised(x0, noise, alpha, sigma), objective.target(x0, noise, alpha, sigma)
    torch.testing.assert_close(objective.x0(prediction, x, alpha, sigma), x0, rtol=0, atol=1e-5)
    torch.testing.assert_close(objective.noise(prediction, x, alpha, sigma), noise, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["v", "eps", "x0"])
def test_and_in_float32_where_something_of_the_clip_is_left(name: str) -> None:
    objective, schedule = objectives.get(name), make_schedule("cosine", 800)
    x0, noise = torch.randn(2, 800, 4, 6, generator=torch.Generator().manual_seed(0))
    t = torch.arange(800)
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    x, prediction = noised(x0, noise, alpha, sigma), objective.target(x0, noise, alpha, sigma)
    left = schedule.alpha(t) > 0.01
    assert int(left.sum()) > 790
    torch.testing.assert_close(objective.x0(prediction, x, alpha, sigma)[left], x0[left], rtol=0, atol=1e-5)
    torch.testing.assert_close(objective.noise(prediction, x, alpha, sigma)[left], noise[left], rtol=0, atol=1e-5)


def test_the_sign_of_v() -> None:
    """v is what x does when the angle grows: d(a x0 + s eps) / d(angle) at a = cos, s = sin."""
    x0, noise = some_frames(torch.float64)
    angle, small = 0.7, 1e-6
    ahead, behind = (noised(x0, noise, math.cos(turn), math.sin(turn)) for turn in (angle + small, angle - small))
    v = objectives.get("v").target(x0, noise, math.cos(angle), math.sin(angle))
    torch.testing.assert_close(v, (ahead - behind) / (2 * small), rtol=0, atol=1e-8)


SNRS = torch.tensor([1e-9, 1e-3, 0.5, 1.0, 4.0, 5.0, 6.0, 1e3, 1e9])


def test_min_snr_weighs_the_same_error_alike_in_every_prediction() -> None:
    """Two guesses at x0, told as v, as eps and as x0: weight times squared error is min(SNR, 5) times that in x0."""
    x0, noise = some_frames(torch.float64)
    guess = x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for snr in (0.01, 0.9, 4.9, 5.1, 80.0):
        alpha, sigma = math.sqrt(snr / (snr + 1)), math.sqrt(1 / (snr + 1))
        x = noised(x0, noise, alpha, sigma)
        for name in objectives:
            objective = objectives.get(name)
            told, meant = (objective.target(y, (x - alpha * y) / sigma, alpha, sigma) for y in (guess, x0))
            weight = loss_weight("min_snr", name)(torch.tensor([snr], dtype=torch.float64))
            found = weight * (told - meant).square().mean()
            torch.testing.assert_close(found, (min(snr, 5) * (guess - x0).square().mean())[None], rtol=1e-9, atol=0)


def test_the_weights_in_closed_form() -> None:
    assert loss_weight("uniform", "v")(SNRS).tolist() == [1.0] * len(SNRS)
    torch.testing.assert_close(loss_weight("min_snr", "v")(SNRS), SNRS.clamp(max=5) / (SNRS + 1))
    torch.testing.assert_close(loss_weight("min_snr", "eps")(SNRS), SNRS.clamp(max=5) / SNRS)
    torch.testing.assert_close(loss_weight("min_snr", "x0")(SNRS), SNRS.clamp(max=5))
    torch.testing.assert_close(loss_weight("inverse", "v")(SNRS), (2 / (SNRS + 1e-5)).clamp(max=10))
    torch.testing.assert_close(loss_weight("snr", "v")(SNRS), SNRS.clamp(max=10))


def test_the_references_weight_as_it_was_measured() -> None:
    schedule = make_schedule("cosine", 800)
    weights = loss_weight("inverse", "v")(schedule.snr(torch.arange(800)))
    assert weights[0].item() == pytest.approx(2e-4, rel=0.01)
    assert int((weights == 10).nonzero()[0]) == 584
    assert weights.mean().item() == pytest.approx(4.1, abs=0.05)


@pytest.mark.parametrize("name", list(loss_weights))
@pytest.mark.parametrize("objective", list(objectives))
def test_weights_are_finite_positive_and_of_each_clip_alone(name: str, objective: str) -> None:
    weight = loss_weight(name, objective)
    found = weight(SNRS)
    assert found.shape == SNRS.shape and bool(found.isfinite().all()) and bool((found > 0).all())
    torch.testing.assert_close(torch.cat([weight(snr[None]) for snr in SNRS]), found, rtol=0, atol=0)


def test_unknown_names_get_a_line_with_the_known_ones() -> None:
    with pytest.raises(
        MicroMusicGenError, match="unknown loss weight 'max_snr'; known: inverse, min_snr, snr, uniform"
    ):
        loss_weight("max_snr", "v")
    with pytest.raises(MicroMusicGenError, match="unknown objective 'score'; known: eps, v, x0"):
        loss_weight("uniform", "score")
