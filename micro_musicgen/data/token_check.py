"""Looking a token store over, and mending what is wrong with it at the least cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from micro_musicgen import storage
from micro_musicgen.contracts import Codec
from micro_musicgen.data import tokens
from micro_musicgen.data.encode import as_track, build_token_store, key_of
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.slots import evenly_spaced
from micro_musicgen.data.token_pool import TokenPool
from micro_musicgen.data.tokens import CODE_DTYPE, TokenSettings, TokenStore
from micro_musicgen.data.track_codes import encode_track
from micro_musicgen.errors import MicroMusicGenError, MissingFileError

MIN_EQUAL = 0.9
"""Share of codes that encoding a track again gives the same. Another device or version of torch flips a few codes that
lie at a border between two entries; codes of another sound or codec have next to nothing in common."""


@dataclass(frozen=True)
class StoreReport:
    """What a store is like. faults: one line each. damaged: the tracks that cannot be used; None for all of them.

    num_unproven: tracks without a checksum, of which only size and range are known. equal_shares: by name, the share
    of codes that encoding the track again gave the same.
    """

    folder: Path
    num_tracks: int
    faults: tuple[str, ...]
    damaged: tuple[int, ...] | None
    num_unproven: int
    equal_shares: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Gives plain data for `--json`."""
        return {
            "folder": str(self.folder),
            "num_tracks": self.num_tracks,
            "faults": list(self.faults),
            "num_damaged": self.num_tracks if self.damaged is None else len(self.damaged),
            "num_unproven": self.num_unproven,
            "equal_shares": dict(self.equal_shares),
        }

    def lines(self) -> list[str]:
        """Gives the report for a person: every fault, or that there is none."""
        lines = [*self.faults] or [f"{self.num_tracks} files of {self.folder} are sound"]
        lines += [
            f"{name}: encoding it again gives {100 * share:.2f} % of its codes" for name, share in self.equal_shares
        ]
        if self.num_unproven:
            lines.append(f"{self.num_unproven} files have no checksum (an older store): size and range only")
        return lines


def check_store(folder: Path | str, *, codec: Codec | None = None, sample: int = 0) -> StoreReport:
    """Gives what is wrong with the store in `folder`: index, shards' sizes, every track's range and checksum.

    sample: how many tracks to encode again with `codec` and compare, spread over the store.

    Raises:
        MissingFileError: there is no store.
    """
    folder = Path(folder)
    try:
        store = tokens.read_index(folder)
    except MissingFileError:
        raise
    except MicroMusicGenError as error:
        return StoreReport(folder, 0, (str(error),), None, 0)
    faults = [line for shard in _shards(store) if (line := _size_fault(store, shard)) is not None]
    damaged = []
    for index, track in enumerate(store.tracks):
        fault = _track_fault(store, index)
        if fault is not None:
            damaged.append(index)
            faults.append(f"track {track.name}: {fault}")
    shares: dict[str, float] = {}
    if codec is not None and sample > 0:
        whole = [index for index in range(len(store.tracks)) if index not in set(damaged)]
        for index in evenly_spaced(whole, sample):
            fault = _compare(store, index, codec, shares)
            if fault is not None:
                damaged.append(index)
                faults.append(f"track {store.tracks[index].name}: {fault}")
    unproven = sum(track.checksum is None for track in store.tracks)
    return StoreReport(folder, len(store.tracks), tuple(faults), tuple(damaged), unproven, tuple(shares.items()))


def _shards(store: TokenStore) -> list[int]:
    return sorted({track.shard for track in store.tracks})


def _size_fault(store: TokenStore, shard: int) -> str | None:
    path = tokens.shard_path(store.folder, shard)
    frames = max(track.offset_frames + track.num_frames for track in store.tracks if track.shard == shard)
    expected = frames * store.num_codebooks * CODE_DTYPE.itemsize
    found = path.stat().st_size if path.is_file() else None
    if found == expected:
        return None
    return f"{path.name}: missing" if found is None else f"{path.name}: {found} bytes, the index says {expected}"


def _track_fault(store: TokenStore, index: int) -> str | None:
    codes = _codes(store, index)
    if codes is None:
        return "its shard ends before it"
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= store.card:
        return f"code {low if low < 0 else high} is outside [0, {store.card})"
    expected = store.tracks[index].checksum
    return None if expected in (None, tokens.checksum(codes)) else "checksum differs"


def _codes(store: TokenStore, index: int) -> npt.NDArray[np.int16] | None:
    """Gives the codes [T, K] of a track of a store that need not be sound; None where the shard is too short."""
    track = store.tracks[index]
    path = tokens.shard_path(store.folder, track.shard)
    width = store.num_codebooks * CODE_DTYPE.itemsize
    end = (track.offset_frames + track.num_frames) * width
    if not path.is_file() or path.stat().st_size < end:
        return None
    count = track.num_frames * store.num_codebooks
    read = np.fromfile(path, CODE_DTYPE, count, offset=track.offset_frames * width)
    return read.reshape(-1, store.num_codebooks)


def _compare(store: TokenStore, index: int, codec: Codec, shares: dict[str, float]) -> str | None:
    """Notes the share of equal codes when a track is encoded again; gives a fault when it is too small."""
    track, held = store.tracks[index], _codes(store, index)
    manifest = as_track(track)
    try:
        codes, _ = encode_track(manifest, codec, store.settings)
    except MicroMusicGenError as error:
        return f"cannot be encoded again ({error})"
    if held is None or codes.shape != held.shape:
        return f"{track.num_frames} frames, encoding it again gives {len(codes)}"
    share = float((codes == held).mean())
    shares[track.name] = round(share, 6)
    return None if share >= MIN_EQUAL else f"encoding it again gives {100 * share:.1f} % of its codes"


def repair_store(
    folder: Path | str,
    tracks: Sequence[Track],
    codec: Codec,
    settings: TokenSettings,
    *,
    sample: int = 0,
    workers: int | None = 1,
    load: Callable[[], Codec] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[TokenStore, StoreReport]:
    """Gives the store in `folder`, whole, and the report on what it was like.

    Its sound tracks go to the pool first, so only the damaged ones are encoded, and those only when the pool lacks
    them. A repair that is killed goes on as a build does; one that fails leaves the store as it was.

    Raises:
        MissingFileError: there is no store.
        MicroMusicGenError: as for `build_token_store`.
    """
    folder = Path(folder)
    report = check_store(folder, codec=codec, sample=sample)
    if report.faults:
        storage.ensure_writable(folder.parent)
        _salvage(report, tracks, codec, settings)
    store = build_token_store(
        folder,
        tracks,
        codec,
        segment_s=settings.segment_s,
        window_s=settings.window_s,
        overlap_s=settings.overlap_s,
        steps=settings.steps() if settings.in_beats else None,
        workers=workers,
        load=load,
        anew=bool(report.faults),
        progress=progress,
    )
    return store, report


def _salvage(report: StoreReport, tracks: Sequence[Track], codec: Codec, settings: TokenSettings) -> None:
    """Puts the sound tracks of a damaged store into the pool, and takes those out that turned out to be wrong."""
    pool = TokenPool.beside(report.folder, codec, settings)
    if report.damaged is None:
        return
    store = tokens.read_index(report.folder)
    if key_of(store) != tokens.store_key(codec.content_hash, tracks, settings):
        return  # of another codec, other tracks or settings: its codes say nothing about these
    if (store.num_codebooks, store.card) != (codec.num_codebooks, codec.cardinality):
        return
    torn = {shard for shard in _shards(store) if _size_fault(store, shard) is not None}
    for index, track in enumerate(tracks):
        placed = store.tracks[index]
        if index in report.damaged:
            held, codes = pool.read(track), _codes(store, index)
            if held is not None and codes is not None and held.checksum == tokens.checksum(codes):
                pool.path(track).unlink()  # the pool agrees with the store, and both are wrong
        elif pool.read(track) is None and not (placed.checksum is None and placed.shard in torn):
            codes = _codes(store, index)
            assert codes is not None, placed
            pool.write(track, codes, placed.loop)
