"""Data whose best denoiser is a formula, so that what a sampler misses is the sampler's own."""

from __future__ import annotations

import math

import torch

from micro_musicgen.diffusion.samplers import Denoise, samplers
from micro_musicgen.diffusion.schedule import NoiseSchedule


def gaussian(schedule: NoiseSchedule, mean: torch.Tensor, covariance: torch.Tensor) -> Denoise:
    """Gives E[x0 | x] for x0 ~ N(mean, covariance) over the D * T values of a clip, float64."""
    variances, directions = torch.linalg.eigh(covariance)

    def denoise(x: torch.Tensor, t: int) -> torch.Tensor:
        kept = float(schedule.alpha_bar64[t])
        away = (x.flatten(1) - math.sqrt(kept) * mean) @ directions
        shrunk = away * (math.sqrt(kept) * variances / (kept * variances + 1 - kept))
        return (mean + shrunk @ directions.T).view_as(x)

    return denoise


def sampled_moments(
    sampler: str, denoise: Denoise, schedule: NoiseSchedule, times: list[int], channels: int, frames: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives mean [D * T] and covariance [D * T, D * T] of what a sampler makes of unit noise: exact, nothing is drawn.

    With Gaussian data a sampler is an affine map of all the noise that goes in. Clip 0 gets none, which gives the mean;
    each other clip gets a one in one place of one draw, which gives one column of the map.
    """
    width = channels * frames
    draws = len(times) if sampler in ("ancestral", "dpm_sde") else 1
    drawn = 0

    def noise() -> torch.Tensor:
        nonlocal drawn
        rows = torch.zeros(1 + draws * width, width, dtype=torch.float64)
        if drawn < draws:
            rows[1 + drawn * width : 1 + (drawn + 1) * width] = torch.eye(width, dtype=torch.float64)
        drawn += 1
        return rows.view(-1, channels, frames)

    made = samplers.get(sampler)(denoise, noise(), schedule, times, noise=noise).flatten(1)
    columns = made[1:] - made[0]
    return made[0], columns.T @ columns


class Mixture:
    """Round clouds: weights [K], means [K, D], deviations [K], float32. Mean 0, and variance 1 over all channels."""

    def __init__(self, channels: int, clouds: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = torch.linspace(1, 3, clouds)
        self.weights /= self.weights.sum()
        means, stds = torch.randn(clouds, channels, generator=self.generator), torch.linspace(0.15, 0.4, clouds)
        means -= (self.weights[:, None] * means).sum(0)
        whole = ((self.weights[:, None] * means**2).sum(0) + (self.weights * stds**2).sum()).mean().sqrt()
        self.means, self.stds = means / whole, stds / whole

    def noise(self, count: int) -> torch.Tensor:
        """Gives unit noise [count, D, 1]."""
        return torch.randn(count, self.means.shape[1], 1, generator=self.generator)

    def draw(self, count: int) -> torch.Tensor:
        """Gives real clips [count, D, 1]."""
        which = torch.multinomial(self.weights, count, True, generator=self.generator)
        return self.means[which][..., None] + self.stds[which][:, None, None] * self.noise(count)

    def shares(self, clips: torch.Tensor) -> torch.Tensor:
        """Gives the share of clips [N, D, 1] that lie nearest to each cloud, in its own deviations, [K]."""
        nearest = ((clips[:, None, :, 0] - self.means).norm(dim=-1) / self.stds).argmin(1)
        return torch.bincount(nearest, minlength=len(self.weights)) / len(clips)

    def denoise(self, schedule: NoiseSchedule) -> Denoise:
        """Gives E[x0 | x]: each cloud's own guess, weighed by how likely it is that x came from there."""

        def guess(x: torch.Tensor, t: int) -> torch.Tensor:
            kept = float(schedule.alpha_bar64[t])
            variances = kept * self.stds**2 + 1 - kept
            away = x[:, None, :, 0] - math.sqrt(kept) * self.means
            log_likely = self.weights.log() - 0.5 * (away.square().sum(-1) / variances + x.shape[1] * variances.log())
            guesses = self.means + (math.sqrt(kept) * self.stds**2 / variances)[:, None] * away
            return (log_likely.softmax(-1)[..., None] * guesses).sum(1)[..., None]

        return guess


class Line:
    """Three unequal clouds on a line, mean 0 and deviation 1, float64. A sampler that draws nothing maps a line to a
    line and keeps its order, so that quantiles go to quantiles and its distance from the data is exact.
    """

    def __init__(self, count: int = 2001) -> None:
        weights, stds = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([0.12, 0.2, 0.3]).double()
        means = torch.tensor([-1.6, -0.2, 1.4]).double()
        means -= (weights * means).sum()
        whole = (weights * (means**2 + stds**2)).sum().sqrt()
        self.mixture = Mixture(1, 3, seed=0)
        self.mixture.weights, self.mixture.means, self.mixture.stds = weights, means[:, None] / whole, stds / whole
        places = (torch.arange(count).double() + 0.5) / count
        self.noise = math.sqrt(2) * torch.erfinv(2 * places - 1)[:, None, None]
        grid = torch.linspace(-4, 4, 40001).double()
        below = (
            weights * (1 + torch.erf((grid[:, None] - self.mixture.means[:, 0]) / self.mixture.stds / 2**0.5))
        ).sum(1) / 2
        self.quantiles = grid[torch.searchsorted(below, places)]

    def distance(self, made: torch.Tensor) -> float:
        """Gives the 2-Wasserstein distance of what `noise` became, [count, 1, 1], from the data."""
        return float((made[:, 0, 0].sort().values - self.quantiles).square().mean().sqrt())


def frechet(one: torch.Tensor, other: torch.Tensor) -> float:
    """Gives the Frechet distance of the Gaussians that fit clips [N, D, 1] and [M, D, 1]."""
    one, other = one[..., 0].double(), other[..., 0].double()
    a, b = torch.cov(one.T), torch.cov(other.T)
    shared = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return float((one.mean(0) - other.mean(0)).square().sum() + a.trace() + b.trace() - 2 * shared)


def sliced(one: torch.Tensor, other: torch.Tensor) -> float:
    """Gives the sliced 2-Wasserstein distance of as many clips [N, D, 1] each, over 64 fixed directions."""
    directions = torch.randn(one.shape[1], 64, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=0)
    a, b = ((clips[..., 0] @ directions).sort(0).values for clips in (one, other))
    return float((a - b).square().mean().sqrt())
