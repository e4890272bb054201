"""Frames on disk: a data set as continuous frames, with the codes or the other frames that a model is told beside them.

A folder `frames/NAME-SPLIT-KEY` of the data home is one store:

    index.json      {format, version, target, target_hash, codec_hash, condition, condition_hash, D, K, Dc, card,
                     frame_rate, segment_s, key,
                     tracks: [{name, path, audio_hash, start, num_frames, duration_s, weight, loop}]}
    target.npy      float32 [sum T, D], one track after the other
    codes.npy       int16 [sum T, K], frame by frame beside the target; not there where K is 0
    condition.npy   float32 [sum T, Dc], likewise; not there where Dc is 0

The folder's name ends in a key of everything that shapes the frames, so a store is reused or ignored, never updated.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from micro_musicgen import paths, storage
from micro_musicgen.data.manifest import Track
from micro_musicgen.errors import MicroMusicGenError, MissingFileError

FORMAT = "micro_musicgen_frames"
VERSION = 1
INDEX_NAME = "index.json"
FRAME_DTYPE = np.dtype("<f4")
CODE_DTYPE = np.dtype("<i2")
MAX_INDEX_BYTES = 1 << 30
_CHECK_FRAMES = 1 << 21

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class FrameTrack:
    """Where one track's frames lie. duration_s: of the audio, before looping. loop: was shorter than a segment."""

    name: str
    path: str
    audio_hash: str | None
    start: int
    num_frames: int
    duration_s: float
    weight: float
    loop: bool


@dataclass(frozen=True, kw_only=True)
class FrameFacts:
    """What a store holds: names and hashes of the representations, None for what it lacks; D, K, Dc; frames a second.

    card: codes lie below it. segment_s: tracks shorter than it were looped.
    """

    target: str
    target_hash: str
    codec_hash: str | None
    condition: str | None
    condition_hash: str | None
    D: int
    K: int
    Dc: int
    card: int
    frame_rate: float
    segment_s: float


@dataclass(frozen=True)
class FrameStore:
    """An opened store, mapped and not in memory. Invariant: every track lies inside its arrays."""

    folder: Path
    facts: FrameFacts
    tracks: tuple[FrameTrack, ...]
    arrays: Mapping[str, npt.NDArray[Any]]

    @property
    def place(self) -> Path:
        """The folder."""
        return self.folder

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.facts.frame_rate

    @property
    def channels(self) -> int:
        """D of the target."""
        return self.facts.D

    @property
    def num_codebooks(self) -> int:
        """K of the codes, 0 for none."""
        return self.facts.K

    @property
    def condition_channels(self) -> int:
        """Dc of the condition, 0 for none."""
        return self.facts.Dc

    @property
    def num_frames(self) -> int:
        """Frames in all, those of loops counted as often as they were repeated."""
        return sum(track.num_frames for track in self.tracks)

    def target(self, index: int) -> Floats:
        """Gives the frames [T, D] of track `index`, mapped, not copied."""
        return self._rows("target", index)

    def codes(self, index: int) -> npt.NDArray[np.int16] | None:
        """Gives the codes [T, K] of track `index`; None where the store has none."""
        return self._rows("codes", index) if self.facts.K else None

    def condition(self, index: int) -> Floats | None:
        """Gives the condition [T, Dc] of track `index`; None where the store has none."""
        return self._rows("condition", index) if self.facts.Dc else None

    def _rows(self, name: str, index: int) -> npt.NDArray[Any]:
        track = self.tracks[index]
        return self.arrays[name][track.start : track.start + track.num_frames]


def array_specs(facts: FrameFacts) -> dict[str, tuple[int, np.dtype[Any]]]:
    """Gives columns and type of each array that a store has."""
    specs: dict[str, tuple[int, np.dtype[Any]]] = {
        "target": (facts.D, FRAME_DTYPE),
        "codes": (facts.K, CODE_DTYPE),
        "condition": (facts.Dc, FRAME_DTYPE),
    }
    return {name: spec for name, spec in specs.items() if spec[0]}


def frame_key(facts: FrameFacts, tracks: Sequence[Track], windows: Sequence[float]) -> str:
    """Gives 16 hex digits of all that shapes a store: what is in it, each track's sound and weight, the windows."""
    plain = {
        "version": VERSION,
        **asdict(facts),
        "windows": list(windows),
        "tracks": [[track.audio_hash or track.path, track.duration, track.draw_weight] for track in tracks],
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def frame_folder(dataset: str, split: str, key: str) -> Path:
    """Gives where the store of one split of a data set lies in the data home."""
    return paths.frames_dir() / f"{dataset}-{split}-{key}"


def index_dict(facts: FrameFacts, tracks: Sequence[FrameTrack], key: str) -> dict[str, Any]:
    """Gives the content of `index.json`."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "key": key,
        **asdict(facts),
        "tracks": [asdict(track) for track in tracks],
    }


def stored_key(folder: Path) -> str | None:
    """Gives the key that the store in `folder` was built for; None where there is no readable index."""
    try:
        return str(storage.read_json(folder / INDEX_NAME)["key"])
    except (MicroMusicGenError, KeyError, TypeError, RecursionError):
        return None


def open_frame_store(
    folder: Path | str, *, target_hash: str | None = None, codec_hash: str | None = None
) -> FrameStore:
    """Gives the store in `folder`, its index, the size of every array and the range of every code checked.

    target_hash, codec_hash: refuse a store of others.

    Raises:
        MissingFileError: there is no store.
        MicroMusicGenError: it is damaged, from a newer version, or of another representation or codec.
    """
    folder = Path(folder)
    path = folder / INDEX_NAME
    if not path.is_file():
        raise MissingFileError(f"{folder} holds no frame store (no {INDEX_NAME}); train again to encode the data set")
    facts, tracks = _read_index(path)
    for what, wanted, found in (("target", target_hash, facts.target_hash), ("codec", codec_hash, facts.codec_hash)):
        if wanted is not None and wanted != found:
            raise MicroMusicGenError(
                f"{folder} was made with another {what} ({found}, not {wanted}); train again to encode the data set"
            )
    total = sum(track.num_frames for track in tracks)
    try:
        arrays = {
            name: _mapped(folder / f"{name}.npy", (total, columns), dtype)
            for name, (columns, dtype) in array_specs(facts).items()
        }
        if facts.K:
            _check_codes(arrays["codes"], facts.card)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(folder, error) from error
    return FrameStore(folder, facts, tracks, arrays)


def _read_index(path: Path) -> tuple[FrameFacts, tuple[FrameTrack, ...]]:
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise _damaged(path.parent, f"an index of {path.stat().st_size} bytes")
    try:
        index = storage.read_json(path)
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']!r}, expected {FORMAT!r}")
        if index["version"] != VERSION:
            raise MicroMusicGenError(
                f"{path.parent} has version {index['version']!r}, this is {VERSION}; upgrade or remove the folder"
            )
        facts = FrameFacts(**{one.name: index[one.name] for one in fields(FrameFacts)})
        tracks = tuple(FrameTrack(**track) for track in index["tracks"])
        _check(facts, tracks)
    except MicroMusicGenError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _damaged(path.parent, f"{type(error).__name__}: {error}") from error
    return facts, tracks


def _check(facts: FrameFacts, tracks: Sequence[FrameTrack]) -> None:
    """Raises ValueError at the first value that can't be."""
    sizes = (facts.D, facts.K, facts.Dc, facts.card)
    if not all(type(size) is int and size >= 0 for size in sizes) or facts.D < 1 or not tracks:
        raise ValueError(f"D, K, Dc, card {sizes}, {len(tracks)} tracks")
    if not (_is_number(facts.frame_rate) and facts.frame_rate > 0 and _is_number(facts.segment_s)):
        raise ValueError(f"frame_rate {facts.frame_rate}, segment_s {facts.segment_s}")
    end = 0
    for track in tracks:
        if track.start != end or type(track.num_frames) is not int or track.num_frames < 1:
            raise ValueError(f"track {track.name} lies at {track.start} + {track.num_frames}, expected {end}")
        if not (_is_number(track.duration_s) and track.duration_s > 0 and _is_number(track.weight)):
            raise ValueError(f"track {track.name} has duration {track.duration_s}, weight {track.weight}")
        end += track.num_frames


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value and math.isfinite(value)


def _mapped(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path.name} is {array.dtype} {array.shape}, the index says {dtype} {shape}")
    return array


def _check_codes(codes: npt.NDArray[np.int16], card: int) -> None:
    for start in range(0, len(codes), _CHECK_FRAMES):
        piece = codes[start : start + _CHECK_FRAMES]
        low, high = int(piece.min()), int(piece.max())
        if low < 0 or high >= card:
            raise ValueError(f"code {low if low < 0 else high} is outside [0, {card})")


def _damaged(folder: Path, reason: object) -> MicroMusicGenError:
    return MicroMusicGenError(f"frame store {folder} is damaged ({reason}); remove it and train again")
