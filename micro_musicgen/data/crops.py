"""Batches of audio for training a codec: crops of equal length, each a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from micro_musicgen.data.bank import AudioBank
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.slots import SlotPlan, evenly_spaced, rank_places, segment_starts
from micro_musicgen.errors import MicroMusicGenError


class AudioCrops:
    """Endless training batches and a fixed validation set. Invariant: `batch(step, n)` is always the same audio.

    That is what makes a resumed run continue with the numbers of one that was never stopped. Tracks are drawn in
    proportion to duration times weight, every slot of the data once per pass (see `slots`).
    """

    def __init__(
        self, tracks: Sequence[Track], *, sample_rate: int, segment_s: float, seed: int, ram_gb: float = 2.0
    ) -> None:
        self.segment_samples = round(segment_s * sample_rate)
        if self.segment_samples < 1:
            raise MicroMusicGenError(f"segment of {segment_s:g} s holds no sample; give a longer segment_duration")
        self._bank = AudioBank(tracks, sample_rate=sample_rate, segment=self.segment_samples, ram_gb=ram_gb)
        masses = [n * track.draw_weight for n, track in zip(self._bank.lengths, tracks, strict=True)]
        self._plan = SlotPlan(masses, self.segment_samples, seed)

    @property
    def crops_per_pass(self) -> int:
        """Crops after which all of the data has been drawn from once."""
        return self._plan.num_slots

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Gives float32 audio [B / world_size, 1, L]: one rank's share of the batch of training step `step` >= 0."""
        places = rank_places(batch_size, rank, world_size)
        items = (self._plan.locate(step * batch_size + place) for place in places)
        return _stack(self._bank.cut(track, position) for track, position in items)

    def valid_batches(self, batch_size: int, max_items: int) -> Iterator[torch.Tensor]:
        """Gives the same batches [b, 1, L] on every call: whole segments spread over the data, b <= batch_size.

        Every track takes part with its consecutive segments, a short one once, looped; at most `max_items` in all.
        """
        cuts = [
            (track, start)
            for track, length in enumerate(self._bank.lengths)
            for start in segment_starts(length, self.segment_samples)
        ]
        remaining = iter(evenly_spaced(cuts, max_items))
        while chosen := list(islice(remaining, batch_size)):
            yield _stack(self._bank.cut_at(track, start) for track, start in chosen)


def _stack(crops: Iterator[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(list(crops)))[:, None, :]
