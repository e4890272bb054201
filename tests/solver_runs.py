"""What tests of solvers share."""

from __future__ import annotations

from typing import Any

CLOCKED = ("duration", "steps_per_s", "tokens_per_s", "peak_memory_mb")

LM_DEBUG = ("solver=musicgen/debug", "dset=audio/toy", "compression_model_checkpoint=//sig/c0dec000", "num_threads=1")


def losses(history: list[dict[str, Any]]) -> list[dict[str, dict[str, float]]]:
    """A history without what the clock and the machine decide."""
    return [
        {stage: {k: v for k, v in metrics.items() if k not in CLOCKED} for stage, metrics in epoch.items()}
        for epoch in history
    ]
