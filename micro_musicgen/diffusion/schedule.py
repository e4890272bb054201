"""How much of the clean frames is left at each step: x_t = alpha x0 + sigma noise, alpha^2 + sigma^2 = 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.registry import Registry

COSINE_OFFSET = 0.008
BETA_RANGE = (1e-4, 0.9999)
"""The cosine's betas are clipped to it: the first step is never free of noise, the last never nothing but noise."""

LINEAR_BETAS = (1e-4, 0.02)
LINEAR_TIMESTEPS = 1000


class NoiseSchedule(nn.Module):
    """Tables over the steps t = 0..T-1, 0 the cleanest. Invariant: they are float32 whatever the model is cast to, are
    no part of its state_dict, and were computed in float64.

    num_timesteps: T. alpha_bar64: float64 [T] on the CPU, alpha^2; samplers take their coefficients from it.
    """

    _alpha: torch.Tensor
    _sigma: torch.Tensor
    _snr: torch.Tensor
    _log_snr: torch.Tensor

    def __init__(self, alpha_bar: torch.Tensor) -> None:
        """alpha_bar: float64 [T], falling, every value between 0 and 1."""
        super().__init__()
        table = alpha_bar.detach().cpu().double().numpy().copy()
        assert table.ndim == 1 and len(table) >= 2, table.shape
        assert 0 < table[-1] and table[0] < 1 and (np.diff(table) < 0).all(), "alpha_bar has to fall, between 1 and 0"
        self.alpha_bar64: np.ndarray = table
        self.num_timesteps = len(table)
        for name, values in self._tables().items():
            self.register_buffer(name, values, persistent=False)

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """Gives the share of the clean frames, float32, for int64 steps t of any shape."""
        return self._alpha[t]

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Gives the share of the noise, float32, for int64 steps t of any shape."""
        return self._sigma[t]

    def snr(self, t: torch.Tensor) -> torch.Tensor:
        """Gives alpha^2 / sigma^2, float32, for int64 steps t of any shape."""
        return self._snr[t]

    def log_snr(self, t: torch.Tensor) -> torch.Tensor:
        """Gives the natural logarithm of `snr`, float32, for int64 steps t of any shape."""
        return self._log_snr[t]

    def _tables(self) -> dict[str, torch.Tensor]:
        kept, lost = self.alpha_bar64, 1 - self.alpha_bar64
        tables = {"_alpha": kept**0.5, "_sigma": lost**0.5, "_snr": kept / lost, "_log_snr": np.log(kept / lost)}
        return {name: torch.from_numpy(values).float() for name, values in tables.items()}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> NoiseSchedule:
        # model.bfloat16() would leave 8 bits of every coefficient, and to_empty() none: move, then fill again.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in self._tables().items():
            setattr(self, name, values.to(getattr(self, name).device))
        return self


MakeSchedule = Callable[[int], torch.Tensor]
"""Gives alpha_bar, float64 [T], for T steps."""

schedules: Registry[MakeSchedule] = Registry("noise schedule")


def make_schedule(name: str, num_timesteps: int) -> NoiseSchedule:
    """Gives the schedule called `name` with T = num_timesteps steps.

    Raises:
        MicroMusicGenError: nothing has that name, or it can't have so few steps.
    """
    alpha_bar = schedules.get(name)
    if num_timesteps < 2:
        raise MicroMusicGenError(f"diffusion.num_timesteps={num_timesteps} is too small; use 2 or more, such as 1000")
    return NoiseSchedule(alpha_bar(num_timesteps))


@schedules.register("cosine")
def cosine(num_timesteps: int) -> torch.Tensor:
    """Gives alpha_bar, float64 [T], of Nichol and Dhariwal's cosine (arXiv 2102.09672, eq. 17) with clipped betas.

    At T = 800 it goes from 0.9999 to 3.8e-10; its signal-to-noise ratio is 1 near t = 396.
    """
    place = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    wanted = torch.cos((place + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)).square()
    betas = (1 - wanted[1:] / wanted[:-1]).clamp(*BETA_RANGE)
    return torch.cumprod(1 - betas, dim=0)


@schedules.register("linear")
def linear(num_timesteps: int) -> torch.Tensor:
    """Gives alpha_bar, float64 [T], of betas that rise evenly from 1e-4 to 0.02 over 1000 steps (arXiv 2006.11239).

    There it ends at 4.04e-5. At another T both ends are scaled by 1000 / T, so that it ends about as noisy: with a
    little less left for fewer steps, 2.1e-5 at T = 100.

    Raises:
        MicroMusicGenError: T is so small that a beta would reach 1.
    """
    first, last = (beta * LINEAR_TIMESTEPS / num_timesteps for beta in LINEAR_BETAS)
    if last >= 1:
        least = int(LINEAR_BETAS[1] * LINEAR_TIMESTEPS) + 1
        raise MicroMusicGenError(
            f"diffusion.num_timesteps={num_timesteps} is too small for schedule=linear; use {least} or more, or cosine"
        )
    return torch.cumprod(1 - torch.linspace(first, last, num_timesteps, dtype=torch.float64), dim=0)
