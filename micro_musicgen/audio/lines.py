"""Band-limited reading of a sound along a straight line: from any position on, at any step, the same however long.

soxr starts a block on a sample and steps by 32 bits of fraction, which is a hundredth of a sample off after some
minutes (40 dB at the top of the band). So blocks are short, each is shifted to its own exact start by a phase ramp of
its spectrum, and each is resampled with more of the sound on both sides than is kept. soxr's own filter loses 73 dB at
0.9 of the band, and again with each conversion. So it works at twice both rates, where its pass band is flat to 120 dB,
and the spectrum of the block is what limits the band.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

BLOCK_SAMPLES = 1 << 16
"""Samples made at once, at most, of each channel."""
_TAPER = 512
"""Samples faded in and out at the ends of a block, so that its spectrum can be turned as if it were periodic."""
_CONTEXT = 1024
"""Samples at the lower of both rates beyond what is kept; the filters are shorter."""
_PASSED = 0.95
"""Of the band of the lower rate: what is kept without loss."""


@dataclass(frozen=True)
class Line:
    """Samples `first` to `last` (not itself) of what is made lie at `start`, `start + step`... in what is read."""

    start: float
    step: float
    first: int
    last: int

    def at(self, index: int) -> float:
        """Gives where sample `index` of what is made lies in what is read."""
        return self.start + (index - self.first) * self.step


def read_line(wav: Samples, line: Line, *, wraps: bool) -> Iterator[tuple[int, Samples]]:
    """Gives (index, float32 [C, n]) along a line, block by block."""
    most = max(1, min(BLOCK_SAMPLES, int(BLOCK_SAMPLES / line.step)))
    for first in range(line.first, line.last, most):
        count = min(most, line.last - first)
        yield first, _resampled(wav, line.at(first), line.step, count, wraps=wraps)


def _resampled(wav: Samples, start: float, step: float, count: int, *, wraps: bool) -> Samples:
    import soxr

    whole = round(start)
    if step == 1 and start == whole:
        return _read(wav, whole, count, wraps=wraps).copy()
    before = math.ceil(_CONTEXT * max(1.0, 1 / step))
    begin = start - before * step
    first = math.floor(begin)
    needed = math.ceil((count + 2 * before) * step) + 2 * _TAPER + 2
    size = 1 << (needed - 1).bit_length()
    block = _read(wav, first - _TAPER, size, wraps=wraps).astype(np.float64)
    fade = np.sin(np.linspace(0, np.pi / 2, _TAPER)) ** 2
    block[:, :_TAPER] *= fade
    block[:, -_TAPER:] *= fade[::-1]
    turn = np.exp(2j * np.pi * np.fft.rfftfreq(size) * (begin - first))
    doubled = 2 * np.fft.irfft(np.fft.rfft(block) * turn, 2 * size)[:, 2 * _TAPER : 2 * needed]
    finer = 2 if step > 1 else 1
    made = soxr.resample(np.ascontiguousarray(doubled.T), 2 * step, finer, quality="VHQ").reshape(-1, len(wav)).T
    kept = (_halved(made) if finer == 2 else made)[:, before : before + count]
    assert kept.shape[1] == count, f"{kept.shape[1]} of {count} samples"
    return np.ascontiguousarray(kept, dtype=np.float32)


def _halved(wav: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gives every second sample of [C, L], without what lies in the upper half of the band."""
    size = 1 << (wav.shape[1] - 1).bit_length()
    low = np.fft.rfft(wav, size)[:, : size // 4 + 1]
    top = np.arange(low.shape[1]) / (low.shape[1] - 1)
    gain = np.cos(np.clip((top - _PASSED) / (1 - _PASSED), 0, 1) * np.pi / 2) ** 2
    return np.fft.irfft(low * gain, size // 2) / 2


def _read(wav: Samples, first: int, count: int, *, wraps: bool) -> Samples:
    """Gives float32 [C, count] from sample `first` on. Beyond its ends a sound is mirrored at the value of its last
    sample, which leaves no corner that would ring; a loop goes on.
    """
    length = wav.shape[1]
    if 0 <= first and first + count <= length:
        return wav[:, first : first + count]
    index = np.arange(first, first + count)
    if wraps:
        return wav[:, index % length]
    last = length - 1
    inside = wav[:, np.clip(index, 0, last)]
    mirrored = wav[:, np.clip(np.where(index < 0, -index, 2 * last - index), 0, last)]
    return np.where((index < 0) | (index > last), 2 * inside - mirrored, inside)
