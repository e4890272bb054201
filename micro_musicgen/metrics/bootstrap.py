"""How far a mean can be trusted: intervals by the bootstrap, over clips and never over frames, which hang together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from micro_musicgen.errors import MicroMusicGenError

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Gives [R] numbers of R samples [R, N] or [R, N, C]."""

LEVEL = 0.95
NUM_RESAMPLES = 2000
_MAX_CELLS = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A number and the interval that holds its true value with probability `level`; None where one clip tells nothing.

    n: clips (or tracks) that it was made of.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    level: float = LEVEL


def mean(samples: Array) -> Array:
    """Gives the means [R] of samples [R, N]."""
    means: Array = samples.mean(axis=1)
    return means


def ratio(samples: Array) -> Array:
    """Gives sum over sum, [R], of samples [R, N, 2]: a mean in which every clip has its own weight."""
    sums = samples.sum(axis=1)
    quotients: Array = sums[:, 0] / sums[:, 1]
    return quotients


def bootstrap(
    values: npt.ArrayLike,
    statistic: Statistic = mean,
    *,
    seed: int = 0,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """Gives `statistic` of values [N] or [N, C] with a bias-corrected and accelerated (BCa) interval.

    Efron and Tibshirani, An Introduction to the Bootstrap, chapter 14. The same seed gives the same interval.

    Raises:
        MicroMusicGenError: no values, NaN or infinity among them, or a level outside (0, 1).
    """
    rows = np.asarray(values, dtype=np.float64)
    if not rows.size or rows.ndim not in (1, 2):
        raise MicroMusicGenError(f"values of shape {rows.shape} have no mean; give at least one clip")
    if not np.isfinite(rows).all():
        raise MicroMusicGenError("NaN or infinity among the clips' values; check the clips that they come from")
    if not 0 < level < 1:
        raise MicroMusicGenError(f"level {level:g} must lie between 0 and 1")
    found = float(statistic(rows[None])[0])
    if len(rows) < 2:
        return Estimate(found, None, None, len(rows), level)
    drawn = _resampled(rows, statistic, np.random.default_rng(seed), num_resamples)
    low, high = _bca(found, drawn, _jackknife(rows, statistic), level)
    return Estimate(found, low, high, len(rows), level)


def proportion(hits: npt.ArrayLike, *, level: float = LEVEL) -> Estimate:
    """Gives the share of hits among yes and no [N] with Wilson's interval (1927).

    No bootstrap: none of 32 clips resampled are always none of 32, and that is not the same as never.

    Raises:
        MicroMusicGenError: no clips.
    """
    found = np.asarray(hits, dtype=np.float64)
    if not found.size or found.ndim != 1:
        raise MicroMusicGenError(f"hits of shape {found.shape} have no share; give at least one clip")
    n, share, z = len(found), float(found.mean()), NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), n, level)


def _resampled(rows: Array, statistic: Statistic, rng: np.random.Generator, num_resamples: int) -> Array:
    """Gives the statistic of as many samples drawn with replacement, sorted; in pieces, so that memory is bounded."""
    pieces, at_once = [], max(1, _MAX_CELLS // rows.size)
    for begin in range(0, num_resamples, at_once):
        few = min(at_once, num_resamples - begin)
        pieces.append(statistic(rows[rng.integers(len(rows), size=(few, len(rows)))]))
    return np.sort(np.concatenate(pieces))


def _jackknife(rows: Array, statistic: Statistic) -> Array:
    """Gives the statistic of the values without each one of them in turn."""
    return np.concatenate([statistic(np.delete(rows, index, axis=0)[None]) for index in range(len(rows))])


def _bca(found: float, drawn: Array, left_out: Array, level: float) -> tuple[float, float]:
    normal = NormalDist()
    # Half of the ties count as below: with few clips, or accuracies of 0 and 1, many resamples give the value itself.
    below = (np.sum(drawn < found) + 0.5 * np.sum(drawn == found)) / len(drawn)
    bias = normal.inv_cdf(float(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn))))
    spread = left_out.mean() - left_out
    size = float(np.square(spread).sum())
    acceleration = float((spread**3).sum()) / (6 * size**1.5) if size > 0 else 0.0
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(tail)
        share = normal.cdf(bias + z / max(1e-9, 1 - acceleration * z))
        ends.append(float(np.quantile(drawn, share)))
    return ends[0], ends[1]
