"""In which order a language model says its codes: which frame each codebook gives at each step of the sequence.

audiocraft's codebook patterns as plain tables, computed once for a length. A sequence has S steps; step 0 is empty, and
a step may give one code of some codebooks (delay), of one (unroll), or of none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.registry import Registry

Layout = list[list[tuple[int, int]]]
"""For every step the (frame, codebook) pairs that it gives; frames past the end are dropped later."""

MakeLayout = Callable[[int, int, Mapping[str, Any]], Layout]
patterns: Registry[MakeLayout] = Registry("codebook pattern")


@dataclass(frozen=True)
class SequencePlan:
    """The order of one clip's codes.

    frames: int64 [K, S], the frame that codebook k gives at step s, -1 for none. steps: int64 [K, T], its inverse.
    complete: for every step how many leading frames have all their codebooks once it is given.
    """

    frames: torch.Tensor
    steps: torch.Tensor
    complete: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        """Steps of the sequence, the empty first one included."""
        return self.frames.shape[1]

    def first_step(self, frame: int) -> int:
        """Gives the first step with a code of `frame`, from which on a prompt of that many frames is continued."""
        return int(self.steps[:, frame].min())


def sequence_plan(config: Mapping[str, Any], num_codebooks: int, num_frames: int) -> SequencePlan:
    """Gives the order of `num_frames` frames under the `codebooks_pattern` group of a config.

    Raises:
        MicroMusicGenError: an unknown pattern, or arguments that don't fit the number of codebooks.
    """
    name = str(config["modeling"])
    layout = patterns.get(name)(num_codebooks, num_frames, config.get(name) or {})
    frames = torch.full((num_codebooks, len(layout)), -1, dtype=torch.int64)
    steps = torch.full((num_codebooks, num_frames), -1, dtype=torch.int64)
    rows, table = frames.numpy(), steps.numpy()  # indexing single items of a tensor is slow
    for step, given in enumerate(layout):
        for frame, codebook in given:
            if frame < num_frames:
                rows[codebook, step] = frame
                table[codebook, frame] = step
    assert (steps >= 0).all(), "a pattern gives every code once"
    done = steps.amax(0).cummax(0).values  # the step after which frame t and all before it are there
    complete = torch.searchsorted(done, torch.arange(len(layout)), right=True)
    return SequencePlan(frames, steps, tuple(complete.tolist()))


def _numbers(config: Mapping[str, Any], key: str, default: Sequence[int], length: int) -> list[int]:
    found = [int(n) for n in (default if config.get(key) is None else config[key])]
    if len(found) != length or sorted(found) != found:
        raise MicroMusicGenError(f"codebooks_pattern {key} {found} must be {length} numbers that don't fall")
    return found


@patterns.register("delay")
def _delay(num_codebooks: int, num_frames: int, config: Mapping[str, Any]) -> Layout:
    """Codebook k lags by delays[k] steps; the first `flatten_first` frames are given one code a step."""
    delays = _numbers(config, "delays", range(num_codebooks), num_codebooks)
    flat, empty = int(config.get("flatten_first") or 0), int(config.get("empty_initial") or 0)
    layout: Layout = [] if empty < 0 else [[] for _ in range(1 + empty)]
    layout += [[(frame, k)] for frame in range(min(num_frames, flat)) for k in range(num_codebooks)]
    for step in range(flat, num_frames + max(delays)):
        layout.append([(step - delay, k) for k, delay in enumerate(delays) if step - delay >= flat])
    return layout


@patterns.register("parallel")
def _parallel(num_codebooks: int, num_frames: int, config: Mapping[str, Any]) -> Layout:
    """All codebooks of a frame at once."""
    delays = {"delays": [0] * num_codebooks, "empty_initial": config.get("empty_initial")}
    return _delay(num_codebooks, num_frames, delays)


@patterns.register("unroll")
def _unroll(num_codebooks: int, num_frames: int, config: Mapping[str, Any]) -> Layout:
    """Codebook k is given at inner step flattening[k] of its frame, delays[k] frames late."""
    inner = _numbers(config, "flattening", range(num_codebooks), num_codebooks)
    delays = _numbers(config, "delays", [0] * num_codebooks, num_codebooks)
    last = num_frames + max(delays)
    found: list[tuple[int, list[tuple[int, int]]]] = [(-1, [])]
    for frame in range(last):
        for step in range(max(inner) + 1):
            books = [k for k in range(num_codebooks) if inner[k] == step]
            late = delays[books[0]] if books else 0
            if frame + late < last:
                found.append((frame + late, [(frame, k) for k in books]))
    return [given for _, given in sorted(found)]


@patterns.register("coarse_first")
def _coarse_first(num_codebooks: int, num_frames: int, config: Mapping[str, Any]) -> Layout:
    """The whole first codebook, then the others together."""
    delays = _numbers(config, "delays", [0] * (num_codebooks - 1), num_codebooks - 1)
    layout: Layout = [[], *([(frame, 0)] for frame in range(num_frames))]
    for step in range(num_frames + max(delays, default=0)):
        layout.append([(step - delay, k + 1) for k, delay in enumerate(delays) if step >= delay])
    return layout


@patterns.register("musiclm")
def _musiclm(num_codebooks: int, num_frames: int, config: Mapping[str, Any]) -> Layout:
    """Groups of codebooks one after the other, each of them flat."""
    size = int(config.get("group_by") or 2)
    if num_codebooks % size:
        raise MicroMusicGenError(f"codebooks_pattern group_by {size} does not divide {num_codebooks} codebooks")
    layout: Layout = [[]]
    for first in range(0, num_codebooks, size):
        layout += [[(frame, k)] for frame in range(num_frames) for k in range(first, first + size)]
    return layout
