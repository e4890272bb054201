"""Plots of what bench/speed.py and bench/size.py measured, from their rows: docs/img/{speed,batch,size}.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import IMAGES, Row, machine_line

COLOURS = {
    "ours": "#1f77b4",
    "ours fp32": "#8cbfe6",
    "ours fp16": "#0b3d66",
    "ours bf16": "#5b6fc0",
    "audiocraft 1.3.0": "#d95f02",
    "transformers": "#7f7f7f",
}
SCALES = ("nano_nanocodec", "nano", "tiny", "mini", "midi", "micro")
SCALE_LABELS = {"nano_nanocodec": "nano,\nnano codec"}
BATCHES = (1, 4, 10, 64)
REAL_TIME = 1.0
PARTS = "blue: LM, share in embeddings and heads (emb.)\norange: codec, LM and codec\nMB in fp32"


def draw_speed(rows: Sequence[Row], facts: Mapping[str, Any], folder: Path = IMAGES) -> list[Path]:
    """Gives the plots drawn: realtime factor over scales, and steps over batch where more than one was measured."""
    by_name = {row.name: row for row in rows}
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_draw_realtime(by_name, facts, folder / "speed.png")]
    drawn.append(_draw_batch(by_name, facts, folder / "batch.png"))
    return [path for path in drawn if path is not None]


def _draw_realtime(rows: Mapping[str, Row], facts: Mapping[str, Any], path: Path) -> Path | None:
    scales = [scale for scale in SCALES if _value(rows, f"realtime_{scale}") is not None]
    if not scales:
        return None
    series = {
        "ours": [rows[f"realtime_{s}"].value for s in scales],
        "audiocraft 1.3.0": [rows[f"realtime_{s}"].peer_value for s in scales],
        "transformers": [_value(rows, f"realtime_{s}_transformers") for s in scales],
    }
    series = {name: values for name, values in series.items() if any(values)}
    figure, axes = _figure("Seconds of audio per second, one clip, LM and codec", facts)
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [index + (number - (len(series) - 1) / 2) * width for index in range(len(scales))]
        bars = axes.bar(places, [value or 0 for value in values], width, label=name, color=COLOURS[name])
        axes.bar_label(bars, [f"{value:.1f}" if value else "" for value in values], fontsize=8, padding=1)
    axes.axhline(REAL_TIME, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(scales)), [SCALE_LABELS.get(scale, scale) for scale in scales])
    axes.set_ylabel("times realtime (dashed: realtime)")
    axes.legend(frameon=False)
    return _saved(figure, path)


def _draw_batch(rows: Mapping[str, Row], facts: Mapping[str, Any], path: Path) -> Path | None:
    panels = [scale for scale in ("tiny", "micro") if len(_batches(rows, scale)) > 1]
    if not panels:
        return None
    figure, all_axes = _figure("Steps of all clips together, LM alone", facts, columns=len(panels))
    for scale, axes in zip(panels, all_axes if len(panels) > 1 else [all_axes], strict=True):
        batches = _batches(rows, scale)
        stems = [f"steps_per_s_{scale}_b{batch}" for batch in batches]
        series = {"ours": [_value(rows, stem) for stem in stems]}
        for precision in ("fp32", "fp16", "bf16"):
            series[f"ours {precision}"] = [_value(rows, f"{stem}_{precision}") for stem in stems]
        series["audiocraft 1.3.0"] = [rows[stem].peer_value for stem in stems]
        series["transformers"] = [_value(rows, f"{stem}_transformers") for stem in stems]
        for name, values in series.items():
            points = [(b, b * value) for b, value in zip(batches, values, strict=True) if value]
            if points:
                style = "-" if name == "ours" or not name.startswith("ours") else "--"
                axes.plot(*zip(*points, strict=True), style, marker="o", label=name, color=COLOURS[name])
        axes.set_title(scale, fontsize=10)
        axes.set_xlabel("clips at once")
        axes.set_ylabel("clips x steps per second")
        axes.set_xticks(batches)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    (all_axes[-1] if len(panels) > 1 else all_axes).legend(frameon=False, fontsize=8)
    return _saved(figure, path)


def draw_sizes(rows: Sequence[Row], path: Path | None = None) -> Path:
    """Gives the plot of the size table: parameters by part, log scale, bytes on top."""
    by_name = {row.name: row for row in rows}
    names = [row.name.removeprefix("parameters_") for row in rows if row.name.startswith("parameters_")]
    figure, axes = _figure("What a model weighs", None)
    for number, name in enumerate(names):
        total = by_name[f"parameters_{name}"].value or 0
        outer = by_name.get(f"embeddings_{name}")
        share = 0 if outer is None or not outer.value else outer.value / total
        axes.bar(number, total / 1e6, 0.7, color="#1f77b4" if outer is not None else "#d95f02")
        megabytes = by_name[f"size_fp32_{name}"].value or 0
        label = f"{total / 1e6:.3g} M\n{megabytes:,.0f} MB"
        axes.text(number, total / 1e6 * 1.1, label + (f"\n{share:.0%} emb." if share else ""), ha="center", fontsize=8)
    axes.set_yscale("log")
    axes.set_ylim(top=axes.get_ylim()[1] * 6)
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    axes.set_ylabel("parameters, millions")
    axes.text(0, 0.98, PARTS, transform=axes.transAxes, va="top", fontsize=9)
    target = path or IMAGES / "size.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    return _saved(figure, target)


def _batches(rows: Mapping[str, Row], scale: str) -> list[int]:
    return [batch for batch in BATCHES if _value(rows, f"steps_per_s_{scale}_b{batch}") is not None]


def _value(rows: Mapping[str, Row], name: str) -> float | None:
    return rows[name].value if name in rows else None


def _figure(title: str, facts: Mapping[str, Any] | None, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(9, 4.5), layout="constrained")
    note = f"\n{machine_line(dict(facts))}" if facts is not None else ""
    figure.suptitle(f"{title}{note}", fontsize=11)
    for each in axes if columns > 1 else [axes]:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _saved(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
