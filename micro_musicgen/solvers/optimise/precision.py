"""In which numbers a run computes: bf16 where the device has units for it, else fp16 with a scaler on CUDA, else fp32.

Weights, moments and losses stay fp32 in every case; this is about the products inside autocast.
"""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from micro_musicgen.errors import MicroMusicGenError

BF16_CAPABILITY = (8, 0)
"""First CUDA compute capability whose tensor cores take bf16; before it torch emulates, slower than fp32."""

_DTYPES = ("auto", "bfloat16", "float16")
_SWITCH = {"auto": "auto", "true": True, "false": False}


def has_bf16_units(device: torch.device | str) -> bool:
    """Says whether `device` multiplies bf16 matrices in hardware: CUDA from Ampere on, CPUs with AMX or AVX512_BF16."""
    device = torch.device(device)
    if device.type == "cuda":
        return tuple(torch.cuda.get_device_capability(device)) >= BF16_CAPABILITY
    if device.type == "cpu":
        # Private names: torch has no public ones, and one without them is taken to have no such units.
        checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return any(check is not None and bool(check()) for check in checks)
    return False


def settle_precision(cfg: DictConfig) -> None:
    """Fills in `autocast` (a bool) and `autocast_dtype` (a name that torch knows) for `cfg.device`, in place.

    autocast: auto turns it on where the device has units for the dtype. autocast_dtype: auto takes bf16 where there are
    units, fp16 on other CUDA devices. With autocast off the dtype means nothing and is bfloat16.

    Raises:
        MicroMusicGenError: a value that is none of these.
    """
    switch = _SWITCH.get(str(cfg.autocast).lower())
    if switch is None:
        raise MicroMusicGenError(f"autocast={cfg.autocast} is unknown; use auto, true or false")
    if cfg.autocast_dtype not in _DTYPES:
        raise MicroMusicGenError(f"autocast_dtype={cfg.autocast_dtype} is unknown; use {', '.join(_DTYPES)}")
    is_cuda, has_bf16 = str(cfg.device).startswith("cuda"), has_bf16_units(cfg.device)
    dtype = cfg.autocast_dtype
    if dtype == "auto":
        dtype = "float16" if is_cuda and not has_bf16 else "bfloat16"
    if switch == "auto":
        switch = has_bf16 if dtype == "bfloat16" else is_cuda
    cfg.autocast, cfg.autocast_dtype = bool(switch), dtype if switch else "bfloat16"


def build_scaler(cfg: DictConfig) -> torch.amp.GradScaler:
    """Gives the gradient scaler of a settled config: at work under fp16 only, whose range gradients leave."""
    enabled = bool(cfg.autocast) and cfg.autocast_dtype == "float16"
    return torch.amp.GradScaler(str(cfg.device).partition(":")[0], enabled=enabled)


def precision_name(cfg: DictConfig) -> str:
    """Gives bf16, fp16 or fp32 for a settled config."""
    return {"bfloat16": "bf16", "float16": "fp16"}[cfg.autocast_dtype] if cfg.autocast else "fp32"
