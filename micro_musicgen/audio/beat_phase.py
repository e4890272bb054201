"""Where the beats of a sound lie, once its tempo is known: the phase at which its attacks are strongest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.floating[Any]]

HOP_S = 0.005
WINDOW_S = 0.02
SEARCH = 0.02
"""Share by which a detected tempo may be off."""
SNAP_S = 0.03
"""A beat this near to the start of a file is its start: files are cut on their first beat, and attacks take a while."""
HARMONICS = 4
"""Sixteenth notes line up with beats too: with these the comb is sharp."""


def attacks(wav: npt.NDArray[np.float32], sample_rate: int) -> Numbers:
    """Gives how much louder each HOP_S of mono `wav` [L] is than the one before, in nat, 0 where it is not."""
    hop, size = max(1, round(HOP_S * sample_rate)), max(2, round(WINDOW_S * sample_rate))
    sharp = np.diff(wav.astype(np.float64), prepend=0.0)  # attacks are bright
    energy = np.cumsum(np.concatenate([[0.0], np.square(sharp)]))
    ends = np.minimum(np.arange(1, len(wav) // hop + 1) * hop, len(wav))
    power = (energy[ends] - energy[np.maximum(0, ends - size)]) / size
    loud = np.log(power + 1e-8 * max(float(power.max(initial=0.0)), 1e-12))
    rises: Numbers = np.maximum(np.diff(loud, prepend=loud[:1]), 0.0)
    return rises


def beat_phase(
    wav: npt.NDArray[np.float32], sample_rate: int, bpm: float, *, refine: bool = False
) -> tuple[float, float]:
    """Gives the tempo, and where the first beat of mono `wav` [L] lies in seconds, 0 or more and less than a beat.

    The beats are where the sum of attacks on them is largest. refine: the tempo may be off by `SEARCH`, and the one
    within it at which that sum is largest is taken: of a long sound a small error in it puts all beats elsewhere.
    """
    strength = attacks(wav, sample_rate)
    if not len(strength) or not strength.any():
        return bpm, 0.0
    hop_s = max(1, round(HOP_S * sample_rate)) / sample_rate
    times = np.arange(len(strength)) * hop_s
    kept = strength > 0
    times, strength = times[kept], strength[kept]
    tempos = _candidates(bpm, float(times[-1])) if refine else np.array([bpm])
    scores = [_score(strength, times, tempo / 60) for tempo in tempos]
    best = float(tempos[int(np.argmax(scores))])
    phase = _phase(strength, times, best / 60)
    beat_s = 60 / best
    offset_s = phase * beat_s % beat_s
    return best, 0.0 if min(offset_s, beat_s - offset_s) <= SNAP_S else offset_s


def _candidates(bpm: float, duration_s: float) -> Numbers:
    """Gives tempos around `bpm`, so close that from one to the next the last beat moves by a 64th of one."""
    beats = max(1.0, duration_s * bpm / 60)
    count = min(4000, math.ceil(SEARCH * beats * 64))
    return bpm * (1 + SEARCH * np.arange(-count, count + 1) / max(1, count))


def _score(strength: Numbers, times: Numbers, rate: float) -> float:
    return float(sum(abs(_sum(strength, times, rate * harmonic)) for harmonic in (1, 2, HARMONICS)))


def _sum(strength: Numbers, times: Numbers, rate: float) -> complex:
    return complex(np.sum(strength * np.exp(-2j * np.pi * rate * times)))


def _phase(strength: Numbers, times: Numbers, rate: float) -> float:
    """Gives the share of a beat at which the comb of beats fits best: the peak of a sum of harmonics."""
    grid = np.arange(960) / 960
    comb = np.zeros(len(grid))
    for harmonic in range(1, HARMONICS + 1):
        comb += np.real(_sum(strength, times, rate * harmonic) * np.exp(2j * np.pi * harmonic * grid))
    return float(grid[int(np.argmax(comb))])
