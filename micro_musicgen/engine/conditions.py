"""Which rows a generation computes: the clips' own conditions, and the branches that guidance compares them with.

A branch is every clip under some of its conditions. From the most conditioned branch b_0 to the least b_n, guidance is
b_n + c_{n-1} (b_{n-1} - b_n) + ... + c_0 (b_0 - b_1): u + w (c - u) with two branches, and with three, where sound and
text have coefficients of their own, u + w_a (a - u) + w_t (at - a).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from micro_musicgen.conditioners.base import ConditionTensors
from micro_musicgen.conditioners.fusing import Fused, Fuses, fuse


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What B clips are told. null: the same of clips that nothing is said about. audio: names whose kind is audio."""

    conditional: ConditionTensors
    null: ConditionTensors
    audio: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Conditions of all rows, branch after branch, most conditioned first. coefs: one less than branches."""

    conditions: ConditionTensors
    coefs: tuple[float, ...] = ()


def guided_rows(heard: Heard, coef: float, coef_audio: float | None = None) -> Rows:
    """Gives the rows to compute. coef_audio: the coefficient of audio conditions; None for that of all others.

    What can't change a clip is not computed: a branch that equals the next one because nothing was said that sets them
    apart, and a branch whose weight in the sum is zero (with coefficient 1 the conditional one is left, with 0 the
    null one). What a clip gives does not depend on which are left out: they come out as differences of exactly zero.
    """
    said = {name for name, (_, mask) in heard.conditional.items() if bool(mask.any())}
    others, audio = said - heard.audio, said & heard.audio
    steps: list[tuple[set[str], float]] = [(others | audio, coef)]
    if coef_audio is not None:
        steps = [(others, coef), (audio, coef_audio)]
    # Names that are still said in each branch, and the coefficients between neighbours.
    branches, coefs = [said], []
    for names, each in steps:
        if names:
            branches.append(branches[-1] - names)
            coefs.append(each)
    kept, coefs = _without_idle(branches, coefs)
    parts = [_only(heard, branch) for branch in kept]
    return Rows(conditions=_stacked(parts), coefs=tuple(coefs))


def _without_idle(branches: list[set[str]], coefs: list[float]) -> tuple[list[set[str]], list[float]]:
    """Leaves out branches whose weight is zero: c_i - c_{i-1} for those in between, c_0 and 1 - c_{n-1} at the ends."""
    weights = [after - before for before, after in zip([0.0, *coefs], [*coefs, 1.0], strict=True)]
    kept = [index for index, weight in enumerate(weights) if weight != 0]
    # Between two that are left, all coefficients are the same.
    return [branches[index] for index in kept], [coefs[index] for index in kept[:-1]]


def _only(heard: Heard, names: Collection[str]) -> ConditionTensors:
    return {name: heard.conditional[name] if name in names else heard.null[name] for name in heard.conditional}


def _stacked(branches: Sequence[ConditionTensors]) -> ConditionTensors:
    if len(branches) == 1:
        return branches[0]
    stacked = {}
    for name in branches[0]:
        parts = [branch[name] for branch in branches]
        length = max(x.shape[1] for x, _ in parts)
        stacked[name] = (
            torch.cat([_padded(x, length) for x, _ in parts]),
            torch.cat([_padded(mask, length) for _, mask in parts]),
        )
    return stacked


def _padded(x: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - x.shape[1]
    return torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1) if missing else x


def fused_rows(spec: Fuses, rows: Rows, *, device: torch.device, dtype: torch.dtype) -> Fused:
    """Gives the rows' conditions as the network takes them, with a mask of the prefix wherever the model heeds masks.

    Without, a batch in which nothing is padded would be read by another kernel, whose sums differ in the last bit: a
    clip would depend on its neighbours.
    """
    fused = fuse(spec, rows.conditions, device=device, dtype=dtype)
    if spec.mask_padding and fused.prefix is not None and fused.prefix_mask is None:
        fused = replace(fused, prefix_mask=torch.ones(fused.prefix.shape[:2], dtype=torch.bool, device=device))
    return fused


def guided_logits(logits: torch.Tensor, coefs: Sequence[float], num_clips: int) -> torch.Tensor:
    """Gives logits [B, ...] of the branches' logits [at least (1 + len(coefs)) * B, ...]."""
    found = logits[len(coefs) * num_clips : (1 + len(coefs)) * num_clips]
    less = found
    for index in range(len(coefs) - 1, -1, -1):
        more = logits[index * num_clips : (index + 1) * num_clips]
        moved = found + coefs[index] * (more - less)
        # Exactly `more` for clips that no branch before has moved, as when they are alone and this one is not guided.
        found = torch.where(found == less, more, moved) if coefs[index] == 1 else moved
        less = more
    return found
