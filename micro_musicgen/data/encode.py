"""Building a token store: every track through the codec once, in long overlapping windows."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch

from micro_musicgen import storage
from micro_musicgen.audio.io import load_mono
from micro_musicgen.contracts import Codec
from micro_musicgen.data import tokens
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.tokens import TokenSettings, TokenStore, TokenTrack
from micro_musicgen.errors import MicroMusicGenError

SHARD_BYTES = 1 << 28


def build_token_store(
    folder: Path | str,
    tracks: Sequence[Track],
    codec: Codec,
    *,
    segment_s: float,
    window_s: float = 30.0,
    overlap_s: float = 2.0,
    progress: Callable[[int, int], None] | None = None,
) -> TokenStore:
    """Gives the store in `folder`, built unless a sound one for the same codec, tracks and settings lies there.

    It is built beside its place and moved there whole, so a killed or a second, simultaneous build does no harm.
    A track shorter than a segment is looped to two segments first: crops of it cross the loop's seam as playing does.
    progress(done, total) counts tracks. One track's audio is in memory at a time.

    Raises:
        MicroMusicGenError: the codec is not mono or has too many codes for int16, the windows don't overlap sensibly,
            or the folder cannot be written to.
        UnreadableAudioError: a track is gone or damaged since it was prepared.
    """
    folder = Path(folder)
    settings = TokenSettings(segment_s, window_s, overlap_s)
    _check(codec, settings)
    key = tokens.store_key(codec.content_hash, tracks, settings)
    found = _sound_store(folder, key)
    if found is not None:
        return found
    storage.ensure_writable(folder.parent)
    stage = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        placed = _write_shards(stage, tracks, codec, settings, progress)
        built = TokenStore(
            stage, codec.content_hash, codec.cardinality, codec.num_codebooks, codec.frame_rate, settings, placed, ()
        )
        storage.write_json(stage / tokens.INDEX_NAME, tokens.index_dict(built))
        return _move_in(stage, folder, key)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _check(codec: Codec, settings: TokenSettings) -> None:
    if codec.channels != 1:
        raise MicroMusicGenError(f"the codec has {codec.channels} channels; token stores take a mono codec")
    if codec.cardinality > tokens.MAX_CARD:
        raise MicroMusicGenError(f"the codec's card {codec.cardinality} is above {tokens.MAX_CARD}, the limit of int16")
    if not 0 <= settings.overlap_s <= settings.window_s / 2:
        raise MicroMusicGenError(
            f"overlap {settings.overlap_s:g} s does not suit windows of {settings.window_s:g} s; give 0 to half of them"
        )


def _sound_store(folder: Path, key: str) -> TokenStore | None:
    """Gives the store in `folder` when it is whole and was built for `key`."""
    try:
        store = tokens.open_token_store(folder)
    except MicroMusicGenError:
        return None
    return store if _key_of(store) == key else None


def _key_of(store: TokenStore) -> str:
    return tokens.store_key(store.codec_hash, [_as_track(track) for track in store.tracks], store.settings)


def _as_track(track: TokenTrack) -> Track:
    """Gives as much of the manifest's track as its key is made of."""
    return Track(track.path, track.duration_s, 1, weight=track.weight, audio_hash=track.audio_hash)


def _move_in(stage: Path, folder: Path, key: str) -> TokenStore:
    """Puts a finished store in its place, unless another process has just done so."""
    if folder.exists():
        found = _sound_store(folder, key)
        if found is not None:
            return found
        shutil.rmtree(folder)
    try:
        os.replace(stage, folder)
    except OSError:
        if not folder.exists():
            raise
    return tokens.open_token_store(folder)


def _write_shards(
    stage: Path,
    tracks: Sequence[Track],
    codec: Codec,
    settings: TokenSettings,
    progress: Callable[[int, int], None] | None,
) -> tuple[TokenTrack, ...]:
    placed: list[TokenTrack] = []
    shard, offset = 0, 0
    file: IO[bytes] = open(tokens.shard_path(stage, shard), "wb")
    try:
        for track in tracks:
            codes, loops = encode_track(track, codec, settings)
            if offset and (offset + len(codes)) * codec.num_codebooks * tokens.CODE_DTYPE.itemsize > SHARD_BYTES:
                _close(file)
                shard, offset = shard + 1, 0
                file = open(tokens.shard_path(stage, shard), "wb")
            file.write(codes.tobytes())
            placed.append(_place(track, shard, offset, len(codes), loops))
            offset += len(codes)
            if progress is not None:
                progress(len(placed), len(tracks))
    finally:
        _close(file)
    return tuple(placed)


def _close(file: IO[bytes]) -> None:
    """Makes a shard durable before the index that vouches for it is written."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _place(track: Track, shard: int, offset_frames: int, num_frames: int, loops: bool) -> TokenTrack:
    return TokenTrack(
        name=Path(track.path).stem,
        path=track.path,
        audio_hash=track.audio_hash,
        duration_s=track.duration,
        weight=track.draw_weight,
        shard=shard,
        offset_frames=offset_frames,
        num_frames=num_frames,
        loop=loops,
    )


def encode_track(track: Track, codec: Codec, settings: TokenSettings) -> tuple[npt.NDArray[np.int16], bool]:
    """Gives the codes [T, K] of one file, and whether it was looped.

    A long track loses its last, partial frame, which would hold the codec's padding.
    """
    hop = codec.hop_samples
    segment_frames = round(settings.segment_s * codec.frame_rate)
    expected = track.duration * codec.sample_rate
    loops = expected < segment_frames * hop
    wav = load_mono(track.path, codec.sample_rate, wraps=loops)
    loops = loops or len(wav) < segment_frames * hop
    if loops:
        # Two segments hold a crop from every phase of the loop, since the loop is shorter than one.
        wav = np.resize(wav, 2 * segment_frames * hop)
    codes = encode_windows(wav, codec, window_s=settings.window_s, overlap_s=settings.overlap_s)
    return codes[: max(1, len(wav) // hop)], loops


def encode_windows(
    wav: npt.NDArray[np.float32], codec: Codec, *, window_s: float, overlap_s: float
) -> npt.NDArray[np.int16]:
    """Gives int16 codes [T, K] of mono samples [L] at the codec's rate, T = ceil(L / hop_samples).

    Neighbouring windows share `overlap_s`; each gives its own half of that, so that no code is taken from within
    half the overlap of a window's edge, where the codec hears padding.
    """
    hop = codec.hop_samples
    num_frames = math.ceil(len(wav) / hop)
    half_overlap = round(overlap_s * codec.frame_rate / 2)
    window = max(round(window_s * codec.frame_rate), 2 * half_overlap + 1)
    # The last window begins where it reaches the end: it is as long as the others, or the only one.
    starts = [*range(0, max(0, num_frames - window), window - 2 * half_overlap), max(0, num_frames - window)]
    edges = [0, *(start + half_overlap for start in starts[1:]), num_frames]
    pieces = []
    for start, (begin, end) in zip(starts, pairwise(edges), strict=True):
        samples = torch.from_numpy(wav[start * hop : (start + window) * hop])
        codes = codec.encode(samples[None, None])[0]
        pieces.append(codes[:, begin - start : end - start].T.cpu().numpy().astype(tokens.CODE_DTYPE))
    return np.ascontiguousarray(np.concatenate(pieces))
