"""Noise schedules: where they start, end and cross, what they weigh in float32, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from micro_musicgen.diffusion.schedule import NoiseSchedule, make_schedule, schedules
from micro_musicgen.errors import MicroMusicGenError


def test_the_cosine_of_800_steps_goes_where_it_is_said_to() -> None:
    schedule = make_schedule("cosine", 800)
    assert schedule.num_timesteps == 800
    assert schedule.alpha_bar64[0] == pytest.approx(0.9999, rel=1e-12)  # its beta is clipped to 1e-4
    assert schedule.alpha_bar64[-1] == pytest.approx(3.8e-10, rel=0.01)
    assert int(np.abs(np.log(schedule.alpha_bar64 / (1 - schedule.alpha_bar64))).argmin()) == 396


def test_the_cosine_follows_its_closed_form_where_no_beta_is_clipped() -> None:
    schedule = make_schedule("cosine", 800)

    def wanted(t: float) -> float:
        return math.cos((t / 800 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (100, 400, 700):  # the first betas are clipped, so compare what happens between two steps
        assert schedule.alpha_bar64[t] / schedule.alpha_bar64[50] == pytest.approx(
            wanted(t + 1) / wanted(51), rel=1e-10
        )


def test_the_linear_schedule_ends_as_noisy_whatever_its_number_of_steps() -> None:
    assert make_schedule("linear", 1000).alpha_bar64[-1] == pytest.approx(4.04e-5, rel=0.002)
    assert make_schedule("linear", 1000).alpha_bar64[0] == pytest.approx(1 - 1e-4, rel=1e-12)
    for count in (200, 4000):
        assert math.log(make_schedule("linear", count).alpha_bar64[-1]) == pytest.approx(math.log(4.04e-5), rel=0.05)


@pytest.mark.parametrize("name", list(schedules))
@pytest.mark.parametrize("count", [21, 1000])
def test_alpha_and_sigma_lie_on_the_circle_and_agree_with_the_snr(name: str, count: int) -> None:
    schedule = make_schedule(name, count)
    t = torch.arange(count)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert alpha.dtype == sigma.dtype == schedule.snr(t).dtype == schedule.log_snr(t).dtype == torch.float32
    torch.testing.assert_close(alpha.double() ** 2 + sigma.double() ** 2, torch.ones(count).double(), rtol=0, atol=2e-7)
    torch.testing.assert_close(schedule.snr(t), alpha**2 / sigma**2, rtol=2e-6, atol=0)
    torch.testing.assert_close(schedule.log_snr(t), schedule.snr(t).log(), rtol=1e-5, atol=1e-5)
    assert bool((schedule.snr(t).diff() < 0).all())


def test_the_snr_is_right_where_float32_alphas_would_lose_it() -> None:
    exact = torch.tensor([1 - 1e-9, 0.5, 1e-12], dtype=torch.float64)
    schedule = NoiseSchedule(exact)
    assert schedule.snr(torch.tensor(0)).item() == pytest.approx(1e9, rel=1e-6)
    assert schedule.sigma(torch.tensor(0)).item() == pytest.approx(1e-9**0.5, rel=1e-6)
    assert schedule.snr(torch.tensor(2)).item() == pytest.approx(1e-12, rel=1e-6)


def test_steps_of_any_shape_are_looked_up() -> None:
    schedule = make_schedule("cosine", 50)
    t = torch.randint(0, 50, (2, 3, 4))
    assert schedule.alpha(t).shape == (2, 3, 4)
    assert schedule.log_snr(torch.tensor(7)).shape == ()


def test_tables_stay_out_of_the_state_dict_and_in_float32() -> None:
    schedule = make_schedule("cosine", 50)
    t = torch.arange(50)
    before = schedule.alpha(t).clone()
    assert not schedule.state_dict()
    torch.testing.assert_close(schedule.bfloat16().alpha(t), before, rtol=0, atol=0)
    torch.testing.assert_close(schedule.to_empty(device="cpu").alpha(t), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "count", "line"),
    [
        ("cosine", 1, "diffusion.num_timesteps=1 is too small; use 2 or more"),
        ("linear", 20, "diffusion.num_timesteps=20 is too small for schedule=linear; use 21 or more"),
        ("sigmoid", 100, "unknown noise schedule 'sigmoid'; known: cosine, linear"),
    ],
)
def test_what_can_not_be_made_gets_one_line(name: str, count: int, line: str) -> None:
    with pytest.raises(MicroMusicGenError, match=line):
        make_schedule(name, count)
