"""Plots of the diffusion bench: docs/img/{diffusion_decoder,diffusion_steps,local_attention}.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import IMAGES, Row

if TYPE_CHECKING:
    from diffusion_quality import Table
    from diffusion_steps import Found

COLOURS = {"plain": "#7f7f7f", "regression": "#d95f02", "diffusion": "#1f77b4"}
STEP_COLOURS = ("#d95f02", "#1f77b4", "#1b9e77")
MEASURES = ("log-mel distance", "Frechet distance (log_mel)")


def draw_decoder(tables: Mapping[str, Table], path: Path | None = None) -> Path:
    """Gives the plot: distances over the number of codebooks, a row a data set; shaded: 95 % over clips."""
    from diffusion_quality import BOUND, OURS, PLAIN, TWIN

    from micro_musicgen.metrics.bootstrap import bootstrap

    figure, all_axes = _figure(len(tables), 2)
    for line, (name, table) in zip(all_axes, tables.items(), strict=True):
        counts = sorted({number for way, number in table if way == OURS})
        for way in (PLAIN, TWIN, OURS):
            scores = [table[way, number] for number in counts]
            line[0].plot(counts, [each.mean_mel for each in scores], "o-", color=COLOURS[way], label=way)
            line[1].plot(counts, [each.frechet for each in scores], "o-", color=COLOURS[way], label=way)
            found = [bootstrap(each.mel) for each in scores]
            if all(each.low is not None for each in found):
                low, high = [each.low for each in found], [each.high for each in found]
                line[0].fill_between(counts, low, high, color=COLOURS[way], alpha=0.12, linewidth=0)
        bound = table[BOUND, 0]
        for axes, value, title in zip(line, (bound.mean_mel, bound.frechet), MEASURES, strict=True):
            axes.axhline(value, color="black", linestyle="--", linewidth=0.9, label="encoder's latents")
            axes.set_xticks(counts)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("codebooks")
            axes.set_title(f"{name}: {title}, {len(bound.mel)} clips", fontsize=10)
    all_axes[0][0].legend(frameon=False)
    return _saved(figure, path or IMAGES / "diffusion_decoder.png")


def draw_steps(found: Found, path: Path | None = None) -> Path:
    """Gives the plot: distances over the steps of a sampler; dashed: many steps of the ancestral one."""
    from diffusion_steps import MANY

    figure, all_axes = _figure(1, 2)
    ends = (found.many.frechet, found.many.mean_mel)
    for place, (axes, end) in enumerate(zip(all_axes[0], ends, strict=True)):
        for (sampler, curve), colour in zip(found.curves.items(), STEP_COLOURS, strict=False):
            axes.plot(list(curve), [both[place] for both in curve.values()], "o-", color=colour, label=sampler)
        axes.axhline(end, color="black", linestyle="--", linewidth=0.9, label=f"{MANY[0]}, {MANY[1]} steps")
        axes.axhspan(end / 1.05, end * 1.05, color="black", alpha=0.07, linewidth=0)
        axes.set_xscale("log")
        ticks = next(iter(found.curves.values()))
        axes.set_xticks(list(ticks), [str(steps) for steps in ticks])
        axes.set_xlabel("steps (shaded: within 5 %)")
        axes.set_title(MEASURES[1 - place], fontsize=10)
    all_axes[0][0].legend(frameon=False)
    return _saved(figure, path or IMAGES / "diffusion_steps.png")


def draw_memory(rows: Sequence[Row], path: Path | None = None) -> Path:
    """Gives the plot: memory over frames, of local attention and of a window cut out of full attention."""
    stem = "local_attention_memory_"
    points = {int(row.name.removeprefix(stem)): row for row in rows if row.name.startswith(stem)}
    figure, all_axes = _figure(1, 1)
    axes = all_axes[0][0]
    ours = [(frames, row.value) for frames, row in points.items() if row.value]
    theirs = [(frames, row.peer_value) for frames, row in points.items() if row.peer_value]
    for series, label, colour in ((ours, "local", "#1f77b4"), (theirs, "full, masked", "#d95f02")):
        if series:
            axes.plot(*zip(*series, strict=True), "o-", label=label, color=colour)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("frames")
    axes.set_ylabel("MB at its peak")
    axes.legend(frameon=False)
    return _saved(figure, path or IMAGES / "local_attention.png")


def _figure(lines: int, columns: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (4.5 * columns, 3.4 * lines)
    figure, all_axes = pyplot.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in all_axes.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def _saved(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
