"""Batches of codes for training an LM: crops of a token store, each a pure function of (seed, step)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from micro_musicgen.data.beat_grid import BarPlace, BeatSteps
from micro_musicgen.data.beat_view import start_of, starts_on_bar
from micro_musicgen.data.crop_batch import GAP_S, Crops, Cut, PromptPlan, training_cuts, validation_cuts
from micro_musicgen.data.slots import SlotPlan, evenly_spaced, segment_starts
from micro_musicgen.data.tokens import TokenStore
from micro_musicgen.errors import MicroMusicGenError


class CodeCrops:
    """Endless training batches and a fixed validation set. Invariant: `batch(step, n)` is always the same codes.

    Tracks are drawn in proportion to the duration of their audio (not of its loops) times their weight, every slot
    of the data once per pass (see `slots`). In beat time durations are beats, crops start on bars (`aligns_bars`) or
    beats, and those of loops go on across the seam.
    """

    def __init__(self, store: TokenStore, *, segment_frames: int, seed: int, aligns_bars: bool = True) -> None:
        shortest = min(store.tracks, key=lambda track: track.num_frames)
        if not 1 <= segment_frames <= shortest.num_frames:
            raise MicroMusicGenError(
                f"segment of {segment_frames} frames does not fit into {shortest.name} ({shortest.num_frames} frames) "
                f"of {store.folder}; encode the data set again for that segment_duration"
            )
        self._store = store
        self.segment_frames = segment_frames
        in_beats = store.settings.in_beats
        self._steps = store.settings.steps(aligns_bars=aligns_bars) if in_beats else None
        assert not in_beats or segment_frames == store.settings.segment_frames(store.frame_rate), segment_frames
        masses = [self._duration_frames(index) * track.weight for index, track in enumerate(store.tracks)]
        self._plan = SlotPlan(masses, segment_frames, seed)
        self._seed = seed

    @property
    def crops_per_pass(self) -> int:
        """Crops after which all of the data has been drawn from once."""
        return self._plan.num_slots

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Gives int64 codes [B / world_size, K, T]: those of `crops`."""
        return self.crops(step, batch_size, rank, world_size).codes

    def crops(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1, prompt_frames: int = 0) -> Crops:
        """Gives one rank's share, B / world_size crops, of the batch of training step `step` >= 0.

        batch_size: B, over all ranks. The ranks together take the crops that one alone would, so a run may go on with
        another number of ranks and every slot of the data is seen once per pass all the same. prompt_frames: how long
        prompts are to be; 0 for none. A looped track has none: all of it is in the crop.

        Raises:
            MicroMusicGenError: B is no multiple of world_size.
        """
        return self._taken(training_cuts(self._locate, step, batch_size, rank, world_size), prompt_frames)

    def valid_batches(self, batch_size: int, max_items: int) -> Iterator[torch.Tensor]:
        """Gives the same batches [b, K, T] on every call: those of `valid_crops`."""
        return (crops.codes for crops in self.valid_crops(batch_size, max_items))

    def valid_crops(self, batch_size: int, max_items: int, prompt_frames: int = 0) -> Iterator[Crops]:
        """Gives the same crops on every call: whole segments spread over the data, at most `batch_size` at a time.

        Every track takes part with its consecutive segments, a looped one once; at most `max_items` in all.
        """
        found = [(index, start) for index in range(len(self._store.tracks)) for start in self._valid_starts(index)]
        remaining = iter(validation_cuts(evenly_spaced(found, max_items)))
        while chosen := list(islice(remaining, batch_size)):
            yield self._taken(chosen, prompt_frames)

    def _duration_frames(self, index: int) -> float:
        """Gives how long a track's audio is, before it was looped, in frames."""
        track, store = self._store.tracks[index], self._store
        if not store.settings.in_beats:
            return track.duration_s * store.frame_rate
        return store.loop_frames(index) or track.num_frames

    def _valid_starts(self, index: int) -> list[int]:
        track, loop = self._store.tracks[index], self._store.loop_frames(index)
        if loop is not None:
            return segment_starts(loop, self.segment_frames)
        return [0] if track.loop else segment_starts(track.num_frames, self.segment_frames)

    def _locate(self, place: int) -> tuple[int, int]:
        track, position = self._plan.locate(place)
        if self._steps is not None:
            loop = self._store.loop_frames(track)
            length = loop or self._store.tracks[track].num_frames
            return track, start_of(position, length, self.segment_frames, self._steps, loops=loop is not None)
        return track, int(position * (self._store.tracks[track].num_frames - self.segment_frames + 1))

    def _taken(self, cuts: Sequence[Cut], prompt_frames: int) -> Crops:
        codes = np.stack([self._cut(cut.track, cut.start, self.segment_frames) for cut in cuts])
        return Crops(
            codes=_tensor(codes).transpose(1, 2).contiguous(),
            tracks=tuple(cut.track for cut in cuts),
            places=tuple(cut.place for cut in cuts),
            prompts=tuple(self._prompt(cut, prompt_frames) for cut in cuts),
            bars=() if self._steps is None else tuple(self._bar(cut, self._steps) for cut in cuts),
        )

    def _bar(self, cut: Cut, steps: BeatSteps) -> BarPlace | None:
        """Gives where a crop starts; None where nobody knows which of the track's beats a bar begins with."""
        track = self._store.tracks[cut.track]
        assert track.tempo is not None, track
        return steps.place(cut.start, self._store.loop_frames(cut.track)) if starts_on_bar(track.tempo) else None

    def _prompt(self, cut: Cut, wanted: int) -> torch.Tensor | None:
        """Gives codes [K, P] from elsewhere in the crop's track."""
        track = self._store.tracks[cut.track]
        gap = math.ceil(GAP_S * self._store.frame_rate)
        plan = PromptPlan(segment=self.segment_frames, wanted=wanted, gap=gap, seed=self._seed)
        found = None if track.loop else plan.choose(track.num_frames, cut)
        return None if found is None else _tensor(self._cut(cut.track, *found)).t().contiguous()

    def _cut(self, track: int, start: int, size: int) -> np.ndarray:
        return self._store.codes(track)[start : start + size]


def _tensor(codes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(codes.astype(np.int64))
