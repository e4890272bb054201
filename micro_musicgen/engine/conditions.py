"""Conditions on their way into a network: tensors by name, fused by the way each of them enters, one row per branch.

What makes them (text encoders and the like) is not the engine's business: it takes embeddings and masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from micro_musicgen.engine.architecture import Architecture
from micro_musicgen.engine.tables import sin_embedding
from micro_musicgen.errors import MicroMusicGenError

ConditionTensors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Name -> (embeddings [R, S, D], mask [R, S], nonzero where valid), as audiocraft's condition provider gives them."""


@dataclass(frozen=True, kw_only=True)
class Fused:
    """Conditions of R rows as the network takes them; None where nothing enters that way.

    Masks are bool [R, S], True where valid, and None where everything is.
    """

    rows: int
    prefix: torch.Tensor | None = None
    prefix_mask: torch.Tensor | None = None
    cross: torch.Tensor | None = None
    cross_mask: torch.Tensor | None = None
    added: torch.Tensor | None = None

    @property
    def prefix_length(self) -> int:
        """Positions before the first step of the sequence."""
        return 0 if self.prefix is None else self.prefix.shape[1]


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


def fuse(arch: Architecture, conditions: ConditionTensors, *, device: torch.device, dtype: torch.dtype) -> Fused:
    """Gives the conditions of a batch, fused.

    Raises:
        MicroMusicGenError: a name that the model doesn't know, a missing one, or a width that is not the model's.
    """
    known = (*arch.prefix_conditions, *arch.cross_conditions, *arch.sum_conditions)
    _check(arch, conditions, known)
    prefix: list[tuple[torch.Tensor, torch.Tensor]] = []
    cross: list[tuple[torch.Tensor, torch.Tensor]] = []
    added: torch.Tensor | None = None
    for name, (embeddings, mask) in conditions.items():
        part = (embeddings.to(device, dtype), mask.to(device).bool())
        if name in arch.prefix_conditions:
            prefix.insert(0, part)  # audiocraft puts each one before those that came before it
        elif name in arch.cross_conditions:
            cross.append(part)
        else:
            assert embeddings.shape[1] == 1, f"{name} is added to every step and has one position"
            added = part[0][:, 0] if added is None else added + part[0][:, 0]
    rows = next(iter(conditions.values()))[0].shape[0] if conditions else 0
    prefix_all, prefix_mask = _joined(prefix, arch.mask_padding)
    cross_all, cross_mask = _joined(cross, arch.mask_padding)
    if cross_all is not None and arch.cross_positional_scale:
        positions = sin_embedding(cross_all.shape[1], arch.dim, 10_000.0).to(device, dtype)
        cross_all = cross_all + arch.cross_positional_scale * positions
    return Fused(
        rows=rows, prefix=prefix_all, prefix_mask=prefix_mask, cross=cross_all, cross_mask=cross_mask, added=added
    )


def _check(arch: Architecture, conditions: ConditionTensors, known: tuple[str, ...]) -> None:
    unknown = sorted(set(conditions) - set(known))
    if unknown:
        raise MicroMusicGenError(f"unknown condition {unknown[0]!r}; this model knows: {', '.join(known) or 'none'}")
    missing = sorted(set(arch.cross_conditions) - set(conditions))
    if missing:
        raise MicroMusicGenError(f"condition {missing[0]!r} is missing; this model attends to it at every step")
    for name, (embeddings, mask) in conditions.items():
        if embeddings.dim() != 3 or embeddings.shape[-1] != arch.dim or mask.shape != embeddings.shape[:2]:
            raise MicroMusicGenError(
                f"condition {name!r} has the shapes {tuple(embeddings.shape)} and {tuple(mask.shape)}; "
                f"expected [R, S, {arch.dim}] and [R, S]"
            )


def _joined(
    parts: list[tuple[torch.Tensor, torch.Tensor]], masks: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if not parts:
        return None, None
    mask = torch.cat([mask for _, mask in parts], dim=1)
    wanted = masks and not bool(mask.all())
    return torch.cat([embeddings for embeddings, _ in parts], dim=1), mask if wanted else None
