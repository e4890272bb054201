"""Batches of audio for training a codec: crops of equal length, each a pure function of (seed, step)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from micro_musicgen.data.bank import AudioBank
from micro_musicgen.data.beat_grid import BarPlace, BeatSteps
from micro_musicgen.data.beat_view import BeatBank, starts_on_bar
from micro_musicgen.data.crop_batch import GAP_S, Cut, PromptPlan, training_cuts, validation_cuts
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.slots import SlotPlan, evenly_spaced, segment_starts
from micro_musicgen.errors import MicroMusicGenError


@dataclass(frozen=True)
class AudioCut:
    """One crop and its prompt. wav: float32 [L]. prompt: float32 [P] from elsewhere in the track, None without one.

    bar: where it starts in beat time, None where nobody knows.
    """

    track: int
    place: int
    wav: np.ndarray
    prompt: np.ndarray | None
    bar: BarPlace | None = None


class AudioCrops:
    """Endless training batches and a fixed validation set. Invariant: `batch(step, n)` is always the same audio.

    That is what makes a resumed run continue with the numbers of one that was never stopped. Tracks are drawn in
    proportion to duration times weight, every slot of the data once per pass (see `slots`). beats: the crops are in
    beat time, and start on its beats or bars; seconds are then nominal, and every track has a tempo.
    """

    def __init__(
        self,
        tracks: Sequence[Track],
        *,
        sample_rate: int,
        segment_s: float,
        seed: int,
        ram_gb: float = 2.0,
        beats: BeatSteps | None = None,
    ) -> None:
        self.segment_samples = round(segment_s * sample_rate)
        if self.segment_samples < 1:
            raise MicroMusicGenError(f"segment of {segment_s:g} s holds no sample; give a longer segment_duration")
        self._beats = beats
        self._bank: AudioBank | BeatBank
        if beats is None:
            self._bank = AudioBank(tracks, sample_rate=sample_rate, segment=self.segment_samples, ram_gb=ram_gb)
        else:
            assert self.segment_samples % beats.per_beat == 0, (self.segment_samples, beats)
            self._bank = BeatBank(list(tracks), beats, segment=self.segment_samples, ram_gb=ram_gb)
        masses = [n * track.draw_weight for n, track in zip(self._bank.lengths, tracks, strict=True)]
        self._plan = SlotPlan(masses, self.segment_samples, seed)
        self._seed, self._gap = seed, math.ceil(GAP_S * sample_rate)

    @property
    def crops_per_pass(self) -> int:
        """Crops after which all of the data has been drawn from once."""
        return self._plan.num_slots

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Gives float32 audio [B / world_size, 1, L]: one rank's share of the batch of training step `step` >= 0."""
        return stacked(cut.wav for cut in self.cuts(step, batch_size, rank, world_size))

    def cuts(
        self, step: int, batch_size: int, rank: int = 0, world_size: int = 1, *, prompt: int = 0, grain: int = 1
    ) -> list[AudioCut]:
        """Gives the crops of `batch`, each with a prompt of `prompt` samples, 0 for none.

        Prompts are a whole multiple of `grain` samples long, shorter where a track has not enough room, down to a
        third. A track shorter than a crop has none: all of it is in the crop.
        """
        cuts = training_cuts(self._locate, step, batch_size, rank, world_size)
        return [self._taken(cut, prompt, grain) for cut in cuts]

    def valid_batches(self, batch_size: int, max_items: int) -> Iterator[torch.Tensor]:
        """Gives the same batches [b, 1, L] on every call: whole segments spread over the data, b <= batch_size.

        Every track takes part with its consecutive segments, a short one once, looped; at most `max_items` in all.
        """
        return (stacked(cut.wav for cut in cuts) for cuts in self.valid_cuts(batch_size, max_items))

    def valid_cuts(
        self, batch_size: int, max_items: int, *, prompt: int = 0, grain: int = 1
    ) -> Iterator[list[AudioCut]]:
        """Gives the crops of `valid_batches`, each with a prompt as in `cuts`."""
        found = [
            (track, start)
            for track, length in enumerate(self._bank.lengths)
            for start in segment_starts(length, self.segment_samples)
        ]
        remaining = iter(validation_cuts(evenly_spaced(found, max_items)))
        while chosen := list(islice(remaining, batch_size)):
            yield [self._taken(cut, prompt, grain) for cut in chosen]

    def _locate(self, place: int) -> tuple[int, int]:
        track, position = self._plan.locate(place)
        return track, self._bank.start_of(track, position)

    def _taken(self, cut: Cut, prompt: int, grain: int) -> AudioCut:
        length, loops = self._bank.lengths[cut.track], self._bank.loops(cut.track)
        wav = self._bank.cut_at(cut.track, cut.start)
        plan = PromptPlan(segment=self.segment_samples, wanted=prompt, gap=self._gap, grain=grain, seed=self._seed)
        found = None if loops else plan.choose(length, cut)
        cut_out = None if found is None else self._bank.cut_at(cut.track, *found)
        return AudioCut(cut.track, cut.place, wav, cut_out, self._bar(cut))

    def _bar(self, cut: Cut) -> BarPlace | None:
        if self._beats is None or not isinstance(self._bank, BeatBank):
            return None
        view = self._bank.views[cut.track]
        tempo, loop = view.track.tempo, view.length if view.loops else None
        assert tempo is not None, view
        return self._beats.place(cut.start, loop) if starts_on_bar(tempo) else None


def stacked(wavs: Iterable[np.ndarray]) -> torch.Tensor:
    """Gives [B, 1, L] of B sounds [L]."""
    return torch.from_numpy(np.stack(list(wavs)))[:, None, :]
