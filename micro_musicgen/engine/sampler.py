"""From logits to codes: what may be drawn, and which of it chance picks.

A draw inverts the cumulated probabilities at a number in [0, 1) that belongs to the clip, the frame and the codebook.
These numbers are drawn on the CPU before anything else, from a generator of each clip's own: a clip sounds the same
whatever batch it rides in, chunk by chunk or whole, and no global random state is read or changed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence

import numpy as np
import torch

from micro_musicgen.contracts import GenerationParams

Progress = Callable[[int, int], None]
"""Hears (frames done, frames in all)."""

_UNSEEDED = torch.Generator().initial_seed()
"""What torch's global generator says when nobody has seeded it."""

BELOW_ONE = 1 - 2**-24
"""The largest fp32 number below 1."""


def clip_generators(seed: int, num_clips: int, *, first_clip: int = 0) -> list[torch.Generator]:
    """Gives one random generator per clip, on the CPU so that every device draws the same.

    Clip i of a seed is the same whichever batch it is made in; clips of different seeds have nothing in common.
    """
    generators = []
    for clip in range(first_clip, first_clip + num_clips):
        digest = hashlib.sha256(f"{seed} {clip}".encode()).digest()
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))
    return generators


def chances(generators: Sequence[torch.Generator], num_codebooks: int, num_frames: int) -> torch.Tensor:
    """Gives numbers in [0, 1), fp32 [B, K, T]. A longer clip begins with the numbers of a shorter one."""
    return torch.stack([torch.rand(num_frames, num_codebooks, generator=g).T for g in generators]).contiguous()


def draw(logits: torch.Tensor, params: GenerationParams, chance: torch.Tensor) -> torch.Tensor:
    """Gives one code for each row of fp32 `logits` [..., card], int64 [...]; see `draw_checked`."""
    return draw_checked(logits, params, chance)[0]


def draw_checked(
    logits: torch.Tensor, params: GenerationParams, chance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives one code for each row of fp32 `logits` [..., card], int64 [...], and a number [...] finite if the row was.

    chance [...] in [0, 1) decides. top_p wins over top_k, greedy over both. Codes as likely as the k-th stay in too.
    """
    if params.greedy:
        best, codes = logits.max(dim=-1)
        return codes, best
    if params.temperature != 1:
        logits = logits / params.temperature
    if params.top_p > 0:
        return _draw_nucleus(logits, params.top_p, chance)
    weights = logits.softmax(dim=-1)
    if 0 < params.top_k < logits.shape[-1]:
        # As a number and not by masking: choosing between elements is ten times as slow on a CPU.
        weights = torch.ge(logits, _kth_largest(logits, params.top_k), out=torch.empty_like(weights)).mul_(weights)
    return _invert(weights, chance)


def _kth_largest(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Gives the k-th largest of each row, [..., 1]."""
    if logits.device.type == "cpu":
        # numpy's partition is six times as fast as torch's topk and finds the same number.
        place = logits.shape[-1] - k
        return torch.from_numpy(np.partition(logits.numpy(), place, axis=-1)[..., place : place + 1])
    return logits.topk(k, dim=-1, sorted=True).values[..., -1:]


def _invert(weights: torch.Tensor, chance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives the index whose share of the cumulated `weights` [..., N] holds `chance` [...], and the sum of weights."""
    cumulated = weights.cumsum(dim=-1)
    total = cumulated[..., -1:]
    # Rounding must not put the level on the very top, behind which nothing lies.
    level = torch.minimum(chance.to(total)[..., None] * total, total * BELOW_ONE)
    place = torch.searchsorted(cumulated, level, right=True)[..., 0]
    return place.clamp_(max=weights.shape[-1] - 1), total[..., 0]


def _draw_nucleus(logits: torch.Tensor, top_p: float, chance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws among the likeliest codes until their mass reaches top_p, the one that crosses it included."""
    ranked, codes = logits.sort(dim=-1, descending=True)
    weights = ranked.softmax(dim=-1)
    weights = weights * (weights.cumsum(dim=-1) - weights < top_p)
    place, total = _invert(weights, chance)
    return codes.gather(-1, place[..., None])[..., 0], total


def fresh_seed() -> int:
    """Gives a seed that nobody chose; a program that has called `torch.manual_seed` gets the same one every time."""
    if torch.initial_seed() == _UNSEEDED:
        return secrets.randbits(31)
    return int(torch.randint(2**31, ()))
