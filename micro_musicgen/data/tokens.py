"""Token store v1: a data set's codes, encoded once, checked when opened and mapped into memory.

    index.json        {version, codec_hash, card, K, frame_rate, settings, tracks: [{name, path, audio_hash,
                      duration_s, weight, shard, offset_frames, num_frames, loop, checksum}]}
    shard-00000.bin   int16 little-endian [T, K] per track, one track after the other

In beat time `settings` says frames_per_beat and beats_per_bar too, and each track its tempo. A loop of P frames (a
whole number of bars) then holds P + segment - frames_per_beat: a crop from every beat of it, across its seam.

The folder's name ends in a key of everything that shapes the codes, so a store is reused or ignored, never updated;
what stores share and what a growing data set keeps lies in a pool beside them (see `token_pool`). Stores that were
made before there were checksums lack that key and are read all the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from micro_musicgen import paths, storage
from micro_musicgen.data.beat_grid import BeatSteps
from micro_musicgen.data.manifest import Track, TrackTempo, parse_tempo
from micro_musicgen.errors import MicroMusicGenError, MissingFileError

VERSION = 1
INDEX_NAME = "index.json"
CODE_DTYPE = np.dtype("<i2")
MAX_CARD = 1 << 15
MAX_INDEX_BYTES = 1 << 30
_CHECK_CODES = 1 << 24


@dataclass(frozen=True)
class TokenSettings:
    """What besides codec and audio shapes the codes. segment_s: tracks shorter than it are looped.

    frames_per_beat (the codec's), beats_per_bar: in beat time, whose seconds are nominal; None in clock time.
    """

    segment_s: float
    window_s: float = 30.0
    overlap_s: float = 2.0
    frames_per_beat: int | None = None
    beats_per_bar: int | None = None

    def plain(self) -> dict[str, Any]:
        """Gives plain data, in clock time the same as before there was beat time."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def in_beats(self) -> bool:
        """Whether the codes are in beat time."""
        return self.frames_per_beat is not None

    def steps(self, unit: int = 1, *, aligns_bars: bool = True) -> BeatSteps:
        """Gives the beats on a line of frames, or of samples with `unit` of them a frame."""
        assert self.frames_per_beat is not None and self.beats_per_bar is not None, self
        return BeatSteps(self.frames_per_beat * unit, self.beats_per_bar, aligns_bars)

    def segment_frames(self, frame_rate: float) -> int:
        """Gives the frames of a segment."""
        return round(self.segment_s * frame_rate)


@dataclass(frozen=True)
class TokenTrack:
    """Where one track's codes lie. duration_s: of the audio, before looping. loop: was shorter than a segment.

    In beat time every loop is one, as long as it may be, and tempo is set.
    checksum: 16 hex digits of the codes' bytes; None in stores made before there were checksums.
    """

    name: str
    path: str
    audio_hash: str | None
    duration_s: float
    weight: float
    shard: int
    offset_frames: int
    num_frames: int
    loop: bool
    checksum: str | None = None
    tempo: TrackTempo | None = None


@dataclass(frozen=True)
class TokenStore:
    """An opened store. Invariant: every track lies inside its shard and every code in [0, card)."""

    folder: Path
    codec_hash: str
    card: int
    num_codebooks: int
    frame_rate: float
    settings: TokenSettings
    tracks: tuple[TokenTrack, ...]
    shards: tuple[npt.NDArray[np.int16], ...]

    def codes(self, index: int) -> npt.NDArray[np.int16]:
        """Gives the codes [T, K] of track `index`, mapped, not copied."""
        track = self.tracks[index]
        return self.shards[track.shard][track.offset_frames : track.offset_frames + track.num_frames]

    @property
    def num_frames(self) -> int:
        """Frames in all, those of loops counted as often as they were repeated."""
        return sum(track.num_frames for track in self.tracks)

    def loop_frames(self, index: int) -> int | None:
        """Gives after how many frames a track begins again, in beat time; None for what is no loop."""
        track = self.tracks[index]
        if not track.loop or self.settings.frames_per_beat is None:
            return None
        return track.num_frames - self.settings.segment_frames(self.frame_rate) + self.settings.frames_per_beat


def store_key(codec_hash: str, tracks: Sequence[Track], settings: TokenSettings) -> str:
    """Gives 16 hex digits of all that shapes a store: the codec, each track's sound, place and weight, the settings."""
    facts = {
        "version": VERSION,
        "codec": codec_hash,
        "settings": settings.plain(),
        "tracks": [
            [track.audio_hash or track.path, track.duration, track.draw_weight, *tempo_key(track, settings)]
            for track in tracks
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def tempo_key(track: Track, settings: TokenSettings) -> list[Any]:
    """Gives what of a track's tempo shapes its codes: nothing in clock time."""
    return [track.tempo.key] if settings.in_beats and track.tempo is not None else []


def store_folder(dataset: str, split: str, key: str) -> Path:
    """Gives where the store of one split of a data set lies in the data home."""
    return paths.tokens_dir() / f"{dataset}-{split}-{key}"


def index_dict(store: TokenStore) -> dict[str, Any]:
    """Gives the content of `index.json`."""
    return {
        "version": VERSION,
        "codec_hash": store.codec_hash,
        "card": store.card,
        "K": store.num_codebooks,
        "frame_rate": store.frame_rate,
        "settings": store.settings.plain(),
        "tracks": [_plain_track(track) for track in store.tracks],
    }


def _plain_track(track: TokenTrack) -> dict[str, Any]:
    plain = asdict(track)
    for name in ("checksum", "tempo"):  # an index from before there were such is written as it was read
        if plain[name] is None:
            del plain[name]
    return plain


def checksum(codes: npt.NDArray[np.int16]) -> str:
    """Gives 16 hex digits that change when any of the codes [T, K] does."""
    return hashlib.sha256(np.ascontiguousarray(codes, dtype=CODE_DTYPE).data).hexdigest()[:16]


def shard_path(folder: Path, shard: int) -> Path:
    """Gives the file of one shard."""
    return folder / f"shard-{shard:05d}.bin"


def open_token_store(folder: Path | str) -> TokenStore:
    """Gives the store in `folder` after checking the index, the size of every shard and the range of every code.

    Raises:
        MissingFileError: there is no store.
        MicroMusicGenError: it is damaged, or from a newer version.
    """
    store = read_index(folder)
    try:
        num_shards = 1 + max(track.shard for track in store.tracks)
        shards = tuple(_map_shard(store, shard) for shard in range(num_shards))
    except ValueError as error:
        if isinstance(error, MicroMusicGenError):
            raise
        raise _damaged(store.folder / INDEX_NAME, str(error)) from error
    for shard, codes in enumerate(shards):
        _check_codes(shard_path(store.folder, shard), codes, store.card)
    return replace(store, shards=shards)


def read_index(folder: Path | str) -> TokenStore:
    """Gives the store in `folder` as its index describes it, every value checked, no shard opened (`shards` is empty).

    Raises:
        MissingFileError: there is no store.
        MicroMusicGenError: the index is damaged, or from a newer version.
    """
    folder = Path(folder)
    path = folder / INDEX_NAME
    if not path.is_file():
        raise MissingFileError(f"{folder} holds no token store (no {INDEX_NAME}); train again to encode the data set")
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise _damaged(path, f"{path.stat().st_size} bytes, more than any index has")
    try:
        index = storage.read_json(path)
        version = int(index["version"])
        if version != VERSION:
            raise MicroMusicGenError(f"{folder} has version {version}, this is {VERSION}; upgrade or remove the folder")
        settings = TokenSettings(**index["settings"])
        numbers = [*settings.plain().values(), index["frame_rate"]]
        tracks = tuple(_parse_track(plain) for plain in index["tracks"])
        num_codebooks, card = int(index["K"]), int(index["card"])
        if not (num_codebooks > 0 and 0 < card <= MAX_CARD and tracks):
            raise ValueError(f"K {num_codebooks}, card {card}, {len(tracks)} tracks")
        if not (all(_is_number(number) for number in numbers) and index["frame_rate"] > 0):
            raise ValueError(f"settings {index['settings']}, frame_rate {index['frame_rate']}")
        _check_beats(settings, tracks)
        return TokenStore(
            folder, str(index["codec_hash"]), card, num_codebooks, float(index["frame_rate"]), settings, tracks, ()
        )
    except MicroMusicGenError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _check_beats(settings: TokenSettings, tracks: Sequence[TokenTrack]) -> None:
    """Refuses an index that is half in beat time."""
    beats = (settings.frames_per_beat, settings.beats_per_bar)
    if beats != (None, None) and not all(type(number) is int and number > 0 for number in beats):
        raise ValueError(f"frames_per_beat and beats_per_bar are {beats}")
    if any((track.tempo is not None) != settings.in_beats for track in tracks):
        raise ValueError("tempos are told of some tracks only, or without frames_per_beat")


def _is_number(value: Any) -> bool:
    """Says whether `value` is a finite number >= 0. A whole number beyond all floats is none."""
    return type(value) in (int, float) and 0 <= value and math.isfinite(value)


def _parse_track(plain: Mapping[str, Any]) -> TokenTrack:
    known = [field.name for field in fields(TokenTrack) if field.name not in ("checksum", "tempo")]
    tempo = parse_tempo(plain["tempo"]) if plain.get("tempo") is not None else None
    track = TokenTrack(**{name: plain[name] for name in known}, checksum=plain.get("checksum"), tempo=tempo)
    places = (track.shard, track.offset_frames, track.num_frames)
    if not all(type(place) is int and place >= 0 for place in places) or track.num_frames < 1:
        raise ValueError(f"track {track.name} lies at {places}")
    if not (_is_number(track.duration_s) and track.duration_s > 0 and _is_number(track.weight)):
        raise ValueError(f"track {track.name} has duration {track.duration_s}, weight {track.weight}")
    texts = (track.name, track.path, track.audio_hash or "", track.checksum or "")
    if not all(type(text) is str for text in texts):
        raise ValueError(f"name, path, audio_hash and checksum of a track are {texts}")
    return track


def _map_shard(store: TokenStore, shard: int) -> npt.NDArray[np.int16]:
    """Gives a shard [T, K], mapped, after checking that its tracks fill it exactly."""
    path = shard_path(store.folder, shard)
    end = 0
    for track in store.tracks:
        if track.shard != shard:
            continue
        if track.offset_frames != end:
            raise ValueError(f"track {track.name} begins at frame {track.offset_frames} of {path.name}, not at {end}")
        end += track.num_frames
    expected = end * store.num_codebooks * CODE_DTYPE.itemsize
    found = path.stat().st_size if path.is_file() else None
    if found != expected or not expected:
        raise _damaged(path, "missing" if found is None else f"{found} bytes, the index says {expected}")
    return np.memmap(path, dtype=CODE_DTYPE, mode="r", shape=(end, store.num_codebooks))


def _check_codes(path: Path, codes: npt.NDArray[np.int16], card: int) -> None:
    flat = codes.reshape(-1)
    for start in range(0, len(flat), _CHECK_CODES):
        piece = flat[start : start + _CHECK_CODES]
        low, high = int(piece.min()), int(piece.max())
        if low < 0 or high >= card:
            wrong = low if low < 0 else high
            raise _damaged(path, f"code {wrong} is outside [0, {card})")


def _damaged(path: Path, reason: str) -> MicroMusicGenError:
    return MicroMusicGenError(f"token store {path} is damaged ({reason}); remove {path.parent} and train again")
