"""The tempos of a data set: told, read or found once, and kept in its manifests."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from micro_musicgen.audio.beat_phase import beat_phase
from micro_musicgen.audio.io import load_mono
from micro_musicgen.audio.tempo import UNSURE, FoundTempo, find_tempo
from micro_musicgen.data.info import BPM_RANGE
from micro_musicgen.data.manifest import Track, TrackTempo, read_manifest, write_manifest
from micro_musicgen.errors import MicroMusicGenError

Progress = Callable[[int, int], None]

UNKNOWN = TrackTempo(None, "none")
LISTENED_S = 120.0
"""Seconds at a file's start in which its beats are looked for."""
LISTENED_RATE = 16_000
_MAX_NAMED = 5


@dataclass(frozen=True)
class Tempos:
    """What is known of the tempos of some tracks. Only `tracks` can be used in beat time; `left_out` have none."""

    tracks: tuple[Track, ...]
    left_out: tuple[Track, ...] = ()

    @classmethod
    def of(cls, tracks: Sequence[Track]) -> Tempos:
        """Sorts tracks by whether their tempo is known."""
        known = tuple(track for track in tracks if _bpm(track) is not None)
        return cls(known, tuple(track for track in tracks if _bpm(track) is None))

    @property
    def median_bpm(self) -> float:
        """The tempo that half of all beats are slower than, to a tenth."""
        return weighted_median([(_bpm(track) or 0.0, track.duration) for track in self.tracks])

    @property
    def bpm_range(self) -> tuple[float, float]:
        """The slowest and the fastest."""
        found = [_bpm(track) or 0.0 for track in self.tracks]
        return round(min(found), 2), round(max(found), 2)

    def counts(self) -> dict[str, int]:
        """Gives how many tempos came from where, most first."""
        sources = Counter(track.tempo.source for track in self.tracks if track.tempo is not None)
        return dict(sorted(sources.items(), key=lambda item: (-item[1], item[0])))

    def to_dict(self) -> dict[str, Any]:
        """Gives plain data for `--json`."""
        known = {"median_bpm": self.median_bpm, "bpm_range": list(self.bpm_range)} if self.tracks else {}
        return {
            "num_known": len(self.tracks),
            **known,
            "sources": self.counts(),
            "left_out": [Path(track.path).name for track in self.left_out],
        }

    def lines(self) -> list[str]:
        """Gives what to tell a person."""
        lines = []
        if self.tracks:
            low, high = self.bpm_range
            origins = ", ".join(f"{source} {number}" for source, number in self.counts().items())
            loops = sum(track.tempo is not None and track.tempo.is_loop for track in self.tracks)
            lines.append(
                f"tempo of {len(self.tracks)} files: {low:g} to {high:g} BPM, median {self.median_bpm:g} ({origins}); "
                f"{loops} are loops"
            )
        if self.left_out:
            named = ", ".join(Path(track.path).name for track in self.left_out[:_MAX_NAMED])
            more = len(self.left_out) - _MAX_NAMED
            named += f" and {more} more" if more > 0 else ""
            lines.append(
                f"left out of beat time, for nobody can tell their tempo: {named}; "
                'name them like loop_172bpm.wav, or give "bpm" in a metadata file'
            )
        return lines


def weighted_median(pairs: Sequence[tuple[float, float]]) -> float:
    """Gives the value below which half of the weight of (value, weight) lies, to a tenth."""
    half, sum_so_far = sum(weight for _, weight in pairs) / 2, 0.0
    for value, weight in sorted(pairs):
        sum_so_far += weight
        if sum_so_far >= half:
            return round(value, 1)
    return round(statistics.median(value for value, _ in pairs), 1)


def track_tempo(track: Track, *, bpm: float | None = None) -> TrackTempo:
    """Gives the tempo of one track, and where its beats lie; `UNKNOWN` when it can't be told. bpm: what it is told."""
    found = find_tempo(track.path, bpm=bpm, info=track.info)
    if not BPM_RANGE[0] <= found.bpm <= BPM_RANGE[1] or found.confidence < UNSURE:  # NaN, too, is no tempo
        return UNKNOWN
    exact = found.bpm if not (found.is_loop and found.beats) else 60 * round(found.beats) / track.duration
    tempo = TrackTempo(exact, found.source, found.beats, found.is_loop)
    return tempo if tempo.is_loop else _placed(track, tempo, found)


def _placed(track: Track, tempo: TrackTempo, found: FoundTempo) -> TrackTempo:
    """Gives the tempo with the place of the first beat, and a detected one more exactly than it was detected."""
    wav = load_mono(track.path, LISTENED_RATE, duration_s=min(track.duration, LISTENED_S))
    bpm, offset_s = beat_phase(wav, LISTENED_RATE, found.bpm, refine=found.source == "detected")
    return replace(tempo, bpm=bpm, beats=track.duration * bpm / 60, offset_s=offset_s)


def with_tempos(tracks: Sequence[Track], *, bpm: float | None = None, progress: Progress | None = None) -> list[Track]:
    """Gives the tracks with their tempos, those that lack one looked for. bpm: that of all; then no old one counts.

    progress(done, total) counts tracks that are looked for.
    """
    wanted = [index for index, track in enumerate(tracks) if bpm is not None or track.tempo is None]
    found = list(tracks)
    for done, index in enumerate(wanted, 1):
        try:
            tempo = track_tempo(tracks[index], bpm=bpm)
        except MicroMusicGenError:  # of all that can be wrong with a sound, its reader will tell
            tempo = UNKNOWN
        found[index] = replace(tracks[index], tempo=tempo)
        if progress is not None:
            progress(done, len(wanted))
    return found


def carried_over(tracks: Sequence[Track], old: Sequence[Track]) -> list[Track]:
    """Gives the tracks with the tempos that the same sounds had in `old`, so that none is looked for twice."""
    known = {track.audio_hash: track.tempo for track in old if track.audio_hash is not None and track.tempo is not None}
    return [replace(track, tempo=known.get(track.audio_hash or "")) for track in tracks]


def read_tempos(folder: Path | str, progress: Progress | None = None) -> Tempos:
    """Gives the tracks of a split with their tempos. What has to be looked for is, and kept in the manifest.

    Raises:
        MicroMusicGenError: as `read_manifest`, or no track has a tempo.
    """
    tracks = read_manifest(folder)
    if any(track.tempo is None for track in tracks):
        tracks = with_tempos(tracks, progress=progress)
        write_manifest(folder, tracks)
    found = Tempos.of(tracks)
    if not found.tracks:
        raise MicroMusicGenError(
            f"none of the {len(tracks)} files in {folder} has a tempo that can be told; run micro-musicgen prepare "
            "again with --bpm, name them like loop_172bpm.wav, or train with --time clock"
        )
    return found


def _bpm(track: Track) -> float | None:
    return None if track.tempo is None else track.tempo.bpm
