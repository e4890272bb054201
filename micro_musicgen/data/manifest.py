"""Manifests: which files a data set holds, one JSON line each, as audiocraft's AudioDataset reads them.

A folder `egs/NAME/train` with `data.jsonl.gz` is one split. Our lines carry keys more than audiocraft's: `audio_hash`
and, where they are known, `info` (about the sound) and `tempo`. Its reader passes over them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from micro_musicgen import storage
from micro_musicgen.data.info import BPM_RANGE
from micro_musicgen.errors import MicroMusicGenError, MissingFileError

MANIFEST_NAME = "data.jsonl.gz"
_PLAIN_NAME = "data.jsonl"


@dataclass(frozen=True)
class TrackTempo:
    """How fast a sound is. bpm: None where it was looked for and could not be told.

    source: given, name, tag, length, detected, or none. beats: length of the sound, None where it is not known.
    is_loop: that is a whole number. offset_s: where a beat lies, from which beats are counted; 0 in loops.
    """

    bpm: float | None
    source: str = "given"
    beats: float | None = None
    is_loop: bool = False
    offset_s: float = 0.0

    @property
    def key(self) -> list[float | None]:
        """What of it shapes the sound in beat time, as plain data."""
        return [self.bpm, self.offset_s, round(self.beats) if self.is_loop and self.beats else None]


@dataclass(frozen=True)
class Track:
    """One audio file of a data set. The first six names are audiocraft's.

    path: absolute, with forward slashes. duration: seconds. amplitude: peak of the samples. weight: how often it is
    drawn compared with others of its length, None for 1. info_path: audiocraft's metadata file, unused here.
    audio_hash: names the decoded samples whatever the file is called; None in manifests that others wrote.
    info: what is known about the sound as plain JSON (`data/info.py` lists the fields), None for nothing. It is no
    part of what names a sound: neither the hash of a data set nor a token store depends on it. tempo: how fast it is,
    None where nobody asked yet; only what is made in beat time depends on it.
    """

    path: str
    duration: float
    sample_rate: int
    amplitude: float | None = None
    weight: float | None = None
    info_path: str | None = None
    audio_hash: str | None = None
    info: dict[str, Any] | None = field(default=None, hash=False)
    tempo: TrackTempo | None = None

    @property
    def num_samples(self) -> int:
        """Length in samples of one channel, at the file's own rate."""
        return round(self.duration * self.sample_rate)

    @property
    def draw_weight(self) -> float:
        """The weight with its default filled in."""
        return 1.0 if self.weight is None else self.weight


def write_manifest(folder: Path | str, tracks: Iterable[Track]) -> Path:
    """Replaces `folder/data.jsonl.gz` by `tracks` at once and gives its path. Equal tracks give equal bytes."""
    path = Path(folder) / MANIFEST_NAME
    lines = "".join(json.dumps(_plain(track), ensure_ascii=False) + "\n" for track in tracks)
    with storage.atomic_write(path) as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write(lines.encode("utf-8"))
    return path


def _plain(track: Track) -> dict[str, Any]:
    known = {"info": bool(track.info), "tempo": track.tempo is not None}
    return {name: value for name, value in asdict(track).items() if known.get(name, True)}


def read_manifest(folder: Path | str) -> list[Track]:
    """Gives the tracks of one split, in the manifest's order. Reads audiocraft's own manifests too.

    Raises:
        MissingFileError: the folder holds no manifest.
        MicroMusicGenError: the manifest is damaged, empty, or a line lacks path, duration or sample_rate.
    """
    path = next((p for n in (MANIFEST_NAME, _PLAIN_NAME) if (p := Path(folder) / n).is_file()), None)
    if path is None:
        raise MissingFileError(
            f"{folder} holds no {MANIFEST_NAME}; run micro-musicgen prepare, or name another data set"
        )
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise MicroMusicGenError(f"{path} is damaged ({error}); run micro-musicgen prepare again") from error
    tracks = [_parse(line, path, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not tracks:
        raise MicroMusicGenError(f"{path} lists no files; run micro-musicgen prepare again")
    return tracks


def _parse(line: str, path: Path, number: int) -> Track:
    try:
        plain: dict[str, Any] = json.loads(line)
        known = {one.name for one in fields(Track)}
        tempo = {"tempo": parse_tempo(plain["tempo"])} if plain.get("tempo") is not None else {}
        track = Track(**{key: value for key, value in plain.items() if key in known} | tempo)
        if not isinstance(track.info, dict | None):
            raise TypeError("info is no object")
        usable = track.duration > 0 and track.sample_rate > 0 and track.draw_weight >= 0
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise MicroMusicGenError(f"line {number} of {path} is no track ({error}); run prepare again") from error
    if not usable:
        raise MicroMusicGenError(
            f"line {number} of {path} has duration {track.duration}, sample_rate {track.sample_rate}, "
            f"weight {track.weight}; the first two must be above 0, the weight at least 0"
        )
    return track


def parse_tempo(plain: Any) -> TrackTempo:
    """Gives the tempo that a line or an index tells.

    Raises:
        ValueError, TypeError: it is none.
    """
    tempo = TrackTempo(**plain)
    numbers = [number for number in (tempo.bpm, tempo.beats, tempo.offset_s) if number is not None]
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"tempo {plain} is no number")
    if tempo.bpm is not None and not BPM_RANGE[0] <= tempo.bpm <= BPM_RANGE[1]:
        raise ValueError(f"tempo {tempo.bpm:g} BPM is outside {BPM_RANGE[0]:g} to {BPM_RANGE[1]:g}")
    return tempo


def dataset_hash(tracks: Sequence[Track]) -> str:
    """Gives 16 hex digits that name the sounds of a data set, whatever the files are called and wherever they lie."""
    hashes = sorted(track.audio_hash or f"{track.path}:{track.duration}" for track in tracks)
    return hashlib.sha256("\n".join(hashes).encode("utf-8")).hexdigest()[:16]
