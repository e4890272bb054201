"""Batches of codes for training an LM: crops of a token store, each a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from micro_musicgen.data.slots import SlotPlan, evenly_spaced, rank_places, segment_starts
from micro_musicgen.data.tokens import TokenStore
from micro_musicgen.errors import MicroMusicGenError


class CodeCrops:
    """Endless training batches and a fixed validation set. Invariant: `batch(step, n)` is always the same codes.

    Tracks are drawn in proportion to the duration of their audio (not of its loops) times their weight, every slot
    of the data once per pass (see `slots`).
    """

    def __init__(self, store: TokenStore, *, segment_frames: int, seed: int) -> None:
        shortest = min(store.tracks, key=lambda track: track.num_frames)
        if not 1 <= segment_frames <= shortest.num_frames:
            raise MicroMusicGenError(
                f"segment of {segment_frames} frames does not fit into {shortest.name} ({shortest.num_frames} frames) "
                f"of {store.folder}; encode the data set again for that segment_duration"
            )
        self._store = store
        self.segment_frames = segment_frames
        masses = [track.duration_s * store.frame_rate * track.weight for track in store.tracks]
        self._plan = SlotPlan(masses, segment_frames, seed)

    @property
    def crops_per_pass(self) -> int:
        """Crops after which all of the data has been drawn from once."""
        return self._plan.num_slots

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Gives int64 codes [B / world_size, K, T]: one rank's share of the batch of training step `step` >= 0.

        batch_size: B, over all ranks. The ranks together take the crops that one alone would, so a run may go on with
        another number of ranks and every slot of the data is seen once per pass all the same.

        Raises:
            MicroMusicGenError: B is no multiple of world_size.
        """
        crops = []
        for place in rank_places(batch_size, rank, world_size):
            track, position = self._plan.locate(step * batch_size + place)
            starts = self._store.tracks[track].num_frames - self.segment_frames + 1
            crops.append(self._cut(track, int(position * starts)))
        return _stack(crops)

    def valid_batches(self, batch_size: int, max_items: int) -> Iterator[torch.Tensor]:
        """Gives the same batches [b, K, T] on every call: whole segments spread over the data, b <= batch_size.

        Every track takes part with its consecutive segments, a looped one once; at most `max_items` in all.
        """
        cuts = [
            (index, start)
            for index, track in enumerate(self._store.tracks)
            for start in ([0] if track.loop else segment_starts(track.num_frames, self.segment_frames))
        ]
        remaining = iter(evenly_spaced(cuts, max_items))
        while chosen := list(islice(remaining, batch_size)):
            yield _stack([self._cut(track, start) for track, start in chosen])

    def _cut(self, track: int, start: int) -> np.ndarray:
        return self._store.codes(track)[start : start + self.segment_frames]


def _stack(crops: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(crops).astype(np.int64)).transpose(1, 2).contiguous()
