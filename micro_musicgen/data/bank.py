"""A data set's audio, mono at one rate: in memory as far as a budget goes, from the files beyond it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from micro_musicgen.audio.io import load_mono, probe, resampled_length
from micro_musicgen.data.manifest import Track
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

CHANGED_S = 0.1
"""A file that is this far from the length in its manifest has been changed; less is a length guessed from a header."""


class AudioBank:
    """Gives cuts of `segment` samples. Invariant: a cut depends on (track, start) and never on what was read before.

    Which tracks may stay in memory is settled at the start (the shortest, up to `ram_gb` of 1e9 bytes); they are
    decoded when first asked for. With another budget the same cut differs by rounding only (below 1e-5).
    """

    def __init__(self, tracks: Sequence[Track], *, sample_rate: int, segment: int, ram_gb: float) -> None:
        self._tracks = tuple(tracks)
        self._sample_rate = sample_rate
        self._segment = segment
        self.lengths = [resampled_length(t.num_samples, t.sample_rate, sample_rate) for t in self._tracks]
        self._resident = shortest_within(self.lengths, int(ram_gb * 1e9) // 4)
        self._held: dict[int, npt.NDArray[np.float32]] = {}

    def loops(self, index: int) -> bool:
        """Says whether cuts of a track wrap round its end."""
        return self.lengths[index] < self._segment

    def start_of(self, index: int, position: float) -> int:
        """Gives the sample at which a cut of track `index` begins, `position` in [0, 1) of the places where it can.

        A track shorter than a segment is a loop: a cut starts anywhere in it and wraps round its end.
        """
        length = self.lengths[index]
        if length < self._segment:
            return int(position * len(self._whole(index)))
        return int(position * (length - self._segment + 1))

    def cut_at(self, index: int, start: int, size: int | None = None) -> npt.NDArray[np.float32]:
        """Gives float32 [segment] from sample `start` of track `index`; one shorter than it wraps round, to the sample.

        size: another length, for tracks that are as long as a segment at least.
        """
        size = size or self._segment
        if index in self._resident or self.lengths[index] < self._segment:
            wav = self._whole(index)
            if min(len(wav), self.lengths[index]) < size:
                return wav[(start + np.arange(size)) % len(wav)]
            start = min(start, len(wav) - size)
            return wav[start : start + size]
        return self._from_file(index, start, size)

    def _whole(self, index: int) -> npt.NDArray[np.float32]:
        if index in self._held:
            return self._held[index]
        track, length = self._tracks[index], self.lengths[index]
        wav = load_mono(track.path, self._sample_rate, wraps=length < self._segment)
        if abs(len(wav) - length) > CHANGED_S * self._sample_rate:
            raise changed(track, len(wav) / self._sample_rate)
        if index in self._resident:
            self._held[index] = wav
        return wav

    def _from_file(self, index: int, start: int, size: int) -> npt.NDArray[np.float32]:
        track = self._tracks[index]
        start_s, duration_s = start / self._sample_rate, size / self._sample_rate
        try:
            wav = load_mono(track.path, self._sample_rate, start_s=start_s, duration_s=duration_s)
        except UnreadableAudioError:
            raise
        except MicroMusicGenError as error:  # it ends before start_s
            raise changed(track, probe(track.path).duration_s) from error
        missing = size - len(wav)
        if missing > CHANGED_S * self._sample_rate or missing > start:
            raise changed(track, start_s + len(wav) / self._sample_rate)
        return self._from_file(index, start - missing, size) if missing else wav


def shortest_within(lengths: Sequence[int], budget: int) -> frozenset[int]:
    """Gives the tracks that fit into `budget` samples together, shortest first."""
    chosen, used = set(), 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        used += lengths[index]
        if used > budget:
            break
        chosen.add(index)
    return frozenset(chosen)


def changed(track: Track, found_s: float) -> MicroMusicGenError:
    """Gives what is said of a file that is another one than when it was prepared."""
    return MicroMusicGenError(
        f"{track.path} is {found_s:.2f} s long now and was {track.duration:.2f} s when prepared; run prepare again"
    )
