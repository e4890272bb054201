"""The tempo that a sound plays: by its onsets, and by its length where that is a loop's.

A loop that a program cut is a whole number of bars, nearly always 1, 2, 4, 8, 16, at a whole number of beats a minute.
Its length then says the tempo to the sample, where onsets say it to a hundredth and may take three beats for four.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from micro_musicgen.errors import MissingExtraError

Numbers = npt.NDArray[np.float64]

LISTENED_RATE = 22_050
LISTENED_S = 90.0
"""What is listened to of a long sound, from its start on; a loop is shorter."""
LEAST_S = 0.5
HOP_SAMPLES = 128
NUM_BANDS = 40
TOP_DB = 60.0
"""Below the loudest moment: what is softer is no onset."""
BEAT_LAGS = ((0.25, 0.5), (0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (4.0, 1.5), (8.0, 1.0))
"""(beats, weight): after how long the onsets of a rhythm come again. Bars tell four beats from three."""
WHOLE_BPM_BONUS = 0.12
"""What it is worth that a length is of whole bars at a whole BPM: by chance that is so once in 80 times."""
DOUBLED_BARS_BONUS = 0.06
"""And that the number of beats is a power of two."""
FAINT = 0.3
"""A pulse fainter than this does not gainsay a length that has both."""
CLEAR = 0.4
"""How alike a steady rhythm is to itself a bar later, roughly: where confidence is full."""
NUM_TEMPOS = 1000


@dataclass(frozen=True)
class Heard:
    """A tempo, whether the length says that the sound is a loop of it, and from 0 to 1 how clearly."""

    bpm: float
    is_loop: bool
    confidence: float


def detect_tempo(
    wav: npt.NDArray[np.float32], sample_rate: int, duration_s: float, *, prior_bpm: float
) -> Heard | None:
    """Gives the tempo of `wav` [L], the beginning or all of a sound of `duration_s`; None for silence and single hits.

    It lies in the octave around `prior_bpm`: what comes again every half second does so every second, too.

    Raises:
        MissingExtraError: librosa is not installed.
    """
    if len(wav) < LEAST_S * sample_rate or not np.any(wav):
        return None
    alike = _self_similarity(_onsets(wav, sample_rate))
    if alike is None:
        return None
    frames_s = sample_rate / HOP_SAMPLES
    low = prior_bpm / 2**0.5
    tempos = low * 2 ** (np.arange(NUM_TEMPOS) / NUM_TEMPOS)
    pulses = _pulse(alike, 60 * frames_s / tempos)
    pulse, played = float(pulses.max()), float(tempos[pulses.argmax()])
    if duration_s <= LISTENED_S:
        best = max(_lengths(alike, frames_s, duration_s, low), default=None)
        if best is not None and (best.total >= pulse or (best.is_plain and pulse < FAINT)):
            confidence = min(1.0, max(best.total, 0.5 * CLEAR if best.is_plain else 0.0) / CLEAR)
            return Heard(best.bpm, True, confidence)
    return Heard(played, False, min(1.0, max(0.0, pulse) / CLEAR))


@dataclass(frozen=True, order=True)
class _Length:
    """What a length may be. total: all that speaks for it. is_plain: a power of two of beats at a whole BPM."""

    total: float
    bpm: float
    is_plain: bool


def _lengths(alike: Numbers, frames_s: float, duration_s: float, low: float) -> Iterator[_Length]:
    """Gives the tempos from `low` to twice that at which `duration_s` is one beat, two, or whole bars."""
    most = int(2 * low * duration_s / 60) + 1
    for beats in (1, 2, *range(4, most + 1, 4)):
        bpm = 60 * beats / duration_s
        if low <= bpm < 2 * low:
            # Half a sample at 22.05 kHz, the coarsest that loops come in, is what a length is rounded by.
            is_whole = abs(bpm - round(bpm)) < 0.005 + 0.5 * bpm / (duration_s * LISTENED_RATE)
            is_doubled = beats & (beats - 1) == 0
            pulse = float(_pulse(alike, np.array([60 * frames_s / bpm]))[0])
            total = pulse + WHOLE_BPM_BONUS * is_whole + DOUBLED_BARS_BONUS * is_doubled
            # A length alone, at any tempo, says nothing: some pulse must go with it.
            if is_whole or pulse > DOUBLED_BARS_BONUS:
                yield _Length(total, bpm, is_whole and is_doubled)


def _onsets(wav: npt.NDArray[np.float32], sample_rate: int) -> Numbers:
    """Gives how much louder each band becomes, [bands, frames]: drums are told apart by where they sound."""
    try:
        import librosa
    except ImportError as error:
        raise MissingExtraError(
            "finding a tempo by ear needs librosa; run: pip install 'micro-musicgen[beats]', or say the tempo"
        ) from error
    power = librosa.feature.melspectrogram(
        y=wav, sr=sample_rate, n_fft=1024, hop_length=HOP_SAMPLES, n_mels=NUM_BANDS, fmax=sample_rate / 2
    )
    rises = np.maximum(0.0, np.diff(librosa.power_to_db(power, top_db=TOP_DB), axis=1))
    nearby = np.exp(-0.5 * (np.arange(-8, 9) / 2.0) ** 2)  # a swung or played note is 10 ms off
    return np.stack([np.convolve(band, nearby / nearby.sum(), "same") for band in rises])


def _self_similarity(onsets: Numbers) -> Numbers | None:
    """Gives how alike the onsets are to themselves so many frames later, 1 for the same; None where there are none."""
    frames = onsets.shape[1]
    spectra = np.fft.rfft(onsets - onsets.mean(axis=1, keepdims=True), 2 * frames)
    found = np.fft.irfft((np.abs(spectra) ** 2).sum(axis=0))[:frames]
    if found[0] <= 1e-9:
        return None
    return np.asarray(found / found[0] * frames / (frames - np.arange(frames)), dtype=np.float64)


def _pulse(alike: Numbers, periods: Numbers) -> Numbers:
    """Gives how steady a pulse of each period (frames) is, -1 to 1. Lags near the whole length say nothing."""
    total, weight = np.zeros(len(periods)), np.zeros(len(periods))
    most = min(0.8 * len(alike), len(alike) - 2)
    for beats, worth in BEAT_LAGS:
        lags = beats * periods
        counts = worth * (lags <= most)
        total += counts * np.interp(lags, np.arange(len(alike)), alike)
        weight += counts
    return np.asarray(total / np.maximum(weight, 1e-9), dtype=np.float64)
