"""Clock time to beat time and back: every beat gets the same number of samples, whatever the tempo.

Both ways are band-limited resampling along straight lines, one for each stretch of constant tempo. What a line starts
at is exact however long the sound is, so nothing drifts, and the stretches of a tempo map join without a click.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from micro_musicgen.audio.lines import Line, Samples, read_line
from micro_musicgen.audio.stretch import stretched
from micro_musicgen.errors import MicroMusicGenError

SAMPLES_PER_BEAT = 40_960
BPM_RANGE = (20.0, 1000.0)
"""Least and greatest tempo, beats a minute."""
LOOP_TOLERANCE = 0.02
"""Of a loop's length: what it may differ from a whole number of beats at the tempo that is told."""
MAX_SAMPLES_PER_BEAT = 1 << 22
MAX_OFFSET_S = 86_400.0
MAX_CHANGES = 100_000
"""Stretches of a tempo map at most."""


@dataclass(frozen=True)
class TempoMap:
    """A tempo that is constant piece by piece; the last piece goes on for ever, the first did before beat 0.

    beats: where each stretch begins, strictly rising from 0. bpms: of each, finite and within `BPM_RANGE`.
    """

    beats: tuple[float, ...]
    bpms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.beats) == len(self.bpms) <= MAX_CHANGES:
            raise MicroMusicGenError(
                f"a tempo map of {len(self.beats)} beats and {len(self.bpms)} tempos; give as many of both"
            )
        rises = self.beats[0] == 0 and all(a < b for a, b in itertools.pairwise(self.beats))
        if not rises or not math.isfinite(self.beats[-1]):
            raise MicroMusicGenError("the beats of a tempo map must rise from 0; sort them and give each once")
        for bpm in self.bpms:
            check_bpm(bpm)
        starts = [0.0]
        for index, (first, last) in enumerate(itertools.pairwise(self.beats)):
            starts.append(starts[-1] + (last - first) * 60 / self.bpms[index])
        object.__setattr__(self, "_starts_s", tuple(starts))

    @staticmethod
    def constant(bpm: float) -> TempoMap:
        """Gives the map of one tempo throughout."""
        return TempoMap((0.0,), (float(bpm),))

    @property
    def starts_s(self) -> tuple[float, ...]:
        """Gives where each stretch begins, in seconds after beat 0."""
        found: tuple[float, ...] = self.__dict__["_starts_s"]
        return found

    @property
    def is_constant(self) -> bool:
        """Says whether the tempo never changes."""
        return len(set(self.bpms)) == 1

    def seconds_at(self, beat: float) -> float:
        """Gives the time of a beat, in seconds after beat 0; negative before it."""
        index = max(0, bisect.bisect_right(self.beats, beat) - 1)
        return self.starts_s[index] + (beat - self.beats[index]) * 60 / self.bpms[index]

    def beat_at(self, second: float) -> float:
        """Gives the beat at a time in seconds after beat 0; negative before it."""
        index = max(0, bisect.bisect_right(self.starts_s, second) - 1)
        return self.beats[index] + (second - self.starts_s[index]) * self.bpms[index] / 60

    def mean_bpm(self, beats: float) -> float:
        """Gives the tempo that takes as long as this map for the first `beats` beats, a number above 0."""
        return 60 * beats / self.seconds_at(beats)

    def to_plain(self) -> dict[str, list[float]]:
        """Gives the map as JSON can hold it."""
        return {"beats": list(self.beats), "bpms": list(self.bpms)}

    @staticmethod
    def from_plain(plain: Any) -> TempoMap:
        """Gives the map that `to_plain` gave.

        Raises:
            MicroMusicGenError: it is no such thing.
        """
        if not isinstance(plain, Mapping) or set(plain) != {"beats", "bpms"}:
            raise MicroMusicGenError('a tempo map is {"beats": [...], "bpms": [...]}, nothing more')
        beats, bpms = plain["beats"], plain["bpms"]
        if not (
            isinstance(beats, list) and isinstance(bpms, list) and all(map(_is_number, itertools.chain(beats, bpms)))
        ):
            raise MicroMusicGenError("beats and bpms of a tempo map are lists of numbers")
        return TempoMap(tuple(map(float, beats)), tuple(map(float, bpms)))


Tempo = float | TempoMap


def _is_number(value: object) -> bool:
    """Says whether JSON's `value` is a number that a float holds."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53)


def check_bpm(bpm: float) -> float:
    """Gives `bpm`.

    Raises:
        MicroMusicGenError: it is no tempo.
    """
    low, high = BPM_RANGE
    if not low <= bpm <= high:  # NaN lies nowhere
        raise MicroMusicGenError(f"{bpm:g} BPM is no tempo; give one from {low:g} to {high:g}")
    return float(bpm)


def as_map(tempo: Tempo) -> TempoMap:
    """Gives a tempo as a map.

    Raises:
        MicroMusicGenError: a number that is no tempo.
    """
    return tempo if isinstance(tempo, TempoMap) else TempoMap.constant(tempo)


def beat_rate(bpm: float, samples_per_beat: int = SAMPLES_PER_BEAT) -> float:
    """Gives how many samples of beat time a second is, at this tempo."""
    return samples_per_beat * check_bpm(bpm) / 60


@dataclass(frozen=True, eq=False)
class BeatSamples:
    """Sound in beat time. wav: float32 [C, N * samples_per_beat], zero from `valid_samples` on."""

    wav: Samples
    valid_samples: int
    samples_per_beat: int

    @property
    def num_beats(self) -> int:
        """Gives how many beats there are, the last one perhaps in part."""
        return int(self.wav.shape[1]) // self.samples_per_beat

    @property
    def beats(self) -> Samples:
        """Gives the same samples as [N, samples_per_beat, C], without a copy."""
        return self.wav.reshape(len(self.wav), self.num_beats, self.samples_per_beat).transpose(1, 2, 0)


@dataclass(frozen=True)
class BeatPlan:
    """How a sound becomes beats. num_samples: of the sound. valid_samples: of beat time. loops: it is a closed loop."""

    num_samples: int
    sample_rate: int
    tempo: TempoMap
    samples_per_beat: int
    offset_s: float
    loops: bool
    valid_samples: int
    time_scale: float
    """What seconds of the tempo map are multiplied by: in a loop its length is the truth, not the stated tempo."""

    @property
    def num_beats(self) -> int:
        """Gives how many beats there are, the last one perhaps in part."""
        return -(-self.valid_samples // self.samples_per_beat)

    @property
    def effective_tempo(self) -> TempoMap:
        """Gives the tempo that the sound really has: of a loop, what its length says."""
        return TempoMap(self.tempo.beats, tuple(bpm / self.time_scale for bpm in self.tempo.bpms))

    def lines(self) -> Iterator[Line]:
        """Gives the lines along which the sound is read, those of all beats."""
        edges = [math.ceil(beat * self.samples_per_beat) for beat in self.tempo.beats[1:]]
        for index, (first, last) in enumerate(itertools.pairwise((0, *edges, self.valid_samples))):
            last = min(last, self.valid_samples)
            if first < last:
                step = 60 * self.sample_rate * self.time_scale / (self.tempo.bpms[index] * self.samples_per_beat)
                seconds = self.tempo.seconds_at(first / self.samples_per_beat) * self.time_scale
                yield Line((self.offset_s + seconds) * self.sample_rate, step, first, last)


def plan_beats(
    num_samples: int,
    sample_rate: int,
    tempo: Tempo,
    *,
    samples_per_beat: int = SAMPLES_PER_BEAT,
    offset_s: float = 0.0,
    loops: bool = False,
) -> BeatPlan:
    """Gives how `num_samples` at `sample_rate` become beats; see `to_beat_time`.

    Raises:
        MicroMusicGenError: see `to_beat_time`.
    """
    _check_rates(sample_rate, samples_per_beat)
    tempo_map, duration_s = as_map(tempo), num_samples / sample_rate
    if not abs(offset_s) <= MAX_OFFSET_S:
        raise MicroMusicGenError(
            f"beat 0 cannot be at {offset_s:g} s; give at most {MAX_OFFSET_S:g} s before or behind"
        )
    if loops:
        beats = tempo_map.beat_at(duration_s)
        whole = max(1, round(beats))
        time_scale = duration_s / tempo_map.seconds_at(whole)
        if abs(time_scale - 1) > LOOP_TOLERANCE:
            raise MicroMusicGenError(
                f"{duration_s:.3f} s are {beats:.3f} beats at {tempo_map.bpms[0]:g} BPM, no loop of whole ones; "
                "give its tempo, or treat it as no loop"
            )
        valid = whole * samples_per_beat
    else:
        time_scale = 1.0
        valid = round(tempo_map.beat_at(duration_s - offset_s) * samples_per_beat)
    if num_samples < 1 or valid < 1 or offset_s >= duration_s:
        raise MicroMusicGenError(
            f"nothing lies behind beat 0: it is at {offset_s:g} s of {duration_s:g} s; give an earlier one"
        )
    return BeatPlan(num_samples, sample_rate, tempo_map, samples_per_beat, offset_s, loops, valid, time_scale)


def to_beat_time(
    wav: Samples,
    sample_rate: int,
    tempo: Tempo,
    *,
    samples_per_beat: int = SAMPLES_PER_BEAT,
    offset_s: float = 0.0,
    loops: bool = False,
) -> BeatSamples:
    """Gives `wav` [C, L] or [L] in beat time. The last beat is padded with silence, never stretched.

    offset_s: where beat 0 lies; what comes before it is left out, and a negative one starts with silence. loops: the
    sound is a whole number of beats and closes, so its end comes before its start; its length says the tempo, and
    `tempo` only how many beats (within `LOOP_TOLERANCE`). Frequencies above half of `beat_rate` are left out.

    Raises:
        MicroMusicGenError: no tempo, no sound behind beat 0, or a loop that is no whole number of beats.
    """
    sound = _channels(wav)
    plan = plan_beats(
        sound.shape[1], sample_rate, tempo, samples_per_beat=samples_per_beat, offset_s=offset_s, loops=loops
    )
    beats = np.zeros((len(sound), plan.num_beats * samples_per_beat), np.float32)
    for at, block in beat_blocks(sound, plan):
        beats[:, at : at + block.shape[1]] = block
    return BeatSamples(beats, plan.valid_samples, samples_per_beat)


def beat_blocks(wav: Samples, plan: BeatPlan) -> Iterator[tuple[int, Samples]]:
    """Gives (first sample, float32 [C, n]) of beat time, block by block: of a long sound no second copy is needed."""
    assert wav.ndim == 2 and wav.shape[1] == plan.num_samples, f"{wav.shape} is not what the plan is for"
    for line in plan.lines():
        for at, block in read_line(wav, line, wraps=plan.loops):
            if not plan.loops:
                _silence_outside(block, line.at(at), line.step, wav.shape[1])
            yield at, block


def to_clock_time(
    wav: Samples,
    samples_per_beat: int,
    tempo: Tempo,
    sample_rate: int,
    *,
    loops: bool = False,
    keep_pitch: bool = False,
    recorded_tempo: Tempo | None = None,
    num_samples: int | None = None,
) -> Samples:
    """Gives beat time [C, M] or [M] as float32 [C, L] at `sample_rate`, played at `tempo`.

    M need not be whole beats: leave the padding out (`BeatSamples.valid_samples`). loops: the sound closes, and still
    does, at the sample. A tempo other than `recorded_tempo` moves the pitch; keep_pitch: it stays, and the sound is
    stretched by the library python-stretch. num_samples: L where it is known better than from tempo and rounding.

    Raises:
        MicroMusicGenError: no tempo, no sound, or keep_pitch without knowing the recorded tempo.
        MissingExtraError: keep_pitch without python-stretch.
    """
    _check_rates(sample_rate, samples_per_beat)
    sound, tempo_map = _channels(wav), as_map(tempo)
    if keep_pitch:
        if recorded_tempo is None:
            raise MicroMusicGenError("to keep the pitch, say at which tempo the sound was recorded")
        ratio = _tempo_ratio(as_map(recorded_tempo), tempo_map)
        if abs(ratio - 1) > 1e-9:
            as_recorded = to_clock_time(sound, samples_per_beat, recorded_tempo, sample_rate, loops=loops)
            seconds = tempo_map.seconds_at(sound.shape[1] / samples_per_beat)
            length = max(1, round(seconds * sample_rate)) if num_samples is None else num_samples
            return stretched(as_recorded, sample_rate, length, loops=loops)
    total = tempo_map.seconds_at(sound.shape[1] / samples_per_beat) * sample_rate
    length = max(1, round(total)) if num_samples is None else num_samples
    scale = length / total if loops else 1.0
    lines = list(_clock_lines(tempo_map, samples_per_beat, sample_rate, length, scale))
    clock = _read_lines(sound, lines, length, wraps=loops)
    if len(lines) > 1:
        # Where the tempo changes, what a filter hears on the other side is at another scale. What that got wrong is
        # seen by going back, and put right.
        back = BeatPlan(length, sample_rate, tempo_map, samples_per_beat, 0.0, loops, sound.shape[1], scale)
        missed = sound - _read_lines(clock, list(back.lines()), sound.shape[1], wraps=loops)
        clock += _read_lines(missed, lines, length, wraps=loops)
    return clock


def _read_lines(wav: Samples, lines: Sequence[Line], length: int, *, wraps: bool) -> Samples:
    """Gives float32 [C, length]: all lines, one behind the other."""
    made = np.zeros((len(wav), length), np.float32)
    for line in lines:
        for at, block in read_line(wav, line, wraps=wraps):
            made[:, at : at + block.shape[1]] = block[:, : length - at]
    return made


def _clock_lines(tempo: TempoMap, samples_per_beat: int, sample_rate: int, length: int, scale: float) -> Iterator[Line]:
    """Gives the lines along which beat time is read to become `length` samples, `scale` times as long as told."""
    edges = [math.ceil(second * sample_rate * scale) for second in tempo.starts_s[1:]]
    for index, (first, last) in enumerate(itertools.pairwise((0, *edges, max(length, *edges, 0)))):
        last = min(last, length)
        if first < last:
            step = tempo.bpms[index] * samples_per_beat / (60 * sample_rate * scale)
            yield Line(tempo.beat_at(first / (sample_rate * scale)) * samples_per_beat, step, first, last)


def _check_rates(sample_rate: int, samples_per_beat: int) -> None:
    if sample_rate < 1 or not 1 <= samples_per_beat <= MAX_SAMPLES_PER_BEAT:
        raise MicroMusicGenError(
            f"{samples_per_beat} samples a beat at {sample_rate} Hz: give 1 to {MAX_SAMPLES_PER_BEAT}, and 1 Hz or more"
        )


def _channels(wav: Samples) -> Samples:
    sound = np.atleast_2d(np.asarray(wav, dtype=np.float32))
    assert sound.ndim == 2, f"expected [L] or [C, L], got {np.shape(wav)}"
    if not sound.size:
        raise MicroMusicGenError("there is no sound to convert: 0 samples")
    return sound


def _silence_outside(block: Samples, start: float, step: float, length: int) -> None:
    """Sets to zero what lies before the sound or half a sample and more behind it: there, nothing is known."""
    before = math.ceil(-start / step - 1e-9)
    behind = math.floor((length - start) / step + 1) + 1
    block[:, : max(0, before)] = 0
    block[:, max(0, behind) :] = 0


def _tempo_ratio(recorded: TempoMap, played: TempoMap) -> float:
    """Gives how many times faster than recorded it is played.

    Raises:
        MicroMusicGenError: that changes on the way.
    """
    ratios = {
        round(played.bpms[bisect.bisect_right(played.beats, beat) - 1] / recorded.bpms[index], 9)
        for index, beat in enumerate(recorded.beats)
    } | {
        round(bpm / recorded.bpms[bisect.bisect_right(recorded.beats, beat) - 1], 9)
        for beat, bpm in zip(played.beats, played.bpms, strict=True)
    }
    if len(ratios) > 1:
        raise MicroMusicGenError(
            "the tempo changes differently than it did in the recording; the pitch can be kept for one ratio of both: "
            "resample instead, or give a tempo map in the recording's proportions"
        )
    return played.bpms[0] / recorded.bpms[0]
