"""A batch for training an LM that listens: codes, which tracks they are of, and a sound prompt for each.

A prompt is cut from elsewhere in the crop's own track, so that it tells how the track sounds and nothing of what comes
next. A codec's code depends on the sound around it; the gap keeps that away from the crop, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from micro_musicgen.data.beat_grid import BarPlace
from micro_musicgen.data.slots import rank_places, uniform

GAP_S = 0.5
"""Seconds between a crop and its prompt, at least."""
SHORTEST = 3
"""A track without room for a prompt of the wanted length gives a shorter one, down to one part in so many."""
_PROMPT_STREAM = 0x6A09E667F3BCC908


@dataclass(frozen=True)
class Crops:
    """What a batch is made of. codes: int64 [B, K, T].

    tracks: where each crop's track stands in the manifest. places: the number of each crop in the run, step *
    batch_size + place in the batch, or -1 - n for the n-th of the validation set. prompts: int64 [K, P'] each, P' at
    most as many frames as were asked for; None where the track has no room for one. bars: where each starts, None where
    nobody knows, as in clock time; empty for nowhere.
    """

    codes: torch.Tensor
    tracks: tuple[int, ...]
    places: tuple[int, ...]
    prompts: tuple[torch.Tensor | None, ...]
    bars: tuple[BarPlace | None, ...] = ()


@dataclass(frozen=True)
class Cut:
    """One crop that is to be taken. start: the first frame or sample of it. place: see `Crops`."""

    track: int
    start: int
    place: int


def training_cuts(
    locate: Callable[[int], tuple[int, int]], step: int, batch_size: int, rank: int, world_size: int
) -> list[Cut]:
    """Gives one rank's share of a step. locate: track and start of each crop of the run.

    Raises:
        MicroMusicGenError: batch_size is no multiple of world_size.
    """
    places = [step * batch_size + place for place in rank_places(batch_size, rank, world_size)]
    return [Cut(*locate(place), place) for place in places]


def validation_cuts(found: Sequence[tuple[int, int]]) -> list[Cut]:
    """Gives the validation set that consists of these tracks and starts."""
    return [Cut(track, start, -1 - index) for index, (track, start) in enumerate(found)]


@dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """Where prompts are cut, in samples or frames alike. Invariant: `choose` depends on its arguments and these.

    segment: length of a crop. wanted: of a prompt; 0 for none. gap: between the two. grain: prompts are whole multiples
    of it long. Prompts of the validation set don't depend on the seed.
    """

    segment: int
    wanted: int
    gap: int
    grain: int = 1
    seed: int = 0

    def choose(self, length: int, cut: Cut) -> tuple[int, int] | None:
        """Gives start and size of the prompt for a crop of a track that is `length` long; None where it has no room.

        Every place outside of [start - gap, end + gap) is equally likely.
        """
        before = max(0, cut.start - self.gap)
        after_from = cut.start + self.segment + self.gap
        after = max(0, length - after_from)
        size = min(self.wanted, max(before, after)) // self.grain * self.grain
        if not size or SHORTEST * size < self.wanted:
            return None
        starts_before, starts_after = (max(0, room - size + 1) for room in (before, after))
        seed = (self.seed if cut.place >= 0 else 0) ^ _PROMPT_STREAM
        chosen = int(uniform(seed, cut.place) * (starts_before + starts_after))
        return (chosen if chosen < starts_before else after_from + chosen - starts_before), size
