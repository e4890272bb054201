"""What a network is asked for, and the one conversion between that, the clean frames and the noise.

With x = a x0 + s eps and a^2 + s^2 = 1, the pair (x, v) is the pair (x0, eps) turned by an angle. So v = a eps - s x0
is undone by the turn back, x0 = a x - s v and eps = s x + a v, at every a; the others divide by what may be small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.registry import Registry

Share: TypeAlias = torch.Tensor | float
"""alpha or sigma: a number, or a tensor that broadcasts with frames [B, D, T], such as [B, 1, 1]."""

Convert: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Share, Share], torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """A thing to predict. Invariant: with prediction = target(x0, noise, a, s) and x = noised(x0, noise, a, s), both
    x0(prediction, x, a, s) and noise(prediction, x, a, s) give back what went in. All take and give [B, D, T].

    target: of (x0, noise, alpha, sigma), what the network should say. x0, noise: of (prediction, x, alpha, sigma).
    """

    name: str
    target: Convert
    x0: Convert
    noise: Convert


objectives: Registry[Objective] = Registry("objective")


def noised(x0: torch.Tensor, noise: torch.Tensor, alpha: Share, sigma: Share) -> torch.Tensor:
    """Gives x = alpha x0 + sigma noise."""
    return alpha * x0 + sigma * noise


objectives.register("v")(
    Objective(
        "v",
        target=lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
        x0=lambda prediction, x, alpha, sigma: alpha * x - sigma * prediction,
        noise=lambda prediction, x, alpha, sigma: sigma * x + alpha * prediction,
    )
)
# Divides by alpha: under a schedule that ends near alpha = 0, as the cosine does, the first steps of a sampler blow up
# every error of the network. Take it with the linear schedule.
objectives.register("eps")(
    Objective(
        "eps",
        target=lambda x0, noise, alpha, sigma: noise,
        x0=lambda prediction, x, alpha, sigma: (x - sigma * prediction) / alpha,
        noise=lambda prediction, x, alpha, sigma: prediction,
    )
)
objectives.register("x0")(
    Objective(
        "x0",
        target=lambda x0, noise, alpha, sigma: x0,
        x0=lambda prediction, x, alpha, sigma: prediction,
        noise=lambda prediction, x, alpha, sigma: (x - alpha * prediction) / sigma,
    )
)


LossWeight: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Gives the weight of each clip's squared error, [B], for signal-to-noise ratios [B]."""

MIN_SNR_GAMMA = 5.0
REFERENCE_CEILING = 10.0


def _min_snr(objective: str) -> LossWeight:
    """min(SNR, 5) of the squared error in x0 (arXiv 2303.09556), told in the space of the prediction: at the same x, an
    error in x0 is 1 / sqrt(SNR) of one in eps, and 1 / sqrt(SNR + 1) of one in v.
    """
    factors: dict[str, LossWeight] = {
        "v": lambda snr: snr.clamp(max=MIN_SNR_GAMMA) / (snr + 1),
        "eps": lambda snr: (MIN_SNR_GAMMA / snr).clamp(max=1),
        "x0": lambda snr: snr.clamp(max=MIN_SNR_GAMMA),
    }
    if objective not in factors:
        raise MicroMusicGenError(f"loss_weight=min_snr is not known for objective {objective!r}; use uniform")
    return factors[objective]


loss_weights: Registry[Callable[[str], LossWeight]] = Registry("loss weight")
"""Each gives the weight for an objective's name."""

loss_weights.register("uniform")(lambda objective: torch.ones_like)
loss_weights.register("min_snr")(_min_snr)
# The reference's, written for v, and taken for any objective as they are. `inverse` all but ignores fine detail, `snr`
# all but ignores structure. Its two others are left out: one is divided by the mean of the batch, so that clips hear
# each other, and one gives negative weights.
loss_weights.register("inverse")(lambda objective: lambda snr: (2 / (snr + 1e-5)).clamp(max=REFERENCE_CEILING))
loss_weights.register("snr")(lambda objective: lambda snr: snr.clamp(max=REFERENCE_CEILING))


def loss_weight(name: str, objective: str) -> LossWeight:
    """Gives the weight called `name` for networks that predict `objective`.

    Raises:
        MicroMusicGenError: nothing has one of the names; the message lists the known ones.
    """
    return loss_weights.get(name)(objectives.get(objective).name)
