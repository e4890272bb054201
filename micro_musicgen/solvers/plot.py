"""The picture of a run that its folder always holds: losses over epochs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from micro_musicgen import storage


def plot_history(history: Sequence[Mapping[str, Mapping[str, Any]]], metrics: Sequence[str], path: Path) -> None:
    """Writes a PNG with a panel per metric, training and validation in each. Metrics that never occur are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [m for m in metrics if any(m in stage for epoch in history for stage in epoch.values())]
    if not shown:
        return
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 3.5), squeeze=False)
    for axis, metric in zip(axes[0], shown, strict=True):
        for stage in ("train", "valid"):
            points = [(n + 1, e[stage][metric]) for n, e in enumerate(history) if metric in e.get(stage, {})]
            if points:
                axis.plot(*zip(*points, strict=True), marker=".", label=stage)
        axis.set(title=metric, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    pyplot.close(figure)
    with storage.atomic_write(path) as file:
        file.write(image.getvalue())
