"""Loops of a model in beat time, measured: tempo and seam at several tempos, and a spectrogram of two repeats.

    loop_tempo_error  greatest share by which a loop's tempo is off, by its length and by its attacks
    seam_ratio        median over loops of the joint against the beats inside; 1 or less is no worse (metrics/loop_seam)

The peer of the seam is the same codes decoded once and resampled as a clip that just ends: what a loop would be without
anything being done for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from common import IMAGES, Row, Sample, make_row

if TYPE_CHECKING:
    from micro_musicgen import MicroMusicGen
    from micro_musicgen.metrics.loop_seam import LoopReport

BPMS = (140.0, 172.0, 200.0)
BARS = 4
NUM_LOOPS = 8
TEMPO_AIM = "value <= 0.005"
SEAM_AIM = "value <= 1"
PEER = "decoded once"


@dataclass(frozen=True)
class Loops:
    """Loops of one tempo, float32 [L] each: as they are played, and decoded once. beats: of each."""

    bpm: float
    beats: int
    sample_rate: int
    closed: tuple[npt.NDArray[np.float32], ...]
    plain: tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True)
class Measured:
    """Reports of the loops of one tempo, closed and plain."""

    bpm: float
    closed: tuple[LoopReport, ...]
    plain: tuple[LoopReport, ...]


def make_loops(
    release: str | Path,
    *,
    bpms: Sequence[float] = BPMS,
    bars: int = BARS,
    num_loops: int = NUM_LOOPS,
    seed: int = 0,
    device: str | None = None,
) -> list[Loops]:
    """Gives loops of a release or a run, of the same codes at every tempo."""
    from micro_musicgen import MicroMusicGen

    model = MicroMusicGen.get_pretrained(release, device=device)
    assert model.beat_time is not None, f"{release} is not in beat time"
    model.set_generation_params(bars=bars, loop=True, seed=seed)
    codes = model.codes(num_loops)
    return [_at_tempo(model, codes, bpm, bars, seed) for bpm in bpms]


def _at_tempo(model: MicroMusicGen, codes: torch.Tensor, bpm: float, bars: int, seed: int) -> Loops:
    assert model.beat_time is not None, model
    found = []
    for loop in (True, False):
        model.set_generation_params(bars=bars, bpm=bpm, loop=loop, seed=seed)
        found.append(tuple(model.decode(clip[None])[0].mean(dim=0).cpu().numpy() for clip in codes))
    return Loops(bpm, bars * model.beat_time.beats_per_bar, model.sample_rate, *found)


def measure(loops: Loops) -> Measured:
    """Gives the reports of the loops of one tempo."""
    from micro_musicgen.metrics.loop_seam import measure_loop

    closed, plain = (
        tuple(measure_loop(wav, loops.sample_rate, bpm=loops.bpm, beats=loops.beats) for wav in wavs)
        for wavs in (loops.closed, loops.plain)
    )
    return Measured(loops.bpm, closed, plain)


def loop_rows(measured: Iterable[Measured]) -> list[Row]:
    """Gives `loop_tempo_error` and `seam_ratio` of each tempo, and of all of them together."""
    rows, every = [], list(measured)
    for part in every:
        rows += _rows([part], f" at {part.bpm:g} BPM")
    return [*_rows(every, ""), *rows]


def _rows(parts: Sequence[Measured], where: str) -> list[Row]:
    closed = [report for part in parts for report in part.closed]
    plain = [report for part in parts for report in part.plain]
    errors = tuple(max(report.length_error, report.heard_error or 0.0) for report in closed)
    heard = sum(report.heard_error is not None for report in closed)
    grid = [[getattr(each, name) for each in closed] for name in ("joint_ms", "inside_ms")]
    joint, inside = (_median([value for value in values if value is not None]) for values in grid)
    seam = make_row(
        f"seam_ratio{where}",
        Sample(tuple(report.seam_ratio for report in closed)),
        "x",
        aim=SEAM_AIM,
        note=f"attacks {joint} from the grid at the joint, {inside} inside; click "
        f"{np.median([each.click_ratio for each in closed]):.2f}, spectrum "
        f"{np.median([each.flux_ratio for each in closed]):.2f}; {PEER} "
        f"{np.median([each.seam_ratio for each in plain]):.2f}",
    )
    tempo = make_row(
        f"loop_tempo_error{where}",
        Sample((max(errors),)),
        "share",
        aim=TEMPO_AIM,
        note=f"greatest of {len(errors)} loops; by length alone {max(each.length_error for each in closed):.1e}; "
        f"by attacks {max((each.heard_error or 0.0 for each in closed), default=0.0):.1e}, on a grid in {heard}",
    )
    return [tempo, seam]


def _median(values: Sequence[float]) -> str:
    return f"{np.median(values):.1f} ms" if values else "none heard"


def draw_repeats(loops: Sequence[Loops], path: Path | None = None, *, index: int = 0) -> Path:
    """Gives the plot: one loop of each tempo played twice, closed and decoded once; the line is the joint."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(len(loops), 2, figsize=(11, 2.6 * len(loops)), squeeze=False)
    for line, part in zip(all_axes, loops, strict=True):
        for axes, wavs, what in zip(line, (part.closed, part.plain), ("closed", PEER), strict=True):
            wav = wavs[index]
            axes.specgram(
                np.tile(wav, 2) + 1e-6, NFFT=1024, noverlap=768, Fs=part.sample_rate, cmap="magma", vmin=-140, vmax=-40
            )
            axes.axvline(len(wav) / part.sample_rate, color="white", linewidth=0.8, linestyle=":")
            axes.set_title(f"{part.bpm:g} BPM, two repeats, {what}", fontsize=10)
            axes.set_xlabel("s")
            axes.set_ylabel("Hz")
    figure.tight_layout()
    path = path or IMAGES / "beat_loops.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
    return path
