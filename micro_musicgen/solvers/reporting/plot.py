"""The picture of a run that its folder always holds: losses, codebooks, speed and memory over epochs."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from micro_musicgen import storage

History = Sequence[Mapping[str, Mapping[str, Any]]]

PER_CODEBOOK = ("ce",)
ALWAYS = ("lr", "grad_norm", "steps_per_s", "peak_memory_mb")
"""Metrics that get a panel in every run that has them, besides those that its solver names."""

STAGES = ("train", "valid")
COLUMNS = 3


def plot_history(history: History, metrics: Sequence[str], path: Path) -> None:
    """Writes a PNG with a panel per metric, training and validation in each.

    A metric `X_q1` stands for the panel of all codebooks X_q1, X_q2, ...; there is always one for the cross-entropy.
    What is missing, None, NaN or infinite is a gap; metrics that never occur are left out; no file without any.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(history, metrics)
    if not panels:
        return
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    # Not through pyplot: its figures are global, and this may run beside somebody's notebook.
    figure = Figure(figsize=(5 * columns, 3.5 * rows))
    canvas = FigureCanvasAgg(figure)
    for index, (title, curves) in enumerate(panels.items()):
        axis = figure.add_subplot(rows, columns, index + 1)
        for label, points in curves.items():
            axis.plot([epoch for epoch, _ in points], [value for _, value in points], marker=".", label=label)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.tight_layout()
    image = io.BytesIO()
    canvas.print_png(image)
    with storage.atomic_write(path) as file:
        file.write(image.getvalue())


Points = list[tuple[int, float]]


def _panels(history: History, metrics: Sequence[str]) -> dict[str, dict[str, Points]]:
    """Gives per panel its curves by label."""
    named = [metric for metric in metrics if not re.search(r"_q\d+$", metric)]
    families = [re.sub(r"_q\d+$", "", metric) for metric in metrics if metric not in named]
    panels = {metric: {stage: _points(history, stage, metric) for stage in STAGES} for metric in named}
    for family in dict.fromkeys([*families, *PER_CODEBOOK]):
        panels[f"{family} per codebook"] = _family(history, family)
    for metric in ALWAYS:
        panels.setdefault(metric, {stage: _points(history, stage, metric) for stage in STAGES})
    shown = {title: {k: points for k, points in curves.items() if points} for title, curves in panels.items()}
    return {title: curves for title, curves in shown.items() if curves}


def _family(history: History, family: str) -> dict[str, Points]:
    """Gives a curve per codebook: of validation, or of training where that knows none."""
    for stage in reversed(STAGES):
        names = {
            name for epoch in history for name in (epoch.get(stage) or {}) if re.fullmatch(rf"{family}_q\d+", name)
        }
        if names:
            ordered = sorted(names, key=lambda name: int(name.rpartition("_q")[2]))
            return {f"{stage} {name.rpartition('_')[2]}": _points(history, stage, name) for name in ordered}
    return {}


def _points(history: History, stage: str, metric: str) -> Points:
    values = [(number + 1, (epoch.get(stage) or {}).get(metric)) for number, epoch in enumerate(history)]
    return [(n, float(v)) for n, v in values if isinstance(v, (int, float)) and math.isfinite(v)]
