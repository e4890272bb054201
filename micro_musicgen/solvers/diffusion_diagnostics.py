"""What a diffusion run can be measured by besides its losses: errors by step, the schedule, the way of sampling.

Everything here gives plain numbers, as they stand in a run's `plots/EPOCH_diagnostics.json`; NaN is None there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from micro_musicgen.diffusion.model import LatentDiffusion, Loss
from micro_musicgen.diffusion.objective import Objective
from micro_musicgen.diffusion.schedule import NoiseSchedule

TIMESTEP_BINS = 20
MOMENTS = 8
"""Guesses along a sampling that are kept, and pictures in a strip."""
CURVE_POINTS = 100
STAGES = ("train", "valid")


@dataclass
class Looked:
    """The clips of one validation, in the order in which they were looked at.

    t: steps. mse, loss: unweighted and weighted error. std: of the prediction, over a clip's channels and frames.
    """

    t: list[int] = field(default_factory=list)
    mse: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)

    def add(self, loss: Loss) -> None:
        """Takes in a batch."""
        self.t += loss.t.tolist()
        self.mse += loss.mse.detach().tolist()
        self.loss += loss.loss.detach().tolist()
        self.std += loss.prediction.detach().float().flatten(1).std(dim=1, correction=0).tolist()


@dataclass
class Trace:
    """One sampling, call by call of the network: the step, deviations of x and of the guess x0 over all clips.

    kept: (t, x0 [D, T] of the first clip) of every 1st, 2nd, 4th, ... call, so that any number of calls costs the same.
    """

    t: list[int] = field(default_factory=list)
    x_std: list[float] = field(default_factory=list)
    x0_std: list[float] = field(default_factory=list)
    kept: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    _every: int = 1

    def __call__(self, t: int, x: torch.Tensor, x0: torch.Tensor) -> None:
        """Hears one call, as `diffusion.samplers.OnStep`."""
        if len(self.t) % self._every == 0:
            self.kept.append((int(t), x0[0].detach().float().cpu().clone()))
        if len(self.kept) > 2 * MOMENTS:
            self.kept = self.kept[::2]
            self._every *= 2
        self.t.append(int(t))
        for values, frames in ((self.x_std, x), (self.x0_std, x0)):
            values.append(float(frames.detach().float().std(correction=0)))

    def moments(self, number: int = MOMENTS) -> list[tuple[int, torch.Tensor]]:
        """Gives at most `number` of the guesses, spread over the calls; not the last one's, which is the result."""
        found = self.kept[:-1] if len(self.kept) > 1 and self.kept[-1][0] == self.t[-1] else self.kept
        return spread(found, number)

    def numbers(self) -> dict[str, Any]:
        """Gives the columns t, x_std and x0_std."""
        return {"t": self.t, "x_std": self.x_std, "x0_std": self.x0_std}


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """Gives at most `number` of the items, first and last among them, as evenly as it goes."""
    places = np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int)
    return [items[place] for place in places]


def curves(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """Gives loss, mse and mse_k1, mse_k2, ... by stage, a value per epoch; what never occurs is left out."""
    found: dict[str, dict[str, list[float | None]]] = {}
    names = {name for epoch in history for stage in STAGES for name in (epoch.get(stage) or {})}
    by_codebooks = sorted((name for name in names if name.startswith("mse_k")), key=lambda name: (len(name), name))
    for name in ("loss", "mse", *by_codebooks):
        for stage in STAGES:
            values = [plain((epoch.get(stage) or {}).get(name)) for epoch in history]
            values = [value if isinstance(value, (int, float)) else None for value in values]
            if any(value is not None for value in values):
                found.setdefault(name, {})[stage] = values
    return found


def by_timestep(looked: Looked, model: LatentDiffusion, schedule: NoiseSchedule) -> dict[str, Any] | None:
    """Gives, per bin of steps, how many clips, the deviation of the predictions, and the mean errors.

    target_std: what the target has for data of unit variance. fair_std: what a network with this error has if it says
    the mean of all that is possible, sqrt(target_std^2 - mse); one above it is surer than it has reason to be.
    None for a regression, which knows one step, and before anything was looked at.
    """
    objective = model.objective
    if objective is None or not looked.t:
        return None
    total = schedule.num_timesteps
    count = min(TIMESTEP_BINS, total)
    first = [math.ceil(index * total / count) for index in range(count + 1)]
    place = np.searchsorted(first, looked.t, side="right") - 1
    within = [place == index for index in range(count)]
    mse, power = (_bin_means(values, within) for values in (looked.mse, np.square(looked.std)))
    target = _target_std(objective, schedule)
    target_std = [float(target[start:end].mean()) for start, end in zip(first, first[1:], strict=False)]
    return {
        "first_t": first[:-1],
        "last_t": [start - 1 for start in first[1:]],
        "clips": [int(inside.sum()) for inside in within],
        "prediction_std": np.sqrt(power).tolist(),
        "target_std": target_std,
        "fair_std": np.sqrt(np.maximum(np.square(target_std) - mse, 0)).tolist(),
        "mse": mse.tolist(),
        "loss": _bin_means(looked.loss, within).tolist(),
    }


def _bin_means(values: Any, within: Sequence[Any]) -> np.ndarray:
    """Gives the mean of the values in each bin, NaN for empty ones."""
    array = np.asarray(values, dtype=float)
    return np.array([array[inside].mean() if inside.any() else math.nan for inside in within])


def _target_std(objective: Objective, schedule: NoiseSchedule) -> torch.Tensor:
    """Gives the deviation of the target at each step, float64 [T]: it is linear in two things of unit variance."""
    alpha, sigma = (torch.from_numpy(share**0.5) for share in (schedule.alpha_bar64, 1 - schedule.alpha_bar64))
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    return torch.hypot(objective.target(one, zero, alpha, sigma), objective.target(zero, one, alpha, sigma))


def snr_table(looked: Looked, model: LatentDiffusion, schedule: NoiseSchedule) -> dict[str, Any] | None:
    """Gives the schedule's log10 SNR and its loss weight at evenly spaced steps, and the SNR of the steps looked at.

    unit_t: the step whose SNR is nearest to 1. None for a regression.
    """
    if model.is_regression:
        return None
    snr = schedule.alpha_bar64 / (1 - schedule.alpha_bar64)
    steps = spread(range(schedule.num_timesteps), CURVE_POINTS)
    table: dict[str, Any] = {
        "t": steps,
        "log10_snr": np.log10(snr[steps]).tolist(),
        "weight": model.loss_weight(torch.from_numpy(snr[steps]).float()).tolist(),
        "unit_t": int(np.abs(np.log(snr)).argmin()),
    }
    if looked.t:
        found = snr[looked.t]
        values = {"mean": found.mean(), "median": np.median(found), "min": found.min(), "max": found.max()}
        table["looked_at"] = {"clips": len(looked.t), **{name: float(value) for name, value in values.items()}}
    return table


def plain(value: Any) -> Any:
    """Gives nested dicts and lists with None for every number that is not finite, as JSON needs it."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
