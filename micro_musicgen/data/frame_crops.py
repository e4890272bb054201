"""Batches of frames for training a diffusion model: crops of a store, each a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from micro_musicgen.data.crop_batch import Cut, training_cuts, validation_cuts
from micro_musicgen.data.frames import Floats, FrameTrack
from micro_musicgen.data.slots import SlotPlan, evenly_spaced, segment_starts
from micro_musicgen.errors import MicroMusicGenError


class FrameSource(Protocol):
    """What crops are cut from. Invariant: what it gives of a track is equally long, `num_frames` of that track."""

    @property
    def place(self) -> Path:
        """The file or folder, for messages."""

    @property
    def tracks(self) -> tuple[FrameTrack, ...]:
        """The tracks, in order."""

    @property
    def frame_rate(self) -> float:
        """Frames a second."""

    @property
    def channels(self) -> int:
        """D of the target."""

    @property
    def num_codebooks(self) -> int:
        """K of the codes, 0 for none."""

    @property
    def condition_channels(self) -> int:
        """Dc of the condition, 0 for none."""

    def target(self, index: int) -> Floats:
        """Gives the frames [T, D] of track `index`."""

    def codes(self, index: int) -> npt.NDArray[np.int16] | None:
        """Gives the codes [T, K] of track `index`."""

    def condition(self, index: int) -> Floats | None:
        """Gives the condition [T, Dc] of track `index`."""


@dataclass(frozen=True)
class FrameBatch:
    """What a batch is made of. target: float32 [B, D, T]. codes: int64 [B, K, T]. condition: float32 [B, Dc, T].

    codes and condition are None where the source has none. tracks and places: as in `Crops`. starts: the frame of its
    track at which each crop begins.
    """

    target: torch.Tensor
    codes: torch.Tensor | None
    condition: torch.Tensor | None
    tracks: tuple[int, ...]
    places: tuple[int, ...]
    starts: tuple[int, ...]

    def first(self, number: int) -> FrameBatch:
        """Gives the first `number` crops of the batch."""
        return FrameBatch(
            target=self.target[:number],
            codes=None if self.codes is None else self.codes[:number],
            condition=None if self.condition is None else self.condition[:number],
            tracks=self.tracks[:number],
            places=self.places[:number],
            starts=self.starts[:number],
        )


class FrameCrops:
    """Endless training batches and a fixed validation set. Invariant: `batch(step, n)` is always the same frames.

    Tracks are drawn in proportion to the duration of their audio (not of its loops) times their weight, every slot
    of the data once per pass (see `slots`).
    """

    def __init__(self, source: FrameSource, *, segment_frames: int, seed: int) -> None:
        shortest = min(source.tracks, key=lambda track: track.num_frames)
        if not 1 <= segment_frames <= shortest.num_frames:
            raise MicroMusicGenError(
                f"segment of {segment_frames} frames does not fit into {shortest.name} ({shortest.num_frames} frames) "
                f"of {source.place}; encode the data set again for that segment_duration, or use a shorter one"
            )
        self.source = source
        self.segment_frames = segment_frames
        masses = [track.duration_s * source.frame_rate * track.weight for track in source.tracks]
        self._plan = SlotPlan(masses, segment_frames, seed)

    @property
    def crops_per_pass(self) -> int:
        """Crops after which all of the data has been drawn from once."""
        return self._plan.num_slots

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> FrameBatch:
        """Gives one rank's share, B / world_size crops, of the batch of training step `step` >= 0.

        batch_size: B, over all ranks. The ranks together take the crops that one alone would.

        Raises:
            MicroMusicGenError: B is no multiple of world_size.
        """
        return self._taken(training_cuts(self._locate, step, batch_size, rank, world_size), self.segment_frames)

    def valid_batches(self, batch_size: int, max_items: int) -> Iterator[FrameBatch]:
        """Gives the same batches on every call: whole segments spread over the data, at most `batch_size` at a time.

        Every track takes part with its consecutive segments, a looped one once; at most `max_items` in all.
        """
        found = [
            (index, start)
            for index, track in enumerate(self.source.tracks)
            for start in ([0] if track.loop else segment_starts(track.num_frames, self.segment_frames))
        ]
        remaining = iter(validation_cuts(evenly_spaced(found, max_items)))
        while chosen := list(islice(remaining, batch_size)):
            yield self._taken(chosen, self.segment_frames)

    def all_frames(self, max_frames: int = 4096) -> Iterator[FrameBatch]:
        """Gives everything once, in order, to fit normalisers to: pieces of one track each, B = 1, T <= max_frames."""
        for index, track in enumerate(self.source.tracks):
            for start in range(0, track.num_frames, max_frames):
                yield self._taken([Cut(index, start, -1)], min(max_frames, track.num_frames - start))

    def _locate(self, place: int) -> tuple[int, int]:
        track, position = self._plan.locate(place)
        return track, int(position * (self.source.tracks[track].num_frames - self.segment_frames + 1))

    def _taken(self, cuts: Sequence[Cut], size: int) -> FrameBatch:
        target = _stacked([self.source.target(cut.track)[cut.start : cut.start + size] for cut in cuts], np.float32)
        assert target is not None
        return FrameBatch(
            target=target,
            codes=_stacked([_rows(self.source.codes(cut.track), cut.start, size) for cut in cuts], np.int64),
            condition=_stacked([_rows(self.source.condition(cut.track), cut.start, size) for cut in cuts], np.float32),
            tracks=tuple(cut.track for cut in cuts),
            places=tuple(cut.place for cut in cuts),
            starts=tuple(cut.start for cut in cuts),
        )


def _rows(array: npt.NDArray[np.generic] | None, start: int, size: int) -> npt.NDArray[np.generic] | None:
    return None if array is None else array[start : start + size]


def _stacked(
    pieces: Sequence[npt.NDArray[np.generic] | None], dtype: type[np.float32] | type[np.int64]
) -> torch.Tensor | None:
    """Gives pieces [T, D] as one tensor [B, D, T]."""
    present = [piece.T.astype(dtype, order="C") for piece in pieces if piece is not None]
    assert len(present) in (0, len(pieces)), "some tracks have it and some don't"
    return torch.from_numpy(np.stack(present)) if present else None
