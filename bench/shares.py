"""Rows that say which share of what the machine allows a measured rate of steps is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import Row
from limits import BYTES_PER_WEIGHT, step_cost, step_limit
from models import CONDITION_LENGTH, spec_of
from plan import EXTRA_STEPS, FRAME_RATE, Case


def share_rows(case: Case, made: list[Row], rates: Mapping[str, Any], folder: Path) -> list[Row]:
    """Gives a row per precision of a case of steps, in per cent of the limit; the note gives both limits."""
    if case.kind != "steps" or not rates:
        return []
    spec = spec_of(folder)
    guidance = case.given.get("guidance")
    branches = 2 if guidance is not None and guidance != 1 else 1
    num_steps = round(case.given["duration_s"] * FRAME_RATE) + EXTRA_STEPS
    rows = []
    for row in made:
        precision = row.name.removeprefix(case.name).removeprefix("_") or ("bf16" if rates.get("gpu") else "int8")
        if precision not in BYTES_PER_WEIGHT or row.value is None:
            continue
        cost = step_cost(
            spec,
            precision=precision,
            rows=branches * case.given["batch"],
            num_steps=num_steps,
            condition_length=CONDITION_LENGTH if spec.conditioning == "cross" else 0,
        )
        limit = step_limit(cost, rates, precision)
        by_operations = "unknown" if limit.by_operations is None else f"{limit.by_operations:.0f}"
        rows.append(
            Row(
                name=row.name.replace("steps_per_s_", "share_of_limit_"),
                value=float(f"{100 * row.value / limit.steps_per_s:.3g}"),
                unit="%",
                n=row.n,
                note=f"limits in steps/s: bytes {limit.by_bytes:.0f}, FLOPs {by_operations}; {limit.binds} bind",
            )
        )
    return rows
