"""Conditions on their way into a network: tensors by name, fused by the way each of them enters.

Shared by training and playing, so that both hear the same thing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from micro_musicgen.conditioners.base import ConditionTensors
from micro_musicgen.errors import MicroMusicGenError

CROSS_MAX_PERIOD = 10_000.0


class Fuses(Protocol):
    """How conditions enter a network. mask_padding: padded positions are not attended to."""

    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def prefix_conditions(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def cross_conditions(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def sum_conditions(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def cross_positional_scale(self) -> float: ...  # noqa: D102
    @property
    def mask_padding(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class FuserSpec:
    """What `Fuses` asks for, read from an LM's config. cross_positional_scale: 0 for no positions there."""

    dim: int
    prefix_conditions: tuple[str, ...] = ()
    cross_conditions: tuple[str, ...] = ()
    sum_conditions: tuple[str, ...] = ()
    cross_positional_scale: float = 0.0
    mask_padding: bool = False


def read_fuser(config: Mapping[str, Any]) -> FuserSpec:
    """Gives how conditions enter the model that an LM config (as `lm.builder.lm_config` gives it) describes."""
    fuser = config.get("fuser") or {}
    has_positions = bool(fuser.get("cross_attention_pos_emb"))
    return FuserSpec(
        dim=int(config["transformer_lm"]["dim"]),
        prefix_conditions=tuple(fuser.get("prepend") or ()),
        cross_conditions=tuple(fuser.get("cross") or ()),
        sum_conditions=tuple(fuser.get("sum") or ()),
        cross_positional_scale=float(fuser.get("cross_attention_pos_emb_scale", 1.0)) if has_positions else 0.0,
        mask_padding=bool(fuser.get("mask_padding", False)),
    )


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


def fuse(spec: Fuses, conditions: ConditionTensors, *, device: torch.device, dtype: torch.dtype) -> Fused:
    """Gives the conditions of a batch, fused.

    Raises:
        MicroMusicGenError: a name that the model doesn't know, a missing one, or a width that is not the model's.
    """
    known = (*spec.prefix_conditions, *spec.cross_conditions, *spec.sum_conditions)
    _check(spec, conditions, known)
    prefix: list[tuple[torch.Tensor, torch.Tensor]] = []
    cross: list[tuple[torch.Tensor, torch.Tensor]] = []
    added: torch.Tensor | None = None
    for name, (embeddings, mask) in conditions.items():
        part = (embeddings.to(device, dtype), mask.to(device).bool())
        if name in spec.prefix_conditions:
            prefix.insert(0, part)  # audiocraft puts each one before those that came before it
        elif name in spec.cross_conditions:
            cross.append(part)
        else:
            assert embeddings.shape[1] == 1, f"{name} is added to every step and has one position"
            added = part[0][:, 0] if added is None else added + part[0][:, 0]
    rows = next(iter(conditions.values()))[0].shape[0] if conditions else 0
    prefix_all, prefix_mask = _joined(prefix, spec.mask_padding)
    cross_all, cross_mask = _joined(cross, spec.mask_padding)
    if cross_all is not None and spec.cross_positional_scale:
        positions = sin_embedding(cross_all.shape[1], spec.dim, CROSS_MAX_PERIOD).to(device, dtype)
        cross_all = cross_all + spec.cross_positional_scale * positions
    return Fused(
        rows=rows, prefix=prefix_all, prefix_mask=prefix_mask, cross=cross_all, cross_mask=cross_mask, added=added
    )


@functools.lru_cache(maxsize=32)
def sin_embedding(length: int, dim: int, max_period: float) -> torch.Tensor:
    """Gives fp32 [length, dim]: cosines, then sines, of periods that grow from 2 pi to `max_period` times that.

    Kept from call to call: not to be written to.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32) / (half - 1)
    phase = torch.arange(length, dtype=torch.float32)[:, None] / torch.tensor(max_period) ** exponents
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def _check(spec: Fuses, conditions: ConditionTensors, known: tuple[str, ...]) -> None:
    unknown = sorted(set(conditions) - set(known))
    if unknown:
        raise MicroMusicGenError(f"unknown condition {unknown[0]!r}; this model knows: {', '.join(known) or 'none'}")
    missing = sorted(set(spec.cross_conditions) - set(conditions))
    if missing:
        raise MicroMusicGenError(f"condition {missing[0]!r} is missing; this model attends to it at every step")
    for name, (embeddings, mask) in conditions.items():
        if embeddings.dim() != 3 or embeddings.shape[-1] != spec.dim or mask.shape != embeddings.shape[:2]:
            raise MicroMusicGenError(
                f"condition {name!r} has the shapes {tuple(embeddings.shape)} and {tuple(mask.shape)}; "
                f"expected [R, S, {spec.dim}] and [R, S]"
            )


def _joined(
    parts: list[tuple[torch.Tensor, torch.Tensor]], masks: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if not parts:
        return None, None
    mask = torch.cat([mask for _, mask in parts], dim=1)
    # Reading a mask back would have every step wait for a GPU, which gains less from having none.
    wanted = masks and (mask.is_cuda or not bool(mask.all()))
    return torch.cat([embeddings for embeddings, _ in parts], dim=1), mask if wanted else None
