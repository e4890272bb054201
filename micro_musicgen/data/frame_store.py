"""Building a frame store: every track is encoded and kept at once, then all are put together.

A build that was killed goes on where it was: each track's arrays lie in a folder of parts until the store is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from micro_musicgen import storage
from micro_musicgen.contracts import Codec
from micro_musicgen.data import frames, stages
from micro_musicgen.data.frames import (
    FrameFacts,
    FrameStore,
    FrameTrack,
    frame_folder,
    frame_key,
    open_frame_store,
)
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.token_pool import sound_key
from micro_musicgen.data.track_codes import check_unchanged
from micro_musicgen.data.track_frames import FrameMaker
from micro_musicgen.diffusion.representation import Representation
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

__all__ = [
    "FrameFacts",
    "FrameMaker",
    "FrameStore",
    "FrameTrack",
    "build_frame_store",
    "frame_folder",
    "frame_key",
    "open_frame_store",
    "prepared_store",
]

_MAX_NAMED = 3
_Arrays = dict[str, npt.NDArray[np.generic]]


Progress = Callable[[int, int], None]


def prepared_store(
    dataset: str,
    split: str,
    tracks: Sequence[Track],
    target: Representation,
    codec: Codec | None = None,
    condition: Representation | None = None,
    *,
    segment_s: float,
    progress: Progress | None = None,
) -> FrameStore:
    """Gives the store of one split of a data set in its place in the data home; see `build_frame_store`."""
    key = key_of(FrameMaker(target, codec, condition, segment_s), tracks)
    folder = frame_folder(dataset, split, key)
    return build_frame_store(folder, tracks, target, codec, condition, segment_s=segment_s, progress=progress)


def facts_of(maker: FrameMaker) -> FrameFacts:
    """Gives what a store of `maker` holds.

    Raises:
        MicroMusicGenError: the codec does not suit a store, or the windows don't overlap sensibly.
    """
    target, codec, condition = maker.target, maker.codec, maker.condition
    if codec is not None and codec.channels != 1:
        raise MicroMusicGenError(f"the codec has {codec.channels} channels; frame stores take a mono codec")
    if codec is not None and codec.cardinality > 1 << 15:
        raise MicroMusicGenError(f"the codec's card {codec.cardinality} is above {1 << 15}, the limit of int16")
    if not (maker.segment_s < float("inf") and maker.segment_frames >= 1):
        raise MicroMusicGenError(
            f"segment {maker.segment_s:g} s must be finite and hold a frame of {1 / target.frame_rate:g} s"
        )
    if not 0 <= maker.overlap_s <= maker.window_s / 2 < float("inf"):
        raise MicroMusicGenError(
            f"overlap {maker.overlap_s:g} s does not suit windows of {maker.window_s:g} s; give 0 to half of them"
        )
    return FrameFacts(
        target=target.name,
        target_hash=target.content_hash,
        codec_hash=None if codec is None else codec.content_hash,
        condition=None if condition is None else condition.name,
        condition_hash=None if condition is None else condition.content_hash,
        D=target.channels,
        K=0 if codec is None else codec.num_codebooks,
        Dc=0 if condition is None else condition.channels,
        card=0 if codec is None else codec.cardinality,
        frame_rate=target.frame_rate,
        segment_s=maker.segment_s,
    )


def key_of(maker: FrameMaker, tracks: Sequence[Track]) -> str:
    """Gives the key of the store that `maker` makes of `tracks`."""
    return frame_key(facts_of(maker), tracks, (maker.window_s, maker.overlap_s))


def build_frame_store(
    folder: Path | str,
    tracks: Sequence[Track],
    target: Representation,
    codec: Codec | None = None,
    condition: Representation | None = None,
    *,
    segment_s: float,
    window_s: float = 30.0,
    overlap_s: float = 2.0,
    anew: bool = False,
    progress: Progress | None = None,
) -> FrameStore:
    """Gives the store in `folder`, built unless a sound one of the same tracks, models and settings lies there.

    codec: whose codes lie beside the target; None for no codes. condition: whose frames do; None for none. segment_s:
    tracks shorter than it are looped. anew: replaces a store that opens, too. progress(done, total) counts tracks.
    It is put together beside its place and moved there whole, so a killed or a second, simultaneous build does no
    harm. One track is in memory at a time.

    Raises:
        MicroMusicGenError: the codec or the settings don't suit a store, the folder can't be written to, or is full.
        UnreadableAudioError: tracks are gone, damaged or changed since they were prepared; the others are kept.
    """
    folder = Path(folder)
    maker = FrameMaker(target, codec, condition, segment_s, window_s, overlap_s)
    facts, key = facts_of(maker), key_of(maker, tracks)
    if not tracks:
        raise MicroMusicGenError(f"no track to encode for {folder}; prepare a data set with sounds in it")
    found = None if anew else _sound_store(folder, key)
    if found is not None:
        return found
    storage.ensure_writable(folder.parent)
    # Named by the key, so what another codec left is never taken for ours; and by the sound, not by its place.
    parts = folder.with_name(f".{folder.name}.{key}.parts")
    faults = []
    for number, track in enumerate(tracks, 1):
        fault = _encode(parts, track, maker)
        if fault is not None:
            faults.append(fault)
        if progress is not None:
            progress(number, len(tracks))
    if faults:
        named = "; ".join(faults[:_MAX_NAMED])
        more = f"; and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
        raise UnreadableAudioError(
            f"{len(faults)} of {len(tracks)} files not encoded, the frames of the others are kept: {named}{more}; "
            "mend or remove them, run micro-musicgen prepare again and repeat this"
        )
    return _put_together(folder, tracks, facts, key, parts, anew=anew)


def _sound_store(folder: Path, key: str) -> FrameStore | None:
    """Gives the store in `folder` when it is whole and was built for `key`."""
    if frames.stored_key(folder) != key:
        return None
    try:
        return open_frame_store(folder)
    except MicroMusicGenError:
        return None


def _encode(parts: Path, track: Track, maker: FrameMaker) -> str | None:
    """Keeps a track's arrays unless they are there, durably and all at once. Gives what is wrong with its file."""
    from safetensors.numpy import save

    path = _part(parts, track)
    if path.is_file():
        return None
    try:
        check_unchanged(track)
    except MicroMusicGenError as error:
        return str(error)
    try:
        arrays, loop = maker.frames(track)
    except UnreadableAudioError as error:
        return str(error)
    with storage.atomic_write(path) as file:
        file.write(save(dict(arrays), metadata={"loop": str(int(loop))}))
    return None


def _part(parts: Path, track: Track) -> Path:
    return parts / f"{sound_key(track)}.safetensors"


def _put_together(
    folder: Path, tracks: Sequence[Track], facts: FrameFacts, key: str, parts: Path, *, anew: bool
) -> FrameStore:
    """Gives the store made of the parts, in its place; they are removed then."""
    stages.sweep_stages(folder)
    stage = stages.stage_of(folder)
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        placed = _placed(tracks, parts, facts)
        total = placed[-1].start + placed[-1].num_frames
        for name, (columns, dtype) in frames.array_specs(facts).items():
            _write_array(stage / f"{name}.npy", (total, columns), dtype, tracks, parts)
        storage.write_json(stage / frames.INDEX_NAME, frames.index_dict(facts, placed, key))
        store = stages.move_in(
            stage,
            folder,
            sound=lambda: None if anew else _sound_store(folder, key),
            opened=open_frame_store,
        )
    except FileNotFoundError:
        found = _sound_store(folder, key)  # another process was faster and has taken the parts away
        if found is None:
            raise
        store = found
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    shutil.rmtree(parts, ignore_errors=True)
    return store


def _placed(tracks: Sequence[Track], parts: Path, facts: FrameFacts) -> list[FrameTrack]:
    """Gives where each track is to lie, of the headers of the parts."""
    placed, start = [], 0
    for track in tracks:
        num_frames, loop = _measured(_part(parts, track), facts)
        placed.append(
            FrameTrack(
                name=Path(track.path).stem,
                path=track.path,
                audio_hash=track.audio_hash,
                start=start,
                num_frames=num_frames,
                duration_s=track.duration,
                weight=track.draw_weight,
                loop=loop,
            )
        )
        start += num_frames
    return placed


def _measured(path: Path, facts: FrameFacts) -> tuple[int, bool]:
    """Gives the frames of one part and whether its track was looped, after checking its shapes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            num_frames = file.get_slice("target").get_shape()[0]
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            loop = file.metadata()["loop"] == "1"
    except (SafetensorError, KeyError, TypeError) as error:
        raise MicroMusicGenError(f"{path} is damaged ({error}); remove it and start again") from error
    expected = {name: (num_frames, columns) for name, (columns, _) in frames.array_specs(facts).items()}
    if shapes != expected:
        raise MicroMusicGenError(f"{path} holds {shapes}, not {expected}; remove {path.parent} and start again")
    return num_frames, loop


def _write_array(
    path: Path, shape: tuple[int, int], dtype: np.dtype[Any], tracks: Sequence[Track], parts: Path
) -> None:
    """Writes one array of all tracks, one track in memory at a time."""
    from safetensors import safe_open

    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with storage.atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for track in tracks:
            with safe_open(_part(parts, track), framework="np") as part:
                file.write(np.ascontiguousarray(part.get_tensor(path.stem), dtype=dtype).data)
