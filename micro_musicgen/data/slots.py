"""Which part of which track comes next: stratified, proportional, and a pure function of (seed, index).

The tracks' masses (length times weight) are laid end to end on one line, and the line is cut into equal slots. A pass
visits every slot once in an order of its own and takes one point in each. From pass to pass the point moves on by the
golden ratio of a slot, the rotation that leaves the smallest gaps, so that every short loop in a slot is soon heard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from micro_musicgen.errors import MicroMusicGenError

T = TypeVar("T")

_GOLDEN = (math.sqrt(5) - 1) / 2
_MASK = (1 << 64) - 1


class SlotPlan:
    """An endless series of (track, position). Invariant: item i depends on the masses, the slot, the seed and i only.

    numpy may change the streams of its generators between versions, so the randomness is a hash of our own: a run
    that is resumed after an upgrade sees the same data.
    """

    def __init__(self, masses: Sequence[float], slot: float, seed: int) -> None:
        self._ends = np.cumsum(np.asarray(masses, dtype=np.float64))
        if not len(masses) or not self._ends[-1] > 0:
            raise MicroMusicGenError("no track to draw from: the data set is empty or every weight is 0")
        self._masses = np.asarray(masses, dtype=np.float64)
        self._last = int(np.flatnonzero(self._masses)[-1])
        self._seed = seed & _MASK
        self.num_slots: int = max(1, round(self._ends[-1] / slot))
        self._pass = (-1, np.empty(0, dtype=np.int64))

    def locate(self, index: int) -> tuple[int, float]:
        """Gives item `index` >= 0: the track's index and where in it, in [0, 1)."""
        pass_index, place = divmod(index, self.num_slots)
        slot = int(self._order(pass_index)[place])
        within = (uniform(self._seed, slot) + pass_index * _GOLDEN) % 1.0
        point = (slot + within) / self.num_slots * self._ends[-1]
        track = min(int(np.searchsorted(self._ends, point, side="right")), self._last)
        position = (point - (self._ends[track] - self._masses[track])) / self._masses[track]
        return track, float(min(max(position, 0.0), np.nextafter(1.0, 0.0)))

    def _order(self, pass_index: int) -> npt.NDArray[np.int64]:
        """Gives the slots in the order of one pass; the last one asked for is kept."""
        held, order = self._pass
        if held != pass_index:
            key = _mix(_mix(np.array([self._seed], dtype=np.uint64)) + np.uint64(pass_index + 1))
            slots = np.arange(self.num_slots, dtype=np.uint64)
            order = np.argsort(_mix(_mix(slots) ^ key), kind="stable")
            self._pass = (pass_index, order)
        return order


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Gives a well-stirred bijection of 64-bit words (the SplitMix64 finaliser; Steele, Lea, Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniform(seed: int, index: int) -> float:
    """Gives a number in [0, 1) that belongs to (seed, index), of which only the lowest 64 bits count."""
    key = np.array([(seed ^ 0x5851F42D4C957F2D) & _MASK], dtype=np.uint64)
    word = _mix(_mix(key) ^ np.uint64(index & _MASK))
    return int(word[0] >> np.uint64(11)) / (1 << 53)


def evenly_spaced(items: Sequence[T], max_items: int) -> list[T]:
    """Gives at most `max_items` of `items`, spread over all of them, in order."""
    count = min(len(items), max_items)
    return [items[position * len(items) // count] for position in range(count)]


def segment_starts(length: int, segment: int) -> list[int]:
    """Gives where to cut `length` into segments that don't overlap: [0] where it holds less than two."""
    return [start * segment for start in range(max(1, length // segment))]


def rank_places(batch_size: int, rank: int, world_size: int) -> range:
    """Gives the places of a global batch that one rank takes: rank, rank + world_size, ...

    Raises:
        MicroMusicGenError: the batch cannot be shared out evenly.
    """
    if batch_size % world_size:
        raise MicroMusicGenError(
            f"dataset.batch_size={batch_size} cannot be shared by {world_size} processes; "
            f"give a multiple of {world_size}"
        )
    assert 0 <= rank < world_size, (rank, world_size)
    return range(rank, batch_size, world_size)
