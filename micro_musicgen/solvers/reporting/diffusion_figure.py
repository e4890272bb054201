"""The picture of a diffusion run's diagnostics: panels of numbers, and strips of images below them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

COLUMNS = 3
WIDTH_INCHES, PANEL_INCHES, STRIP_INCHES, TITLE_INCHES = 16.0, 3.7, 2.5, 0.4
PICTURE_GAP = 0.06
"""Between two pictures of a strip, as a share of one."""
FEWEST_PICTURES = 4
"""That a strip has room for: two of them would be stretched over its whole width."""
TICKS = 8


@dataclass(frozen=True)
class Picture:
    """One image of a strip, float [height, width], NaN for gaps; distance: from the original, None for that itself."""

    title: str
    image: torch.Tensor
    distance: float | None = None


@dataclass(frozen=True)
class Axes:
    """What every image of a strip shares. unit, low, high, colours: what is drawn how. width: of an image, in `across`.

    up: unit of the vertical axis. ticks: its labels and the rows that they stand at; none numbers the rows.
    """

    unit: str
    low: float
    high: float
    colours: str
    width: float
    across: str
    up: str
    ticks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Strip:
    """A row of images per number of codebooks."""

    rows: dict[int, list[Picture]]
    axes: Axes
    title: str = "the first clip along sampling, and its mean distance from the original"

    def numbers(self) -> dict[str, Any]:
        """Gives the titles with their distances, and the colours' range."""
        rows = {n: [{"title": p.title, "distance": p.distance} for p in row] for n, row in self.rows.items()}
        return {"unit": self.axes.unit, "low": self.axes.low, "high": self.axes.high, "rows": rows}


def draw_figure(numbers: Mapping[str, Any], strip: Strip | None) -> bytes | None:
    """Gives a PNG of what `Diagnostics.draw` collected; None in `numbers` is a gap. None without anything to show."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(_panels(numbers))
    rows = math.ceil(len(panels) / COLUMNS)
    bottom = STRIP_INCHES * len(strip.rows) + TITLE_INCHES if strip else 0.0
    height = PANEL_INCHES * rows + bottom
    if not height:
        return None
    # Not through pyplot: its figures are global, and this may run beside somebody's notebook. Places are worked out
    # here because matplotlib's own layouts draw everything twice.
    figure = Figure(figsize=(WIDTH_INCHES, height))
    canvas = FigureCanvasAgg(figure)
    for index, panel in enumerate(panels):
        row, column = divmod(index, COLUMNS)
        width, left = WIDTH_INCHES / COLUMNS, column * WIDTH_INCHES / COLUMNS + 0.65
        low = height - (row + 1) * PANEL_INCHES + 0.6
        axis = figure.add_axes(_share(figure, left, low, width - 1.3, PANEL_INCHES - 1.15))
        panel(axis)
        axis.grid(alpha=0.3)
    if strip:
        figure.text(0.5, (bottom - 0.1) / height, strip.title, ha="center", va="top", fontsize="large")
        for index, (number, pictures) in enumerate(reversed(strip.rows.items())):
            place = _share(figure, 0.95, index * STRIP_INCHES + 0.35, WIDTH_INCHES - 2.05, STRIP_INCHES - 0.85)
            image = _draw_row(figure.add_axes(place), pictures, strip.axes)
            if list(strip.rows) != [1]:
                figure.text(0.01, place[1] + place[3] / 2, f"k = {number}", rotation=90, va="center")
        bar = figure.add_axes(_share(figure, WIDTH_INCHES - 0.95, 0.35, 0.2, bottom - TITLE_INCHES - 0.85))
        figure.colorbar(image, cax=bar, label=strip.axes.unit)
    image_file = io.BytesIO()
    canvas.print_png(image_file)
    return image_file.getvalue()


def _share(figure: Any, left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Gives a place in inches as shares of the figure."""
    across, up = figure.get_size_inches()
    return left / across, bottom / up, width / across, height / up


Panel = Callable[[Any], None]


def _panels(numbers: Mapping[str, Any]) -> Iterator[Panel]:
    found = numbers.get("curves") or {}
    if "loss" in found:
        yield lambda axis: _curves(axis, "loss (weighted)", {"": found["loss"]})
    errors = {name.removeprefix("mse").strip("_"): values for name, values in found.items() if name.startswith("mse")}
    if errors:
        yield lambda axis: _curves(axis, "squared error (not weighted)", errors)
    if table := numbers.get("timesteps"):
        yield lambda axis: _deviations(axis, table, str(numbers.get("objective")))
        yield lambda axis: _errors(axis, table)
    if snr := numbers.get("snr"):
        yield lambda axis: _snr(axis, snr)
    if sampling := numbers.get("sampling"):
        yield lambda axis: _sampling(axis, sampling)


def _curves(axis: Any, title: str, families: Mapping[str, Mapping[str, Sequence[float | None]]]) -> None:
    for family, stages in families.items():
        for stage, values in stages.items():
            style = {"linewidth": 0.8, "linestyle": "--"} if family else {"marker": "."}
            epochs = range(1, len(values) + 1)
            axis.plot(epochs, _gaps(values), label=f"{stage} {family}".strip(), **style)
    axis.set(title=title, xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize="small")


def _deviations(axis: Any, table: Mapping[str, Any], objective: str) -> None:
    middles = _middles(table)
    axis.plot(middles, _gaps(table["prediction_std"]), marker=".", label="predictions")
    axis.plot(
        middles, _gaps(table["fair_std"]), linestyle="--", marker=".", markersize=3, label="as sure as its error allows"
    )
    axis.plot(middles, _gaps(table["target_std"]), color="grey", linestyle=":", label="targets (unit data)")
    axis.set(title=f"std of predicted {objective}", xlabel="t (0 is cleanest)", ylim=(0, None))
    axis.legend(fontsize="small")


def _errors(axis: Any, table: Mapping[str, Any]) -> None:
    middles = _middles(table)
    axis.plot(middles, _gaps(table["mse"]), marker=".", label="squared error")
    axis.plot(middles, _gaps(table["loss"]), linestyle="--", marker=".", markersize=3, label="weighted")
    axis.set(title=f"validation error of {sum(table['clips'])} clips", xlabel="t (0 is cleanest)", ylim=(0, None))
    axis.legend(fontsize="small")


def _snr(axis: Any, table: Mapping[str, Any]) -> None:
    lines = axis.plot(table["t"], _gaps(table["log10_snr"]), label="log10 SNR")
    axis.axhline(0, color="grey", linewidth=0.8, linestyle=":")
    other = axis.twinx()
    lines += other.plot(table["t"], _gaps(table["weight"]), color="tab:orange", linestyle="--", label="loss weight")
    other.set(ylabel="loss weight")
    other.set_ylim(0, 1.4 * other.get_ylim()[1])  # the legend has the upper right corner
    title = f"signal-to-noise ratio, 1 at t = {table['unit_t']}"
    if at := table.get("looked_at"):
        values = ", ".join(f"{name} {_number(at[name])}" for name in ("mean", "median", "min", "max"))
        title += f"\nlooked at: {values}"
    axis.set(xlabel="t (0 is cleanest)", ylabel="log10 SNR")
    axis.set_title(title, fontsize="medium")
    axis.legend(handles=lines, fontsize="small", loc="upper right")


def _sampling(axis: Any, sampling: Mapping[str, Any]) -> None:
    told = list(sampling) != ["1"]
    for index, (number, trace) in enumerate(sampling.items()):
        calls, name, color = range(1, len(trace["t"]) + 1), f", k = {number}" if told else "", f"C{index}"
        axis.plot(calls, _gaps(trace["x_std"]), color=color, marker=".", label=f"x{name}")
        axis.plot(calls, _gaps(trace["x0_std"]), color=color, linestyle="--", label=f"guess x0{name}")
    axis.axhline(1, color="black", linewidth=0.8)
    # Originals differ only for residual models: what a clip lacks depends on how much of it is known.
    originals = {trace["original_std"]: f"C{index}" for index, trace in enumerate(sampling.values())}
    for index, (std, color) in enumerate((std, color) for std, color in originals.items() if std is not None):
        color, label = color if len(originals) > 1 else "grey", "the originals" if index == 0 else None
        axis.axhline(std, color=color, linewidth=0.8, linestyle=":", label=label)
    times = max((trace["t"] for trace in sampling.values()), key=len)
    places = sorted(set(np.linspace(0, len(times) - 1, min(TICKS, len(times))).round().astype(int)))
    axis.set_xticks([place + 1 for place in places], [str(times[place]) for place in places])
    axis.set(title="std along sampling", xlabel="t at each call of the network", ylim=(0, None))
    axis.legend(fontsize="small", loc="lower right", ncols=2 if len(sampling) > 1 else 1)


def _draw_row(axis: Any, pictures: Sequence[Picture], look: Axes) -> Any:
    """Draws the pictures beside each other into one axis: with an axis each this would take seconds."""
    height, step = pictures[0].image.shape[0], 1 + PICTURE_GAP
    for index, picture in enumerate(pictures):
        image = axis.imshow(
            np.ma.masked_invalid(picture.image.numpy()),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            extent=(index * step, index * step + 1, -0.5, height - 0.5),
            vmin=look.low,
            vmax=look.high,
            cmap=look.colours,
        )
        title = picture.title + ("" if picture.distance is None else f"\n{_number(picture.distance)} {look.unit}")
        axis.text(index * step + 0.5, height, title, ha="center", va="bottom", fontsize="small")
    axis.set(
        xlim=(0, max(len(pictures), FEWEST_PICTURES) * step - PICTURE_GAP), ylim=(-0.5, height - 0.5), ylabel=look.up
    )
    axis.set_xticks([0, 1], ["0", f"{_number(look.width)} {look.across}"])
    if look.ticks:
        axis.set_yticks(list(look.ticks.values()), list(look.ticks))
    axis.tick_params(labelsize="small")
    axis.spines[:].set_visible(False)
    return image


def _middles(table: Mapping[str, Any]) -> list[float]:
    return [(first + last) / 2 for first, last in zip(table["first_t"], table["last_t"], strict=True)]


def _gaps(values: Sequence[float | None]) -> np.ndarray:
    return np.array(values, dtype=float)


def _number(value: float | None) -> str:
    return "?" if value is None or not math.isfinite(value) else f"{value:.3g}"
