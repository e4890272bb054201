"""Is a clip new, or did the model learn a sound by heart? How near a clip comes to the training sounds, in an embedding
and in codes copied verbatim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from micro_musicgen.errors import MicroMusicGenError

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Nearest:
    """For each of N clips its nearest training clip: distance [N] and place [N].

    relative [N]: that distance over the clip's median distance to a training track. A copy is near one track and far
    from the others, about 0; a blur that is alike to all of training has about 1. NaN where there is one track only.
    """

    distance: Array
    index: npt.NDArray[np.int64]
    relative: Array


def nearest(clips: npt.ArrayLike, training: npt.ArrayLike, tracks: Sequence[int] | None = None) -> Nearest:
    """Gives the training embedding [M, D] nearest to each embedding [N, D].

    tracks: which track each training embedding is of, where several are of one.

    Euclidean, every dimension in units of its standard deviation over the training set and the whole divided by
    sqrt(D), so that distances of embedders of any width are alike: unrelated clips are about sqrt(2) apart.

    Raises:
        MicroMusicGenError: no embeddings, other widths, or numbers that are not finite.
    """
    rows, pool = (np.asarray(side, dtype=np.float64) for side in (clips, training))
    if rows.ndim != 2 or pool.ndim != 2 or not len(rows) or not len(pool) or rows.shape[1] != pool.shape[1]:
        raise MicroMusicGenError(f"embeddings of shapes {rows.shape} and {pool.shape} have no distance; give [N, D]")
    if not (np.isfinite(rows).all() and np.isfinite(pool).all()):
        raise MicroMusicGenError("embeddings hold NaN or infinity; check the clips that they come from")
    scale = pool.std(axis=0)
    scale = np.where(scale > 1e-9 * max(1e-30, float(scale.max())), scale, 1.0) * np.sqrt(pool.shape[1])
    rows, pool = rows / scale, pool / scale
    _, owner = np.unique(np.arange(len(pool)) if tracks is None else np.asarray(tracks), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    begins = np.flatnonzero(np.diff(owner[order], prepend=-1))
    few = max(1, _AT_ONCE // pool.size)
    distances, places, relatives = [], [], []
    for begin in range(0, len(rows), few):
        # Differences, not |a|^2 + |b|^2 - 2ab: that one loses the small distances, which are the ones that matter.
        apart = np.sqrt(np.square(rows[begin : begin + few, None] - pool[None]).sum(axis=-1))
        places.append(apart.argmin(axis=1))
        distances.append(apart.min(axis=1))
        to_tracks = np.minimum.reduceat(apart[:, order], begins, axis=1)
        usual = np.median(to_tracks, axis=1) if len(begins) > 1 else np.full(len(apart), np.nan)
        relatives.append(distances[-1] / np.maximum(usual, 1e-12))
    return Nearest(np.concatenate(distances), np.concatenate(places).astype(np.int64), np.concatenate(relatives))


@dataclass(frozen=True)
class Copied:
    """The longest run of frames that a clip shares with a training track, all codebooks alike.

    frames: its length, 0 for none. at: its first frame in the clip. track, track_at: where it is in training.
    """

    frames: int
    at: int = 0
    track: int | None = None
    track_at: int | None = None


def copied_runs(clips: Sequence[Codes], training: Sequence[Codes]) -> list[Copied]:
    """Gives the longest run that each clip [K, T] has copied from the training tracks [K, T], in clip order.

    Exact, by a suffix array over all frames: n frames take n log^2 n time and 4 n log(longest run) bytes.

    Raises:
        MicroMusicGenError: nothing to compare, or other numbers of codebooks.
    """
    everything = [*training, *clips]
    if not clips or not training or len({len(codes) for codes in everything}) != 1:
        raise MicroMusicGenError(f"{len(clips)} clips and {len(training)} tracks of codes cannot be compared")
    frames, piece, place = _joined(everything)
    ranks = _ranks(frames)
    order = np.argsort(ranks[-1], kind="stable")
    is_pool = piece[order] < len(training)
    positions = np.arange(len(order))
    # In the order of suffixes a clip's best match is the nearest suffix of training above it, or the one below.
    above = np.maximum.accumulate(np.where(is_pool, positions, -1))
    below = np.minimum.accumulate(np.where(is_pool, positions, len(order))[::-1])[::-1]
    best: dict[int, Copied] = {}
    for neighbour in (above, below):
        usable = ~is_pool & (neighbour >= 0) & (neighbour < len(order))
        ours, theirs = order[usable], order[neighbour[usable]]
        lengths = _common(ranks, ours, theirs)
        for clip in range(len(clips)):
            mine = np.flatnonzero(piece[ours] == len(training) + clip)
            if not len(mine):
                continue
            top = mine[lengths[mine].argmax()]
            found = int(lengths[top])
            if found > best.get(clip, Copied(0)).frames:
                at, source = int(ours[top]), int(theirs[top])
                best[clip] = Copied(found, int(place[at]), int(piece[source]), int(place[source]))
    return [best.get(clip, Copied(0)) for clip in range(len(clips))]


def _joined(pieces: Sequence[Codes]) -> tuple[Codes, Codes, Codes]:
    """Gives all frames as one line of numbers, each piece ended by a number of its own, which no run can cross.

    With it, for each place, the piece that it belongs to and its frame there.
    """
    stacked = np.concatenate([np.asarray(codes, dtype=np.int64) for codes in pieces], axis=1).T
    _, names = np.unique(stacked, axis=0, return_inverse=True)
    names, ends = names.reshape(-1), np.cumsum([np.asarray(codes).shape[1] for codes in pieces])
    separators = names.max(initial=0) + 1 + np.arange(len(pieces))
    line = np.insert(names, ends, separators).astype(np.int64)
    lengths = np.diff(ends, prepend=0) + 1
    piece = np.repeat(np.arange(len(pieces)), lengths)
    place = np.arange(len(line)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return line, piece, place


def _ranks(line: Codes) -> list[npt.NDArray[np.int32]]:
    """Gives the rank of the 1, 2, 4, ... frames from each place on, until no two are alike (Manber and Myers)."""
    ranks = [np.unique(line, return_inverse=True)[1].reshape(-1).astype(np.int32)]
    width = 1
    while int(ranks[-1].max()) + 1 < len(line):
        first = ranks[-1].astype(np.int64)
        second = np.zeros_like(first)  # beyond the end there is nothing, which comes before everything
        second[: len(line) - width] = first[width:] + 1
        ranks.append(np.unique(first * (len(line) + 1) + second, return_inverse=True)[1].reshape(-1).astype(np.int32))
        width *= 2
    return ranks


def _common(ranks: list[npt.NDArray[np.int32]], first: Codes, second: Codes) -> Codes:
    """Gives how many frames two places have in common from there on, for arrays of places."""
    length = np.zeros(len(first), dtype=np.int64)
    for level in range(len(ranks) - 1, -1, -1):
        # No run passes its piece's separator, which is alike with nothing, so no index leaves the line.
        alike = ranks[level][first + length] == ranks[level][second + length]
        length += np.where(alike, 1 << level, 0)
    return length
