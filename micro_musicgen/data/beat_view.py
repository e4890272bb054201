"""A track seen in beat time: as many samples every beat, whatever its tempo.

A loop (a whole number of beats) closes: its end is read as what comes before its start, and its length says the tempo.
It is repeated until it fills whole bars. Other tracks lose their last, partial beat. One shorter than a segment is
filled up with silence to whole bars and repeated, so that its beats stay where they are in the bar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from micro_musicgen.audio.io import CONTEXT_S, probe, read_audio
from micro_musicgen.audio.warp import to_beat_time
from micro_musicgen.data.bank import CHANGED_S, changed, shortest_within
from micro_musicgen.data.beat_grid import BeatSteps
from micro_musicgen.data.manifest import Track, TrackTempo
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

HAIR = 1e-3
"""Of a beat: what a length may lack of a whole one, by the rounding of tempo and duration."""
SLACK = 0.02
"""Of a bar: what a short track may be longer than whole bars and still be cut to them."""
STARTS_ON_BAR = 0.05
"""Of a beat: how far from a file's start its first beat may be, to be taken for the first of a bar."""


@dataclass(frozen=True)
class BeatView:
    """One track in beat time. Invariant: what it gives depends on the track and the fields alone.

    length: in samples, whole beats. loops: cuts wrap round its end. closes: it is a loop in truth, not filled up.
    """

    track: Track
    steps: BeatSteps
    length: int
    loops: bool
    closes: bool

    @classmethod
    def of(cls, track: Track, steps: BeatSteps, segment: int) -> BeatView:
        """Gives the view of a track whose tempo is known. segment: samples of a crop; what is shorter is repeated."""
        tempo, per_beat = track.tempo, steps.per_beat
        assert tempo is not None and tempo.bpm is not None, f"{track.path} has no tempo"
        if tempo.is_loop and tempo.beats and round(tempo.beats) >= 1:
            whole = math.lcm(round(tempo.beats), steps.beats_per_bar)
            return cls(track, steps, whole * per_beat, loops=True, closes=True)
        beats = (track.duration - tempo.offset_s) * tempo.bpm / 60
        whole = math.floor(beats + HAIR)
        if whole * per_beat >= segment:
            return cls(track, steps, whole * per_beat, loops=False, closes=False)
        bars = max(1, math.ceil(beats / steps.beats_per_bar - SLACK))
        return cls(track, steps, bars * steps.per_bar, loops=True, closes=False)

    def whole(self) -> npt.NDArray[np.float32]:
        """Gives the track, float32 [length], mono.

        Raises:
            MicroMusicGenError: the file is gone, damaged, or not the one that was prepared.
        """
        track, (bpm, offset_s) = self.track, self._tempo
        wav, sample_rate = read_audio(track.path)
        found_s = wav.shape[1] / sample_rate
        if abs(found_s - track.duration) > CHANGED_S:
            raise changed(track, found_s)
        offset_s = 0.0 if self.closes else offset_s
        mono = wav.mean(axis=0, dtype=np.float32)
        found = to_beat_time(
            mono, sample_rate, bpm, samples_per_beat=self.steps.per_beat, offset_s=offset_s, loops=self.closes
        )
        return np.resize(found.wav[0], self.length) if self.closes else _fitted(found.wav[0], self.length)

    def cut(self, start: int, size: int) -> npt.NDArray[np.float32]:
        """Gives float32 [size] from sample `start`, of a track that does not loop, reading no more of its file.

        The same as that part of `whole`, but for rounding.

        Raises:
            MicroMusicGenError: see `whole`.
        """
        assert not self.loops and start + size <= self.length, (start, size, self.length)
        track, (bpm, offset_s) = self.track, self._tempo
        begin_s = offset_s + start / self.steps.per_beat * 60 / bpm
        end_s = begin_s + size / self.steps.per_beat * 60 / bpm
        first = max(0, math.floor((begin_s - CONTEXT_S) * track.sample_rate))
        first_s = first / track.sample_rate
        try:
            wav, sample_rate = read_audio(track.path, start_s=first_s, duration_s=end_s + CONTEXT_S - first_s)
        except UnreadableAudioError:
            raise
        except MicroMusicGenError as error:  # it ends before first_s
            raise changed(track, probe(track.path).duration_s) from error
        reached_s = first_s + wav.shape[1] / sample_rate
        if sample_rate != track.sample_rate or end_s - reached_s > CHANGED_S:
            raise changed(track, reached_s)
        mono = wav.mean(axis=0, dtype=np.float32)
        found = to_beat_time(mono, sample_rate, bpm, samples_per_beat=self.steps.per_beat, offset_s=begin_s - first_s)
        return _fitted(found.wav[0], size)

    @property
    def _tempo(self) -> tuple[float, float]:
        tempo = self.track.tempo
        assert tempo is not None and tempo.bpm is not None, self.track
        return tempo.bpm, tempo.offset_s


class BeatBank:
    """`AudioBank` in beat time: cuts of `segment` samples. Invariant: a cut depends on (track, start) only.

    Tracks stay in memory as far as `ram_gb` of 1e9 bytes go, the shortest first.
    """

    def __init__(self, tracks: list[Track], steps: BeatSteps, *, segment: int, ram_gb: float) -> None:
        self.views = [BeatView.of(track, steps, segment) for track in tracks]
        self.lengths = [view.length for view in self.views]
        self._steps, self._segment = steps, segment
        self._resident = shortest_within(self.lengths, int(ram_gb * 1e9) // 4)
        self._held: dict[int, npt.NDArray[np.float32]] = {}

    def loops(self, index: int) -> bool:
        """Says whether cuts of a track wrap round its end."""
        return self.views[index].loops

    def start_of(self, index: int, position: float) -> int:
        """Gives the sample at which a cut of track `index` begins, `position` in [0, 1) of the beats or bars where it
        can.
        """
        return start_of(position, self.lengths[index], self._segment, self._steps, loops=self.loops(index))

    def cut_at(self, index: int, start: int, size: int | None = None) -> npt.NDArray[np.float32]:
        """Gives float32 [segment] (or [size]) from sample `start` of track `index`; loops wrap round, to the sample."""
        size = size or self._segment
        if not self.loops(index) and index not in self._resident:
            return self.views[index].cut(start, size)
        wav = self._whole(index)
        return wav[(start + np.arange(size)) % len(wav)] if self.loops(index) else wav[start : start + size]

    def _whole(self, index: int) -> npt.NDArray[np.float32]:
        if index in self._held:
            return self._held[index]
        wav = self.views[index].whole()
        if index in self._resident:
            self._held[index] = wav
        return wav


def starts_on_bar(tempo: TrackTempo) -> bool:
    """Says whether the first beat is known to be the first of a bar."""
    return tempo.offset_s * (tempo.bpm or 0.0) / 60 < STARTS_ON_BAR


def start_of(position: float, length: int, segment: int, steps: BeatSteps, *, loops: bool) -> int:
    """Gives where a crop of `segment` starts, `position` in [0, 1) of the beats or bars at which one can."""
    grain = steps.grain
    places = length // grain if loops else (length - segment) // grain + 1
    return int(position * places) * grain


def _fitted(wav: npt.NDArray[np.float32], length: int) -> npt.NDArray[np.float32]:
    """Gives [length]: what is more is left out, what lacks is silence."""
    return wav[:length] if len(wav) >= length else np.pad(wav, (0, length - len(wav)))
