"""Building a token store: what the pool lacks is encoded, then the store is put together from the pool.

Every track is kept the moment it is encoded. A build that was killed, even in the middle of a write, goes on where it
was and ends with the same bytes; so does one with another number of processes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from micro_musicgen import storage
from micro_musicgen.contracts import Codec
from micro_musicgen.data import stages, token_workers, tokens
from micro_musicgen.data.beat_grid import BeatSteps
from micro_musicgen.data.manifest import Track, TrackTempo
from micro_musicgen.data.token_pool import PooledCodes, TokenPool
from micro_musicgen.data.token_workers import LoadCodec
from micro_musicgen.data.tokens import TokenSettings, TokenStore, TokenTrack
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

SHARD_BYTES = 1 << 28
_MAX_NAMED = 3


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do. num_reused: tracks whose codes are at hand. missing: the others, each sound once.

    store: the sound store that is there; nothing at all is to be done then.
    """

    folder: Path
    num_tracks: int
    num_reused: int
    missing: tuple[Track, ...]
    store: TokenStore | None = None

    @property
    def missing_s(self) -> float:
        """Seconds of audio to encode."""
        return sum(track.duration for track in self.missing)


def plan_token_store(
    folder: Path | str, tracks: Sequence[Track], codec: Codec, settings: TokenSettings, *, anew: bool = False
) -> BuildPlan:
    """Gives what `build_token_store` would do, and writes nothing.

    Raises:
        MicroMusicGenError: the codec or the settings don't suit a token store.
    """
    folder = Path(folder)
    _check(codec, settings)
    key = tokens.store_key(codec.content_hash, tracks, settings)
    found = None if anew else _sound_store(folder, key)
    if found is not None:
        return BuildPlan(folder, len(tracks), len(tracks), (), found)
    pool = TokenPool.beside(folder, codec, settings)
    missing = _missing(tracks, pool)
    sounds = {pool.sound(track) for track in missing}
    num_reused = sum(pool.sound(track) not in sounds for track in tracks)
    return BuildPlan(folder, len(tracks), num_reused, tuple(missing))


def build_token_store(
    folder: Path | str,
    tracks: Sequence[Track],
    codec: Codec,
    *,
    segment_s: float,
    window_s: float = 30.0,
    overlap_s: float = 2.0,
    steps: BeatSteps | None = None,
    workers: int | None = 1,
    load: LoadCodec | None = None,
    anew: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TokenStore:
    """Gives the store in `folder`, built unless a sound one for the same codec, tracks and settings lies there.

    steps: the codes are in beat time, these are its beats in frames, and every track has a tempo; None for clock time.
    It is put together beside its place and moved there whole, so a killed or a second, simultaneous build does no
    harm. workers: processes that encode; None for as many as the audio is worth. load: makes the codec in another
    process (a function that can be pickled); None sends `codec` itself. anew: replaces a store that opens, too, with
    what the pool holds. progress(done, total) counts tracks, those
    that need no encoding first. Each process holds one track's audio in memory at a time.

    Raises:
        MicroMusicGenError: the codec is not mono or has too many codes for int16, the windows don't overlap sensibly,
            the folder cannot be written to, or the disk is full.
        UnreadableAudioError: tracks are gone, damaged or changed since they were prepared, or their process died. The
            codes of all others are kept.
    """
    folder = Path(folder)
    settings = token_settings(segment_s, window_s, overlap_s, steps)
    plan = plan_token_store(folder, tracks, codec, settings, anew=anew)
    if plan.store is not None:
        return plan.store
    storage.ensure_writable(folder.parent)
    pool = TokenPool.beside(folder, codec, settings)
    if plan.missing:
        storage.ensure_writable(pool.folder)
        pool.sweep()
        _encode_missing(plan, codec, pool, workers, load, progress)
    if progress is not None:
        progress(len(tracks), len(tracks))
    return _put_together(folder, tracks, codec, pool, anew=anew)


def token_settings(
    segment_s: float,
    window_s: float = TokenSettings.window_s,
    overlap_s: float = TokenSettings.overlap_s,
    steps: BeatSteps | None = None,
) -> TokenSettings:
    """Gives the settings of a store. steps: the beats of beat time, in frames."""
    if steps is None:
        return TokenSettings(segment_s, window_s, overlap_s)
    return TokenSettings(segment_s, window_s, overlap_s, steps.per_beat, steps.beats_per_bar)


def _check(codec: Codec, settings: TokenSettings) -> None:
    if codec.channels != 1:
        raise MicroMusicGenError(f"the codec has {codec.channels} channels; token stores take a mono codec")
    if codec.cardinality > tokens.MAX_CARD:
        raise MicroMusicGenError(f"the codec's card {codec.cardinality} is above {tokens.MAX_CARD}, the limit of int16")
    if not 1 <= settings.segment_s * codec.frame_rate < math.inf:
        raise MicroMusicGenError(
            f"segment {settings.segment_s:g} s must be finite and hold a frame of the codec, {1 / codec.frame_rate:g} s"
        )
    if not 0 <= settings.overlap_s <= settings.window_s / 2 < math.inf:
        raise MicroMusicGenError(
            f"overlap {settings.overlap_s:g} s does not suit windows of {settings.window_s:g} s; give 0 to half of them"
        )


def _sound_store(folder: Path, key: str) -> TokenStore | None:
    """Gives the store in `folder` when it is whole and was built for `key`."""
    try:
        store = tokens.open_token_store(folder)
    except MicroMusicGenError:
        return None
    return store if key_of(store) == key else None


def key_of(store: TokenStore) -> str:
    """Gives the key of what a store says it was built from."""
    return tokens.store_key(store.codec_hash, [as_track(track) for track in store.tracks], store.settings)


def as_track(track: TokenTrack) -> Track:
    """Gives as much of the manifest's track as keys are made of."""
    return Track(track.path, track.duration_s, 1, weight=track.weight, audio_hash=track.audio_hash, tempo=track.tempo)


def _missing(tracks: Sequence[Track], pool: TokenPool) -> list[Track]:
    """Gives the tracks without sound codes in the pool; of tracks with the same audio the first."""
    first = {pool.sound(track): track for track in reversed(tracks)}
    return [track for track in reversed(first.values()) if pool.read(track) is None]


def _encode_missing(
    plan: BuildPlan,
    codec: Codec,
    pool: TokenPool,
    workers: int | None,
    load: LoadCodec | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    def count(done: int) -> None:
        if progress is not None and plan.num_reused + done < plan.num_tracks:
            progress(plan.num_reused + done, plan.num_tracks)

    if plan.num_reused:
        count(0)
    number = token_workers.pick_workers(workers, codec, plan.missing)
    faults = token_workers.encode_all(plan.missing, codec, pool, workers=number, load=load, progress=count)
    if faults:
        named = "; ".join(faults[:_MAX_NAMED])
        more = f"; and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
        raise UnreadableAudioError(
            f"{len(faults)} of {plan.num_tracks} files not encoded, the codes of the others are kept: {named}{more}; "
            "mend or remove them, run micro-musicgen prepare again and repeat this"
        )


def _put_together(folder: Path, tracks: Sequence[Track], codec: Codec, pool: TokenPool, *, anew: bool) -> TokenStore:
    """Gives the store made of the pool's codes, in its place."""
    key = tokens.store_key(codec.content_hash, tracks, pool.settings)
    stages.sweep_stages(folder)
    stage = stages.stage_of(folder)
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        placed = _write_shards(stage, tracks, pool)
        built = TokenStore(
            stage,
            codec.content_hash,
            codec.cardinality,
            codec.num_codebooks,
            codec.frame_rate,
            pool.settings,
            placed,
            (),
        )
        storage.write_json(stage / tokens.INDEX_NAME, tokens.index_dict(built))
        return stages.move_in(
            stage,
            folder,
            sound=lambda: None if anew else _sound_store(folder, key),
            opened=tokens.open_token_store,
        )
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write_shards(stage: Path, tracks: Sequence[Track], pool: TokenPool) -> tuple[TokenTrack, ...]:
    placed: list[TokenTrack] = []
    remaining = list(reversed(tracks))
    held = _pooled(pool, remaining[-1])
    shard = 0
    while remaining:
        offset = 0
        with storage.atomic_write(tokens.shard_path(stage, shard)) as file:
            while remaining and (not offset or (offset + len(held.codes)) * held.codes.strides[0] <= SHARD_BYTES):
                file.write(held.codes.tobytes())
                track = remaining.pop()
                tempo = track.tempo if pool.settings.in_beats else None
                placed.append(_place(track, shard, offset, held, tempo))
                offset += len(held.codes)
                held = _pooled(pool, remaining[-1]) if remaining else held
        shard += 1
    return tuple(placed)


def _pooled(pool: TokenPool, track: Track) -> PooledCodes:
    found = pool.read(track)
    if found is None:
        raise MicroMusicGenError(f"{pool.path(track)} was damaged or removed while a store was made; start again")
    return found


def _place(track: Track, shard: int, offset_frames: int, pooled: PooledCodes, tempo: TrackTempo | None) -> TokenTrack:
    return TokenTrack(
        name=Path(track.path).stem,
        path=track.path,
        audio_hash=track.audio_hash,
        duration_s=track.duration,
        weight=track.draw_weight,
        shard=shard,
        offset_frames=offset_frames,
        num_frames=len(pooled.codes),
        loop=pooled.loop,
        checksum=pooled.checksum,
        tempo=tempo,
    )
