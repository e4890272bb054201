"""What bench/train.py trains: the overrides of both sides, which are one another's but for the solver's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import train_home

OURS = "ours"
FP32, BF16 = "upstream fp32", "upstream bf16"
LM_MODELS = ("tiny", "micro")


@dataclass(frozen=True)
class Size:
    """How much is trained on, the same on both sides.

    ce_batch: of the runs to a loss, which are to have many steps. ce_s: seconds of training for audiocraft's.
    """

    batch: int
    segment_s: float
    rounds: int
    ce_batch: int
    ce_s: float
    total_s: float | None = None


FULL = Size(batch=4, segment_s=8.0, rounds=3, ce_batch=1, ce_s=90.0)
QUICK = Size(batch=1, segment_s=8.0, rounds=2, ce_batch=1, ce_s=12.0, total_s=150.0)
"""The segment is the same in both: codes are stored for a segment."""
SOLVERS = {OURS: "musicgen/micro_32khz", FP32: "musicgen/upstream_32khz", BF16: "musicgen/upstream_32khz"}
SPEED_AIMS = {"micro": "ratio >= 3.5", "tiny": "ratio >= 10"}
FP32_AIM = "ratio >= 5"
CE_AIMS = {"micro": "ratio >= 3", "tiny": "ratio >= 8"}
CODEC_AIM = "ratio >= 1.5"
CODEC_PHASES = (("warmup", 0.0, 0.7), ("refit", 0.75, 0.3))
"""Of our codec solver, as config/solver/compression/default.yaml has them: name, a share of the run within, length."""
FRAME_RATE = 50
VALID_CROPS = 6
"""Validation is in the way of the clock on both sides and judges both; few crops will do."""


def lm_overrides(model: str, side: str, size: Size, home: Path, device: str) -> list[str]:
    """Gives what one side is started with. Rates are constant, so that both have the same schedule."""
    return [
        f"solver={SOLVERS[side]}",
        f"model/lm/model_scale={model}",
        "conditioner=none",
        f"dset=audio/{train_home.DATASET}",
        f"compression_model_checkpoint={train_home.codec_reference(home)}",
        f"dataset.batch_size={size.batch}",
        f"dataset.segment_duration={size.segment_s}",
        f"dataset.valid.num_samples={VALID_CROPS}",
        f"autocast={_autocast(side)}",
        "autocast_dtype=bfloat16" if side == BF16 else "autocast_dtype=auto",
        *_common(device),
        "optim.lr=3e-4",
    ]


def codec_overrides(side: str, device: str) -> list[str]:
    """Gives what one side's codec training is started with: the default batch of the `nano_32khz` codec."""
    name = "micro_32khz" if side == OURS else "upstream_32khz"
    return [f"solver=compression/{name}", f"dset=audio/{train_home.DATASET}", *_common(device), "label=bench"]


def _autocast(side: str) -> str:
    return {OURS: "auto", FP32: "false", BF16: "true"}[side]


def _common(device: str) -> list[str]:
    return [f"device={device}", "schedule.lr_scheduler=null", "optim.updates_per_epoch=1000", "optim.epochs=1"]


def product_shapes(model: str, size: Size) -> list[list[int]]:
    """Gives [count, rows, width_in, width_out] of every product with weights of one step's forward pass."""
    from micro_musicgen.lm.scales import spec

    shape = spec(model)
    rows, d = size.batch * round(size.segment_s * FRAME_RATE), shape.dim
    blocks = [(3 * d, d), (d, d), (shape.ffn_dim, d), (d, shape.ffn_dim)]
    return [
        *([shape.num_layers, rows, width_in, width_out] for width_out, width_in in blocks),
        [shape.num_codebooks, rows, d, shape.card],
    ]
