"""From noise to clean frames in as many calls of a network as wanted: samplers, and the steps that they stop at.

Every sampler is one function of one signature. With a, s = alpha, sigma of the step that x is at and a', s' those of
the next one, each gives x' from x and the guess x0 at the clean frames. The last guess is the result: behind the last
step lie a' = 1 and s' = 0, where all three formulas say x' = x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch

from micro_musicgen.diffusion.schedule import NoiseSchedule
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.registry import Registry

Denoise: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]
"""Gives the guess at the clean frames [B, D, T] for x [B, D, T] at step t."""

OnStep: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Hears (t, x, x0) of every call of the network: the step, the noisy frames there and the guess, both [B, D, T]."""


class Sampler(Protocol):
    """Gives clean frames [B, D, T] from x [B, D, T], which is as noisy as the first of `times`, steps in falling order.

    noise: gives fresh unit noise that broadcasts with x, once a step for samplers that draw. on_step: may look.
    """

    def __call__(
        self,
        denoise: Denoise,
        x: torch.Tensor,
        schedule: NoiseSchedule,
        times: Sequence[int],
        *,
        noise: Callable[[], torch.Tensor],
        on_step: OnStep | None = None,
    ) -> torch.Tensor:
        """Calls `denoise` once for each of `times`."""


samplers: Registry[Sampler] = Registry("sampler")


@samplers.register("ancestral")
def ancestral(
    denoise: Denoise,
    x: torch.Tensor,
    schedule: NoiseSchedule,
    times: Sequence[int],
    *,
    noise: Callable[[], torch.Tensor],
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """The posterior q(x' | x, x0) of the chain that stops at `times` only; with all T steps this is DDPM.

    Its mean is (r s'^2 x + a' b x0) / s^2 and its variance b s'^2 / s^2, with r = a / a' and b = 1 - r^2, the noise
    that comes in between (arXiv 2006.11239, eq. 6 and 7, for steps of any width).
    """
    for t, then in _pairs(times):
        x0 = _guess(denoise, x, t, on_step)
        if then is None:
            return x0
        now, kept = float(schedule.alpha_bar64[t]), float(schedule.alpha_bar64[then])
        added = 1 - now / kept
        mean = (math.sqrt(now / kept) * (1 - kept) * x + math.sqrt(kept) * added * x0) / (1 - now)
        x = mean + math.sqrt(added * (1 - kept) / (1 - now)) * noise()
    raise AssertionError("no steps")


@samplers.register("ddim")
def ddim(
    denoise: Denoise,
    x: torch.Tensor,
    schedule: NoiseSchedule,
    times: Sequence[int],
    *,
    noise: Callable[[], torch.Tensor],
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """x' = a' x0 + s' eps with the eps that x and x0 stand for (arXiv 2010.02502, eq. 12, eta = 0). Draws nothing."""
    for t, then in _pairs(times):
        x0 = _guess(denoise, x, t, on_step)
        if then is None:
            return x0
        x = _first_order(x, x0, schedule, t, then)
    raise AssertionError("no steps")


@samplers.register("dpm")
def dpm(
    denoise: Denoise,
    x: torch.Tensor,
    schedule: NoiseSchedule,
    times: Sequence[int],
    *,
    noise: Callable[[], torch.Tensor],
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M) on guesses at clean frames (arXiv 2211.01095, algorithm 2). Draws nothing.

    The DDIM step with x0 drawn out, in a straight line over half the log-SNR and by half the step's width h, from the
    last two guesses: x0 + (x0 - x0_before) h / (2 h_before). The first step has no guess before it and the last one has
    infinite width, so these two take x0 as it is.
    """
    before: tuple[torch.Tensor, float] | None = None  # the guess of the step before, and that step's width
    for t, then in _pairs(times):
        x0 = _guess(denoise, x, t, on_step)
        if then is None:
            return x0
        width = half_log_snr(schedule, then) - half_log_snr(schedule, t)
        drawn_out = _drawn_out(x0, width, before)
        x = _first_order(x, drawn_out, schedule, t, then)
        before = x0, width
    raise AssertionError("no steps")


@samplers.register("dpm_sde")
def dpm_sde(
    denoise: Denoise,
    x: torch.Tensor,
    schedule: NoiseSchedule,
    times: Sequence[int],
    *,
    noise: Callable[[], torch.Tensor],
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095, section 4.3): as `dpm`, and draws fresh noise at every step.

    With a width h, x' = (s' / s) e^-h x + a' (1 - e^-2h) x0 + s' (1 - e^-2h)^1/2 z. What a network gets wrong at one
    step is covered by noise at the next, as in the ancestral sampler, which the deterministic ones never do.
    """
    before: tuple[torch.Tensor, float] | None = None
    for t, then in _pairs(times):
        x0 = _guess(denoise, x, t, on_step)
        if then is None:
            return x0
        width = half_log_snr(schedule, then) - half_log_snr(schedule, t)
        drawn_out = _drawn_out(x0, width, before)
        now, kept, renewed = float(schedule.alpha_bar64[t]), float(schedule.alpha_bar64[then]), -math.expm1(-2 * width)
        x = (
            math.sqrt((1 - kept) / (1 - now)) * math.exp(-width) * x
            + math.sqrt(kept) * renewed * drawn_out
            + math.sqrt((1 - kept) * renewed) * noise()
        )
        before = x0, width
    raise AssertionError("no steps")


def _drawn_out(x0: torch.Tensor, width: float, before: tuple[torch.Tensor, float] | None) -> torch.Tensor:
    """Gives the guess half a step ahead, on the line through this one and the one before; see `dpm`."""
    return x0 if before is None else x0 + (x0 - before[0]) * (width / (2 * before[1]))


def half_log_snr(schedule: NoiseSchedule, t: int) -> float:
    """Gives log(alpha / sigma) at step t: the time in which the solvers' equations are simplest."""
    kept = float(schedule.alpha_bar64[t])
    return 0.5 * (math.log(kept) - math.log1p(-kept))


def _first_order(x: torch.Tensor, x0: torch.Tensor, schedule: NoiseSchedule, t: int, then: int) -> torch.Tensor:
    """a' x0 + s' (x - a x0) / s, with the factor of x0 in float64: a and a' s / s' may be close to each other."""
    now, kept = float(schedule.alpha_bar64[t]), float(schedule.alpha_bar64[then])
    ratio = math.sqrt((1 - kept) / (1 - now))
    return ratio * x + (math.sqrt(kept) - ratio * math.sqrt(now)) * x0


def _guess(denoise: Denoise, x: torch.Tensor, t: int, on_step: OnStep | None) -> torch.Tensor:
    x0 = denoise(x, t)
    if on_step is not None:
        on_step(t, x, x0)
    return x0


def _pairs(times: Sequence[int]) -> Iterator[tuple[int, int | None]]:
    """Gives each step with the next one, None behind the last."""
    yield from zip(times, [*times[1:], None], strict=True)


Spacing: TypeAlias = Callable[[NoiseSchedule, int], list[int]]
spacings: Registry[Spacing] = Registry("spacing")

default_spacings: Registry[str] = Registry("sampler")
"""The spacing that suits each sampler, by what 20 steps miss of analytic data under the cosine of 800 steps.

dpm, Gaussian data with deviations of 0.2 to 4.5: the sampled ones are off by at most 1.3 % (log_snr) or 8.6 %
(trailing), those of ancestral in all 800 steps by 1.2 %. On three clouds on a line, by 2-Wasserstein distance where 1
is the data's deviation, dpm misses 0.018 or 0.034, and ancestral in 800 steps 0.012. dpm_sde misses the deviations by
3.1 % or 7.8 %. The others are of first order and miss the clouds less when even in t: ddim 0.15 or 0.09, ancestral 0.25
or 0.14.
"""

default_spacings.register("ancestral")("trailing")
default_spacings.register("ddim")("trailing")
default_spacings.register("dpm")("log_snr")
default_spacings.register("dpm_sde")("log_snr")

LEAST_LOG_SNR = -9.0
"""One part of signal in 8,000 of noise: x says next to nothing about a clip there, and the guess is the mean of all."""


def times(schedule: NoiseSchedule, num_steps: int, spacing: str) -> list[int]:
    """Gives the steps that a sampler stops at: `num_steps` different ones of 0..T-1 in falling order, T-1 first.

    Raises:
        MicroMusicGenError: fewer than 1 or more than T, or nothing has the name `spacing`.
    """
    place = spacings.get(spacing)
    if not 1 <= num_steps <= schedule.num_timesteps:
        raise MicroMusicGenError(
            f"sampling.steps={num_steps} is not possible; this model has 1 to {schedule.num_timesteps} of them"
        )
    return place(schedule, num_steps)


@spacings.register("trailing")
def trailing(schedule: NoiseSchedule, num_steps: int) -> list[int]:
    """Even in t: the ends of `num_steps` equal parts of the T steps. The last one is not 0 unless it has to be."""
    total = schedule.num_timesteps
    return [round(total * part / num_steps) - 1 for part in range(num_steps, 0, -1)]


@spacings.register("log_snr")
def log_snr(schedule: NoiseSchedule, num_steps: int) -> list[int]:
    """Even in the log-SNR, from T-1 to 0. Where that asks for one step twice, the rest is spread evenly from the next.

    Steps below `LEAST_LOG_SNR` count as if they were there: the cosine would else spend a third of 20 steps on them.
    """
    place = np.log(schedule.alpha_bar64) - np.log1p(-schedule.alpha_bar64)  # falls with t
    chosen = [schedule.num_timesteps - 1]
    for left in range(num_steps - 1, 0, -1):
        last = chosen[-1]
        here = max(place[last], LEAST_LOG_SNR)
        nearest = int(np.abs(place - (here + (place[0] - here) / left)).argmin())
        chosen.append(min(max(nearest, left - 1), last - 1))  # a new one, with room for those to come
    return chosen
