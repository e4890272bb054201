"""Samplers against data whose best denoiser is known in closed form, and the steps that they stop at."""

from __future__ import annotations

import math

import pytest
import torch
from analytic_data import Line, Mixture, frechet, gaussian, sampled_moments, sliced

from micro_musicgen.diffusion.objective import objectives
from micro_musicgen.diffusion.samplers import default_spacings, half_log_snr, samplers, spacings, times
from micro_musicgen.diffusion.schedule import NoiseSchedule, make_schedule
from micro_musicgen.errors import MicroMusicGenError

COSINE = make_schedule("cosine", 800)
LINEAR = make_schedule("linear", 1000)


@pytest.mark.parametrize("sampler", list(samplers))
@pytest.mark.parametrize("objective", list(objectives))
@pytest.mark.parametrize("steps", [1, 2, 20, 200])
def test_a_network_that_knows_the_clip_is_led_to_it_at_unit_deviation(sampler: str, objective: str, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(1, 32, 256, generator=generator)
    clip = (clip - clip.mean()) / clip.std()
    conversion = objectives.get(objective)
    stds = []

    def denoise(x: torch.Tensor, t: int) -> torch.Tensor:
        kept = COSINE.alpha_bar64[t]
        alpha, sigma = math.sqrt(kept), math.sqrt(1 - kept)
        said = conversion.target(clip, (x - alpha * clip) / sigma, alpha, sigma)
        return conversion.x0(said, x, alpha, sigma) if t < 790 else clip  # eps in float32 has lost the clip up there

    found = samplers.get(sampler)(
        denoise,
        torch.randn(1, 32, 256, generator=generator),
        COSINE,
        times(COSINE, steps, default_spacings.get(sampler)),
        noise=lambda: torch.randn(1, 32, 256, generator=generator),
        on_step=lambda t, x, x0: stds.append(x.std().item()),
    )
    assert len(stds) == steps
    assert all(abs(std - 1) < 0.05 for std in stds), stds
    torch.testing.assert_close(found, clip, rtol=0, atol=1e-3)


def correlated(channels: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A mean and a covariance that ties every value of a clip to every other; deviations are 0.2 to 4.5."""
    width = channels * frames
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    variances = torch.logspace(math.log10(0.04), math.log10(20), width, dtype=torch.float64)
    return torch.randn(width, generator=generator, dtype=torch.float64), (directions * variances) @ directions.T


@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"),
    [("dpm", 20, 0.015), ("dpm", 50, 0.0025), ("dpm_sde", 50, 0.01), ("ddim", 400, 0.01), ("ancestral", None, 0.02)],
)
@pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_gaussian_data_comes_out_with_its_mean_and_covariance(
    schedule: NoiseSchedule, sampler: str, steps: int | None, tolerance: float
) -> None:
    channels, frames = (1, 3) if sampler == "ancestral" else (2, 4)
    mean, covariance = correlated(channels, frames)
    chosen = times(schedule, steps or schedule.num_timesteps, "log_snr")
    found = sampled_moments(sampler, gaussian(schedule, mean, covariance), schedule, chosen, channels, frames)
    torch.testing.assert_close(found[0], mean, rtol=0, atol=0.02)
    # L^-1 C L^-T is the identity when C is the covariance L L^T: every direction counts alike, however narrow.
    narrow = torch.linalg.inv(torch.linalg.cholesky(covariance))
    deviations = torch.linalg.eigvalsh(narrow @ found[1] @ narrow.T).sqrt()
    assert (deviations - 1).abs().max() < tolerance, deviations


def worst_deviation(sampler: str, steps: int, spacing: str) -> float:
    """Gives the largest relative error of a sampled deviation, of directions with deviations of 0.2 to 4.5."""
    variances = torch.tensor([0.04, 0.2, 1, 20], dtype=torch.float64)
    denoise = gaussian(COSINE, torch.zeros(4, dtype=torch.float64), variances.diag())
    _, found = sampled_moments(sampler, denoise, COSINE, times(COSINE, steps, spacing), 4, 1)
    return float((found.diag().sqrt() / variances.sqrt() - 1).abs().max())


def test_dpm_in_twenty_steps_is_as_near_to_gaussian_data_as_ancestral_in_all() -> None:
    assert worst_deviation("dpm", 20, "log_snr") < 0.014
    assert worst_deviation("ancestral", 800, "trailing") > 0.011
    assert worst_deviation("dpm_sde", 20, "log_snr") < 0.035 < worst_deviation("dpm_sde", 20, "trailing")


def test_the_spacing_of_dpm_is_the_one_that_misses_less() -> None:
    line, chosen = Line(), default_spacings.get("dpm")
    for steps in (20, 50):
        for other in set(spacings) - {chosen}:
            assert worst_deviation("dpm", steps, chosen) < 0.2 * worst_deviation("dpm", steps, other)
            assert from_line(line, "dpm", steps, chosen) < 0.6 * from_line(line, "dpm", steps, other)
            assert from_line(line, "ddim", steps, default_spacings.get("ddim")) < from_line(line, "ddim", steps, chosen)


def from_line(line: Line, sampler: str, steps: int, spacing: str) -> float:
    """Gives the distance of what a sampler that draws nothing makes of three clouds on a line."""
    chosen = times(COSINE, steps, spacing)
    denoise = line.mixture.denoise(COSINE)
    return line.distance(samplers.get(sampler)(denoise, line.noise, COSINE, chosen, noise=lambda: line.noise))


def test_twenty_steps_of_dpm_find_three_clouds_on_a_line() -> None:
    assert from_line(Line(), "dpm", 20, "log_snr") < 0.02
    assert from_line(Line(), "dpm", 100, "log_snr") < 0.003


def test_dpm_is_of_second_order_and_ddim_of_first() -> None:
    """Twice the steps leave a quarter, or a half, of the error."""
    fine = make_schedule("linear", 8000)  # so that whole steps are near the ones wanted
    variances = torch.tensor([0.25, 4.0], dtype=torch.float64)
    denoise = gaussian(fine, torch.zeros(2, dtype=torch.float64), variances.diag())

    def error(sampler: str, steps: int) -> float:
        _, found = sampled_moments(sampler, denoise, fine, times(fine, steps, "log_snr"), 2, 1)
        return float((found.diag().sqrt() / variances.sqrt() - 1).abs().max())

    assert error("dpm", 20) / error("dpm", 80) == pytest.approx(16, rel=0.25)
    assert error("ddim", 20) / error("ddim", 80) == pytest.approx(4, rel=0.1)


def test_ancestral_with_all_steps_is_ddpm() -> None:
    schedule = make_schedule("linear", 50)
    generator = torch.Generator().manual_seed(0)
    start, weight = torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64).unbind()
    weight = weight[0] / 5
    drawn = torch.randn(50, 3, 5, 5, generator=generator, dtype=torch.float64)
    rest = iter(drawn)
    found = samplers.get("ancestral")(
        lambda x, t: torch.tanh(weight @ x), start, schedule, list(range(49, -1, -1)), noise=lambda: next(rest)
    )
    x = start  # Ho et al., algorithm 2, with the posterior's variance
    for k, t in enumerate(range(49, -1, -1)):
        kept, before = schedule.alpha_bar64[t], schedule.alpha_bar64[t - 1] if t else 1.0
        beta = 1 - kept / before
        eps = (x - math.sqrt(kept) * torch.tanh(weight @ x)) / math.sqrt(1 - kept)
        x = (x - beta / math.sqrt(1 - kept) * eps) / math.sqrt(1 - beta)
        x = x + math.sqrt(beta * (1 - before) / (1 - kept)) * drawn[k]
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)


def test_one_step_of_dpm_is_its_papers() -> None:
    """x' = s'/s x - a' (e^-h - 1) D, D = (1 + 1/2r) x0 - 1/2r x0_before, at the third of four steps."""
    seen = []
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 4, generator=generator, dtype=torch.float64) / 4
    chosen = [700, 500, 350, 100]
    samplers.get("dpm")(
        lambda x, t: torch.tanh(weight @ x),
        torch.randn(2, 4, 3, generator=generator, dtype=torch.float64),
        COSINE,
        chosen,
        noise=lambda: torch.zeros(()),
        on_step=lambda t, x, x0: seen.append((x, x0)),
    )
    place = [half_log_snr(COSINE, t) for t in chosen]
    h, r = place[3] - place[2], (place[2] - place[1]) / (place[3] - place[2])
    drawn_out = (1 + 1 / (2 * r)) * seen[2][1] - 1 / (2 * r) * seen[1][1]
    sigma = [math.sqrt(1 - COSINE.alpha_bar64[t]) for t in chosen]
    wanted = sigma[3] / sigma[2] * seen[2][0] - math.sqrt(COSINE.alpha_bar64[100]) * math.expm1(-h) * drawn_out
    torch.testing.assert_close(seen[3][0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_what_draws_nothing_is_deterministic_and_clips_are_alone(sampler: str) -> None:
    def refuse() -> torch.Tensor:
        raise AssertionError("drew noise")

    mixture = Mixture(2, 5, seed=3)
    x = mixture.noise(6)
    run = samplers.get(sampler)
    chosen = times(COSINE, 12, default_spacings.get(sampler))
    together = run(mixture.denoise(COSINE), x, COSINE, chosen, noise=refuse)
    assert torch.equal(together, run(mixture.denoise(COSINE), x, COSINE, chosen, noise=refuse))
    alone = torch.cat([run(mixture.denoise(COSINE), one[None], COSINE, chosen, noise=refuse) for one in x])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)


def test_samplers_call_and_draw_as_often_as_they_say() -> None:
    for sampler, draws in (("ancestral", 6), ("ddim", 0), ("dpm", 0), ("dpm_sde", 6)):
        calls, drawn = [], []

        def noise(drawn: list[int] = drawn) -> torch.Tensor:
            drawn.append(1)
            return torch.zeros(1, 1, 1)

        samplers.get(sampler)(
            lambda x, t, calls=calls: calls.append(t) or x,  # type: ignore[misc]
            torch.ones(1, 1, 1),
            COSINE,
            times(COSINE, 7, "trailing"),
            noise=noise,
        )
        assert calls == times(COSINE, 7, "trailing") and len(drawn) == draws


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "clouds"), [(2, 5), (8, 6)])
def test_twenty_steps_of_dpm_are_as_good_as_all_of_ancestral_on_mixtures(channels: int, clouds: int) -> None:
    count = 8000
    mixture = Mixture(channels, clouds, seed=0)
    real, denoise = mixture.draw(count), mixture.denoise(COSINE)
    made = {}
    for sampler, steps in (("ancestral", 800), ("dpm", 20)):
        chosen = times(COSINE, steps, default_spacings.get(sampler))
        made[sampler] = samplers.get(sampler)(
            denoise, mixture.noise(count), COSINE, chosen, noise=lambda: mixture.noise(count)
        )
        assert (mixture.shares(made[sampler]) - mixture.shares(real)).abs().max() < 0.025
    by_chance = [mixture.draw(count) for _ in range(8)]
    for distance in (sliced, frechet):  # what two sets of real clips are apart is the least that can be told
        chance = max(distance(other, real) for other in by_chance)
        assert distance(made["dpm"], real) < 1.05 * distance(made["ancestral"], real) + chance


def test_steps_are_different_fall_and_begin_at_the_noisiest() -> None:
    for name in spacings:
        for schedule in (COSINE, LINEAR, make_schedule("cosine", 7), make_schedule("linear", 21)):
            total = schedule.num_timesteps
            for count in {1, 2, 3, 5, 7, 20, 21, 50, total - 1, total} & set(range(1, total + 1)):
                found = times(schedule, count, name)
                assert len(found) == count and found[0] == total - 1 and found[-1] >= 0
                assert all(a > b for a, b in zip(found, found[1:], strict=False)), found
            assert times(schedule, total, name) == list(range(total - 1, -1, -1))


def test_spacings_are_even_in_what_they_say() -> None:
    assert times(COSINE, 8, "trailing") == [799, 699, 599, 499, 399, 299, 199, 99]
    found = times(LINEAR, 10, "log_snr")
    widths = [half_log_snr(LINEAR, b) - half_log_snr(LINEAR, a) for a, b in zip(found[1:], found[2:], strict=False)]
    assert found[-1] == 0 and max(widths[:-2]) / min(widths[:-2]) < 1.1  # at the clean end steps are far apart


@pytest.mark.parametrize("count", [0, 801])
def test_a_number_of_steps_that_can_not_be_gets_one_line(count: int) -> None:
    with pytest.raises(MicroMusicGenError, match=f"sampling.steps={count} is not possible; this model has 1 to 800"):
        times(COSINE, count, "trailing")
