"""Where in the sequence a step is: as a number of Python's, or as a tensor that a CUDA graph can read.

Both answer the same questions, so that a step is written once. The host's cursor cuts buffers to what is filled, which
is cheaper on a CPU; the device's uses whole buffers and a mask, so that every step is the same sequence of kernels.
"""

from __future__ import annotations

from typing import Protocol

import torch

KEY_MULTIPLE = 16
"""Keys that a step reads come in multiples of this many: fp32 rows of scores then start on 64 bytes, and MKL's sums
don't depend on which row of a batch they are in."""


def round_up(number: int, multiple: int) -> int:
    """Gives the least multiple of `multiple` that is not below `number`."""
    return -(-number // multiple) * multiple


class Cursor(Protocol):
    """Invariant: `advance` moves one step; `slot` of the cache follows the step by a fixed distance or rolls."""

    def take(self, table: torch.Tensor, dim: int, ahead: int = 0) -> torch.Tensor:
        """Gives the entry of `table` at the present step, or `ahead` of it; the axis is gone."""

    def put(self, table: torch.Tensor, dim: int, value: torch.Tensor, ahead: int = 0) -> None:
        """Writes `value` where `take` would read."""

    def take_position(self, table: torch.Tensor) -> torch.Tensor:
        """Gives the entry of `table` [positions, ...] for the present position, the prefix counted."""

    def put_slot(self, cache: torch.Tensor, value: torch.Tensor) -> None:
        """Writes `value` [..., hd] into the present slot of `cache` [..., slots, hd]."""

    def open_slot(self, mask: torch.Tensor) -> None:
        """Lets the present slot be heard from now on: zero in the additive `mask` [..., slots]."""

    def heard(self, cache: torch.Tensor, dim: int) -> torch.Tensor:
        """Gives the part of a cache or mask that the present step has to read."""

    def advance(self) -> None:
        """Goes to the next step."""


class HostCursor:
    """For a CPU: views instead of copies.

    step: of the sequence. position: step plus prefix. slot: in the cache. window: slots back that may be heard.
    """

    def __init__(self, step: int, *, prefix: int = 0, window: int | None = None) -> None:
        self.step = step
        self.position = step + prefix
        self.slot = self.position
        self.window = window

    def take(self, table: torch.Tensor, dim: int, ahead: int = 0) -> torch.Tensor:
        """Gives a view."""
        return table.select(dim, self.step + ahead)

    def put(self, table: torch.Tensor, dim: int, value: torch.Tensor, ahead: int = 0) -> None:
        """Writes in place."""
        table.select(dim, self.step + ahead).copy_(value)

    def take_position(self, table: torch.Tensor) -> torch.Tensor:
        """Gives a view [...]."""
        return table[self.position]

    def put_slot(self, cache: torch.Tensor, value: torch.Tensor) -> None:
        """Writes in place."""
        cache.select(-2, self.slot).copy_(value)

    def open_slot(self, mask: torch.Tensor) -> None:
        """Writes in place."""
        mask.select(-1, self.slot).zero_()

    def heard(self, cache: torch.Tensor, dim: int) -> torch.Tensor:
        """Gives a view; what lies behind the present slot up to the multiple is shut by the mask."""
        end = self.slot + 1
        start = 0 if self.window is None else max(0, end - self.window)
        return cache.narrow(dim, start, min(round_up(end - start, KEY_MULTIPLE), cache.shape[dim] - start))

    def advance(self) -> None:
        """Goes on by one."""
        self.step += 1
        self.position += 1
        self.slot += 1


class DeviceCursor:
    """For graphs and compilers: the step is a tensor on the device, and shapes never change."""

    def __init__(self, device: torch.device) -> None:
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)

    def reset(self, step: int, *, prefix: int = 0) -> None:
        """Goes to `step` of a sequence behind `prefix` positions, without waiting for the device."""
        self.step.fill_(step)
        self.position.fill_(step + prefix)

    def take(self, table: torch.Tensor, dim: int, ahead: int = 0) -> torch.Tensor:
        """Gives a copy."""
        return table.index_select(dim, self.step + ahead).squeeze(dim)

    def put(self, table: torch.Tensor, dim: int, value: torch.Tensor, ahead: int = 0) -> None:
        """Writes in place."""
        table.index_copy_(dim, self.step + ahead, value.unsqueeze(dim))

    def take_position(self, table: torch.Tensor) -> torch.Tensor:
        """Gives a copy [...]."""
        return table.index_select(0, self.position).squeeze(0)

    def put_slot(self, cache: torch.Tensor, value: torch.Tensor) -> None:
        """Writes in place."""
        cache.index_copy_(cache.dim() - 2, self.position, value.unsqueeze(-2))

    def open_slot(self, mask: torch.Tensor) -> None:
        """Writes in place."""
        mask.index_fill_(mask.dim() - 1, self.position, 0.0)

    def heard(self, cache: torch.Tensor, dim: int) -> torch.Tensor:
        """Gives the whole."""
        return cache

    def advance(self) -> None:
        """Goes on by one."""
        self.step.add_(1)
        self.position.add_(1)
