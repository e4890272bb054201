"""The plot of the conditioning bench: what guidance does, docs/img/guidance.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common import IMAGES

if TYPE_CHECKING:
    from conditioning_ask import Answers

COLOURS = ("#1f77b4", "#d95f02", "#0b3d66", "#7f7f7f")


def draw_sweep(curves: Mapping[str, Mapping[str, Answers]], sweep: Sequence[float], path: Path | None = None) -> Path:
    """Gives the plot: share of what was asked over guidance, a line a model, controls dotted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    for colour, (name, found) in zip(COLOURS, curves.items(), strict=False):
        axes.plot(sweep, [found[f"w={w:g}"].accuracy for w in sweep], "o-", color=colour, label=name)
        axes.axhline(found["wrong"].accuracy, color=colour, linestyle=":", linewidth=1)
    axes.axhline(0.5, color="black", linestyle="--", linewidth=0.8)
    axes.set_xlabel("guidance w (1: none, 0: deaf)")
    axes.set_ylabel("share of asked attributes in the clips")
    axes.set_ylim(0, 1.02)
    axes.set_title("What guidance does (dashed: chance, dotted: the opposite said, w = 3)", fontsize=11)
    axes.legend(frameon=False)
    target = path or IMAGES / "guidance.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return target
