"""How many threads a step is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

ONE_THREAD_BELOW = 8_000_000
"""Bytes of weights that a step reads below which waking a second thread costs more than it gains (bench/NOTES.md)."""


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Has torch use `number` threads within the block; None changes nothing."""
    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
