"""How well a loop closes: its joint against the beats inside, and its tempo against the one it was made at.

A joint lies on a beat, where attacks are. So it is compared with the other beats of the same loop, played round, and
not with what lies between them: no worse than inside is a ratio of 1 or less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from micro_musicgen.audio.beat_phase import HOP_S, attacks, beat_phase
from micro_musicgen.errors import MicroMusicGenError

Wav = npt.NDArray[np.floating]

CLICK_S = 0.0005
"""Half of the time that a click takes."""
AROUND_S = 0.01
"""Half of the time whose sound a click stands out of."""
NEAR_S = 0.02
"""How far from a beat its attack may lie."""
SPECTRUM_S = 0.02
"""How much of the sound before and after a beat its spectra are of."""
REFERENCE = 0.9
"""Share of the beats inside that the joint is allowed to be no worse than."""
GRID = 4
"""Sixteenth notes: what attacks are measured against."""
AUDIBLE = 0.1
"""Of the strongest attack: what is weaker is none."""
MIN_ATTACKS = 6
SCATTERED = 0.15
"""Of a sixteenth note: attacks that lie further from every grid, by the median, are on none (by chance it is 0.25)."""
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class LoopReport:
    """What was measured of one loop.

    seam_ratio: the larger of click_ratio (how its sharpest sample stands out) and flux_ratio (change of spectrum), each
    at the joint over what 90 % of the beats (of clicks, the sixteenth notes) inside stay below. joint_ms, inside_ms:
    how far attacks lie from the sixteenth notes, at the joint, and inside as a median; None where there are none.
    length_error, heard_error: of the tempo, as shares: by the number of samples, and by its attacks; None where they
    are on no grid.
    """

    seam_ratio: float
    click_ratio: float
    flux_ratio: float
    joint_ms: float | None
    inside_ms: float | None
    length_error: float
    heard_error: float | None


def measure_loop(wav: Wav, sample_rate: int, *, bpm: float, beats: int) -> LoopReport:
    """Gives the report of a mono loop [L] that was to be `beats` beats at `bpm`.

    Raises:
        MicroMusicGenError: less than two beats, or too short to have a joint.
    """
    mono = np.asarray(wav, dtype=np.float64)
    if mono.ndim != 1 or beats < 2 or len(mono) < 8 * NEAR_S * sample_rate:
        raise MicroMusicGenError(f"a loop to measure is mono and two beats long at least, got {mono.shape}, {beats}")
    click = _ratio(_clicks(mono, sample_rate, beats))
    flux = _ratio(_fluxes(mono, sample_rate, beats))
    joint_ms, inside_ms = _grid_errors(_attacks(mono, sample_rate, len(mono) / sample_rate / beats / GRID))
    return LoopReport(
        seam_ratio=max(click, flux),
        click_ratio=click,
        flux_ratio=flux,
        joint_ms=joint_ms,
        inside_ms=inside_ms,
        length_error=abs(beats * 60 * sample_rate / len(mono) / bpm - 1),
        heard_error=_heard_error(mono, sample_rate, bpm),
    )


def _ratio(at_beats: Wav) -> float:
    """Gives the value at the joint, which comes first, over what most of the others stay below."""
    joint, inside = float(at_beats[0]), float(np.quantile(at_beats[1:], REFERENCE, method="higher"))
    tiny = 1e-6 * float(at_beats.mean()) + _TINY
    return float((joint + tiny) / (inside + tiny))


def _places(length: int, beats: int) -> list[int]:
    return [round(beat * length / beats) for beat in range(beats)]


def _around(wav: Wav, at: int, half: int) -> Wav:
    """Gives [2 * half] samples around a place of a loop that is played round."""
    found: Wav = wav[np.arange(at - half, at + half) % len(wav)]
    return found


def _clicks(wav: Wav, sample_rate: int, beats: int) -> Wav:
    """Gives at each sixteenth note how much its sharpest sample nearby stands out of the sound around, as an amplitude.

    Sharp is a second difference, which a jump has most of. At the joint only the joint itself counts, where a jump
    would be; elsewhere an attack within NEAR_S, wherever it is.
    """
    sharp = np.square(np.diff(np.concatenate([wav[-1:], wav, wav[:1]]), n=2))
    narrow, wide = round(CLICK_S * sample_rate), round(AROUND_S * sample_rate)
    sums = np.cumsum(np.concatenate([[0.0], sharp[-wide:], sharp, sharp[:wide]]))
    at = np.arange(len(wav)) + wide
    outer, inner = sums[at + wide] - sums[at - wide], sums[at + narrow] - sums[at - narrow]
    around = np.maximum(outer - inner, 0.0) / (2 * (wide - narrow)) + 1e-12 * sharp.max(initial=0.0) + _TINY
    stands_out = np.sqrt(sharp / around)
    near = round(NEAR_S * sample_rate)
    places = _places(len(wav), GRID * beats)
    return np.array([_around(stands_out, at, 3 if at == 0 else near).max() for at in places])


def _fluxes(wav: Wav, sample_rate: int, beats: int) -> Wav:
    """Gives at each beat how much the spectrum after it differs from the one before, mean of |difference| in nat."""
    size = max(16, round(SPECTRUM_S * sample_rate))
    window = np.hanning(size)
    floor = 1e-3 * float(np.sqrt(np.square(wav).mean())) * np.sqrt(size) + _TINY
    found = []
    for at in _places(len(wav), beats):
        part = _around(wav, at, size)
        before, after = (np.log(np.abs(np.fft.rfft(half * window)) + floor) for half in (part[:size], part[size:]))
        found.append(float(np.abs(after - before).mean()))
    return np.array(found)


@dataclass(frozen=True)
class _Attacks:
    """When the attacks of a loop are, in s from its start, and how strong. step_s: of a grid that they may be on."""

    times: Wav
    strengths: Wav
    step_s: float

    def errors_s(self) -> Wav:
        """Gives how far each is from the grid. The detector lags, and what is common to all is no error."""
        errors = (self.times / self.step_s + 0.5) % 1.0 - 0.5
        shift = np.angle(np.sum(self.strengths * np.exp(2j * np.pi * errors))) / (2 * np.pi)
        found: Wav = ((errors - shift + 0.5) % 1.0 - 0.5) * self.step_s
        return found


def _attacks(wav: Wav, sample_rate: int, step_s: float) -> _Attacks:
    """Gives the attacks of a loop that is played round: peaks of what is audible of their strength."""
    strength = attacks(np.tile(wav, 3).astype(np.float32), sample_rate)
    hop_s, length_s = max(1, round(HOP_S * sample_rate)) / sample_rate, len(wav) / sample_rate
    loud = strength > AUDIBLE * strength.max(initial=0.0)
    peaks = loud[1:-1] & (strength[1:-1] >= strength[:-2]) & (strength[1:-1] > strength[2:])
    places = np.flatnonzero(peaks) + 1
    times = places * hop_s - length_s  # of the pass in the middle
    kept = (times >= -step_s / 2) & (times < length_s - step_s / 2)
    return _Attacks(times[kept], strength[places[kept]], step_s)


def _grid_errors(found: _Attacks) -> tuple[float | None, float | None]:
    """Gives how far attacks lie from the sixteenth notes in ms: at the joint, and inside, median."""
    errors_ms = 1000 * np.abs(found.errors_s())
    near = np.abs(found.times) < found.step_s / 2
    joint = float(errors_ms[near].min()) if near.any() else None
    return joint, (float(np.median(errors_ms[~near])) if (~near).any() else None)


def _heard_error(wav: Wav, sample_rate: int, bpm: float) -> float | None:
    """Gives how far off its attacks' tempo is, as a share: that of the grid from which they drift least."""
    about, _ = beat_phase(wav.astype(np.float32), sample_rate, bpm, refine=True)
    found = _attacks(wav, sample_rate, 60 / about / GRID)
    if len(found.times) < MIN_ATTACKS:
        return None
    errors = found.errors_s()
    if float(np.median(np.abs(errors))) > SCATTERED * found.step_s:
        return None
    drift = float(np.polyfit(found.times, errors, 1, w=np.sqrt(found.strengths))[0])
    return abs(about / (1 + drift) / bpm - 1)
