"""Which arithmetic to play a model in."""

from __future__ import annotations

import torch

from micro_musicgen.engine.linear import PRECISIONS, fbgemm_is_there, has_bf16, has_vnni
from micro_musicgen.errors import MicroMusicGenError

CHOICES = ("auto", *PRECISIONS)


def describe_default(device: torch.device) -> str:
    """Gives in words what "auto" means on `device`, and why."""
    chosen = pick_precision("auto", device)
    if device.type != "cpu":
        return f"{chosen} on {device}"
    if chosen == "fp32":
        return "fp32: this torch has no int8 kernels for this CPU"
    activations = "8-bit activations (VNNI)" if has_vnni() else "7-bit activations (no VNNI)"
    return f"int8 on this CPU, {activations}; {'has' if has_bf16() else 'no'} units for bf16"


def pick_precision(name: str, device: torch.device) -> str:
    """Gives the precision called `name`; for "auto" the one that this kind of device is fastest in at equal quality.

    The rule looks at the kind of machine only and never at a clock: the same machine always gives the same codes.
    cuda: bf16. A CPU that FBGEMM knows: int8, which is int8 in matrices of 4 M weights and more, fp16 down to 128 k and
    fp32 below, at a cost of held-out cross-entropy that bench/speed.py measures (below 0.5 %). Anything else: fp32.

    Raises:
        MicroMusicGenError: no such precision, or this device doesn't have it.
    """
    if name not in CHOICES:
        raise MicroMusicGenError(f"unknown precision {name!r}; use {', '.join(CHOICES)}")
    if name == "auto":
        if device.type == "cuda":
            return "bf16"
        return "int8" if device.type == "cpu" and fbgemm_is_there() else "fp32"
    if name in ("int8", "fp16") and (device.type != "cpu" or not fbgemm_is_there()):
        raise MicroMusicGenError(
            f"precision {name} needs a CPU that FBGEMM knows, and the model is on {device}; use fp32 or bf16"
        )
    return name
