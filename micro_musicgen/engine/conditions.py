"""Which rows a generation computes: the clips' own conditions, and the branches that guidance compares them with."""

from __future__ import annotations

import torch

from micro_musicgen.conditioners.base import ConditionTensors


def guided_rows(
    conditional: ConditionTensors, null: ConditionTensors | None, cfg_coef: float
) -> tuple[ConditionTensors, bool]:
    """Gives the rows to compute and whether they are two branches, conditional before null.

    No second branch where it changes nothing: nothing is conditioned, the coefficient is 1, or no clip has a condition.
    """
    if not conditional or null is None or cfg_coef == 1 or _is_empty(conditional):
        return conditional, False
    both = {}
    for name, (embeddings, mask) in conditional.items():
        other, other_mask = null[name]
        length = max(embeddings.shape[1], other.shape[1])
        both[name] = (
            torch.cat([_padded(embeddings, length), _padded(other, length)]),
            torch.cat([_padded(mask, length), _padded(other_mask, length)]),
        )
    return both, True


def _is_empty(conditions: ConditionTensors) -> bool:
    return not any(bool(mask.any()) for _, mask in conditions.values())


def _padded(x: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - x.shape[1]
    return torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1) if missing else x
