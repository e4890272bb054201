"""Train and valid by file, from a seed, so that a data set that grows keeps what it had where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from micro_musicgen.data.manifest import Track
from micro_musicgen.errors import MicroMusicGenError


def split(tracks: Sequence[Track], *, valid_fraction: float, seed: int) -> tuple[list[Track], list[Track]]:
    """Gives (train, valid), both in the order of `tracks` and neither empty.

    Files are taken into valid in an order that each file's sound and the seed fix, so a new file shifts the border
    and does not reshuffle the rest. A file that would overshoot `valid_fraction` of the duration is passed over.
    A single file is both splits: there is nothing else to validate on, and the report says so.

    Raises:
        MicroMusicGenError: valid_fraction is not inside (0, 1).
    """
    if not 0 < valid_fraction < 1:
        raise MicroMusicGenError(f"valid fraction {valid_fraction:g} must lie between 0 and 1, such as 0.1")
    assert tracks, "nothing to split"
    if len(tracks) == 1:
        return list(tracks), list(tracks)
    target_s = valid_fraction * sum(track.duration for track in tracks)
    order = sorted(range(len(tracks)), key=lambda index: _rank(tracks[index], seed))
    chosen: set[int] = set()
    held_s = 0.0
    for index in order:
        duration_s = tracks[index].duration
        if abs(held_s + duration_s - target_s) < abs(held_s - target_s) and len(chosen) < len(tracks) - 1:
            chosen.add(index)
            held_s += duration_s
    if not chosen:
        chosen.add(min(order, key=lambda index: tracks[index].duration))
    train = [track for index, track in enumerate(tracks) if index not in chosen]
    return train, [tracks[index] for index in sorted(chosen)]


def _rank(track: Track, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{track.audio_hash or track.path}".encode()).hexdigest()
