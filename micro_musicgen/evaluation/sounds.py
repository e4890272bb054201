"""Real sounds to compare with: the tracks of a data set or a folder, their codes, and clips cut from them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from micro_musicgen import paths
from micro_musicgen.audio.io import load_mono
from micro_musicgen.contracts import BeatTime, Codec
from micro_musicgen.data.beat_tempos import with_tempos
from micro_musicgen.data.manifest import Track, TrackTempo, dataset_hash, read_manifest
from micro_musicgen.data.scan import find_audio, scan
from micro_musicgen.data.tokens import TokenSettings
from micro_musicgen.data.track_codes import encode_track
from micro_musicgen.errors import MicroMusicGenError, MissingFileError, UnreadableAudioError


@dataclass(frozen=True)
class SoundSet:
    """Tracks of real sound, at most `max_minutes` of them. total: tracks and seconds that there are.

    skipped: files of a folder that can't be read, with the reason.
    """

    name: str
    tracks: tuple[Track, ...]
    total: tuple[int, float]
    skipped: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Length of all tracks."""
        return sum(track.duration for track in self.tracks)

    def to_dict(self) -> dict[str, Any]:
        """Gives plain data for the report."""
        return {
            "name": self.name,
            "tracks": len(self.tracks),
            "seconds": round(self.seconds, 2),
            "of_tracks": self.total[0],
            "of_seconds": round(self.total[1], 2),
            "hash": dataset_hash(self.tracks),
            "skipped": list(self.skipped),
        }

    def describe(self) -> str:
        """Gives one line for a person."""
        part = "" if len(self.tracks) == self.total[0] else f" of {self.total[0]} ({self.total[1] / 60:.1f} min)"
        return f"{self.name}: {len(self.tracks)} tracks, {self.seconds / 60:.1f} min{part}"


def find_sounds(text: str, *, split: str, max_minutes: float, seed: int) -> SoundSet:
    """Gives the sounds that `text` names: a folder, else a data set of `prepare`.

    Raises:
        MissingFileError: neither exists.
        MicroMusicGenError: there is no readable sound in it.
    """
    folder = Path(text).expanduser()
    skipped: list[str] = []
    if folder.is_dir():
        tracks, skipped = _scanned(folder)
        if not tracks:
            reason = f" ({skipped[0]})" if skipped else ""
            raise MicroMusicGenError(f"{folder} holds no sound that can be read{reason}; name a folder of audio files")
        name = folder.resolve().name
    elif (paths.manifests_dir(text) / "train").is_dir() and Path(text).name == text:
        halves = ("train", "valid") if split == "both" else (split,)
        found = [track for half in halves for track in read_manifest(paths.manifests_dir(text) / half)]
        tracks, name = list({track.path: track for track in found}.values()), f"{text} ({split})"
    else:
        known = ", ".join(sorted(path.name for path in paths.manifests_dir("x").parent.glob("*"))) or "none"
        raise MissingFileError(f"{text!r} is no folder and no prepared data set (known: {known}); run prepare first")
    total = (len(tracks), sum(track.duration for track in tracks))
    return SoundSet(name, tuple(_some(tracks, max_minutes * 60, seed)), total, tuple(skipped))


def _scanned(folder: Path) -> tuple[list[Track], list[str]]:
    tracks, skipped = [], []
    for path in find_audio(folder).audio:
        try:
            sound = scan(path)
        except UnreadableAudioError as error:
            skipped.append(str(error))
            continue
        tracks.append(
            Track(str(path), sound.duration_s, sound.sample_rate, amplitude=sound.peak, audio_hash=sound.audio_hash)
        )
    return tracks, skipped


def _some(tracks: Sequence[Track], seconds: float, seed: int) -> Iterator[Track]:
    """Yields all tracks, or where they are too many a random choice that lasts about `seconds`, in their order."""
    kept, heard = set(), 0.0
    for index in np.random.default_rng(seed).permutation(len(tracks)):
        if heard < seconds:
            kept.add(int(index))
            heard += tracks[index].duration
    yield from (track for index, track in enumerate(tracks) if index in kept)


@dataclass(frozen=True)
class RealClips:
    """Clips of real sound. wavs: float32 [N, 1, L]. tracks: the place in the set of the track of each."""

    wavs: torch.Tensor
    tracks: tuple[int, ...]


def cut_clips(sounds: SoundSet, sample_rate: int, duration_s: float) -> RealClips:
    """Gives all clips of `duration_s` that lie one after the other in the tracks; a shorter track is looped to one."""
    length = round(duration_s * sample_rate)
    wavs: list[npt.NDArray[np.float32]] = []
    owners: list[int] = []
    for index, track in enumerate(sounds.tracks):
        loops = track.duration * sample_rate < length
        wav = load_mono(track.path, sample_rate, wraps=loops)
        wav = np.resize(wav, length) if len(wav) < length else wav
        for at in range(0, len(wav) - length + 1, length):
            wavs.append(wav[at : at + length])
            owners.append(index)
    return RealClips(torch.from_numpy(np.stack(wavs))[:, None], tuple(owners))


def track_codes(
    sounds: SoundSet, codec: Codec, window_s: float, time: BeatTime | None = None
) -> Iterator[torch.Tensor]:
    """Yields the codes int64 [K, T] of each track as training sees them: a track shorter than the window is looped.

    time: how the model counts; of a track whose tempo nobody can tell, that of the model is assumed.
    """
    segment, per_beat = round(window_s * codec.frame_rate), 0
    settings, tracks = TokenSettings(segment_s=window_s), list(sounds.tracks)
    if time is not None:
        per_beat = time.frames_per_beat
        settings = TokenSettings(window_s, frames_per_beat=per_beat, beats_per_bar=time.beats_per_bar)
        tracks = [_in_tempo(track, time) for track in with_tempos(tracks)]
    for track in tracks:
        codes, looped = encode_track(track, codec, settings)
        once = segment if time is None else max(segment, len(codes) - segment + per_beat)
        codes = codes[:once] if looped else codes
        yield torch.from_numpy(codes.astype(np.int64)).T


def _in_tempo(track: Track, time: BeatTime) -> Track:
    known = track.tempo is not None and track.tempo.bpm is not None
    return track if known else replace(track, tempo=TrackTempo(time.bpm, "assumed"))


def track_labels(sounds: SoundSet, attribute: str, labels_file: Path | None) -> list[str | None]:
    """Gives the label of each track, None where it has none: from a CSV, else what the data set knows of its tracks.

    Raises:
        MicroMusicGenError: the CSV can't be read or lacks a column.
    """
    if labels_file is not None:
        table = _read_labels(labels_file, attribute)
        return [next((table[key] for key in _keys(track.path) if key in table), None) for track in sounds.tracks]
    found = [(track.info or {}).get(attribute) for track in sounds.tracks]
    # Of several genres the first one counts: a classifier with one answer can't be right about two.
    firsts = [value[0] if isinstance(value, list) and value else value for value in found]
    return [None if value is None or value == [] else str(value) for value in firsts]


def _keys(path: str) -> tuple[str, ...]:
    return path, Path(path).name, Path(path).stem


def _read_labels(path: Path, attribute: str) -> dict[str, str]:
    """Gives labels by what the first column says: a path, a file's name, or that without its ending."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MicroMusicGenError(f"cannot read labels {path}: {error}; give a CSV of files and labels") from error
    if not lines or attribute not in lines[0]:
        columns = ", ".join(str(name) for name in lines[0]) if lines else "none"
        raise MicroMusicGenError(f"{path} has no column {attribute!r} (columns: {columns}); name one with --label")
    first = next(iter(lines[0]))
    return {str(line[first]): line[attribute] for line in lines if line[attribute]}
