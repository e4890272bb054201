"""Keeping a step's memory in the process from one step to the next.

glibc maps every large block from the system and gives it back when it is freed, so that each step of training or of a
sampler on a CPU pays a page fault for every 4 KiB of its activations: a fifth of the time of a small model's step.
"""

from __future__ import annotations

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Names of glibc's mallopt."""
_NEVER = 2**31 - 1
_GROW_BYTES = 2**26


@functools.cache
def keep_freed_memory() -> bool:
    """Has this process keep memory that it frees, for its next use. Says whether the C library could be told so.

    Peak memory stays what it was; memory once held is not given back before the process ends. glibc only.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _GROW_BYTES))
    return all(set_option(option, value) == 1 for option, value in wanted)
