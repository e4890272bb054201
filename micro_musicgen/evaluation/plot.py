"""The picture of an evaluation: each number beside what it is compared with."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from micro_musicgen import storage
from micro_musicgen.evaluation.findings import Row

COLUMNS = 4
MODEL_COLOUR, BESIDE_COLOUR = "#3b6ea5", "#b9b9b9"
ARROWS = {"lower": "lower is better", "higher": "higher is better", "alike": "nearer is better"}


def plot_rows(rows: Sequence[Row], path: Path, *, title: str = "") -> None:
    """Writes a PNG with a panel for every row that has something beside it; codebooks share one. None: no file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.beside is not None:
            panels.setdefault(re.sub(r"_q\d+$", "_q", row.name), []).append(row)
    if not panels:
        return
    columns = min(COLUMNS, len(panels))
    height = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.1 * height + 0.5))
    canvas = FigureCanvasAgg(figure)
    for index, panel in enumerate(panels.values()):
        _draw(figure.add_subplot(height, columns, index + 1), panel)
    figure.suptitle(f"{title}: bars and 95 % intervals" if title else "bars and 95 % intervals", fontsize=11)
    figure.tight_layout()
    image = io.BytesIO()
    canvas.print_png(image)
    with storage.atomic_write(path) as file:
        file.write(image.getvalue())


def _draw(axis: Any, panel: Sequence[Row]) -> None:
    """Draws pairs of bars, the model's and the other's."""
    for place, row in enumerate(panel):
        sides = (
            (place - 0.2, row.value, row.low, row.high, MODEL_COLOUR),
            (place + 0.2, row.beside or 0.0, row.beside_low, row.beside_high, BESIDE_COLOUR),
        )
        for x, value, low, high, colour in sides:
            axis.bar(x, value, width=0.38, color=colour)
            if low is not None and high is not None:
                axis.vlines(x, low, high, color="black", linewidth=1)
    first = panel[0]
    if len(panel) == 1:
        axis.set_xticks([-0.2, 0.2], ["model", "\n".join(textwrap.wrap(first.beside_label, 16))])
        axis.set_xlim(-0.6, 0.6)
    else:
        axis.set_xticks(range(len(panel)), [f"q{place + 1}" for place in range(len(panel))])
        axis.set_xlabel(f"grey: {first.beside_label}", fontsize=8)
    name = first.label if len(panel) == 1 else first.label.partition(",")[0]
    axis.set_title("\n".join(textwrap.wrap(f"{name} ({ARROWS[first.better]})", 34)), fontsize=8)
    axis.set_ylabel(first.unit, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.set_axisbelow(True)
    axis.grid(axis="y", alpha=0.3)
