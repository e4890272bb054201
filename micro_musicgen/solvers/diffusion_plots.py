"""What a diffusion run shows of itself: collected while it validates and samples, drawn into its folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from micro_musicgen import storage
from micro_musicgen.audio.mel import MelScale, magnitudes, mel_filters
from micro_musicgen.diffusion.mel_frames import MelFrames
from micro_musicgen.diffusion.model import Loss
from micro_musicgen.diffusion.normaliser import LEAST_STD
from micro_musicgen.diffusion.samplers import OnStep
from micro_musicgen.diffusion.schedule import NoiseSchedule
from micro_musicgen.metrics.spectral import FLOOR, MEL
from micro_musicgen.solvers.diffusion_diagnostics import Looked, Trace, by_timestep, curves, plain, snr_table, spread
from micro_musicgen.solvers.reporting.diffusion_figure import Axes, Picture, Strip, draw_figure

if TYPE_CHECKING:
    from micro_musicgen.data.frame_crops import FrameBatch
    from micro_musicgen.solvers.diffusion_decoder import DiffusionDecoderSolver

STRIP_GUESSES = 6
"""Pictures before the result and the original."""
STRIP_SECONDS = 2.0
"""Of each clip that are decoded for a picture, at most: longer ones show less and cost more."""
SHOWN_DB = 80.0

logger = logging.getLogger(__name__)


class Diagnostics:
    """What is known about a run's last validation and its last sampling. Invariant: nothing it is told can end a run.

    Use: `begin`, `add` per batch of a validation; `on_step` per sampling; then `draw`.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self.looked = Looked()
        self.traces: dict[int, Trace] = {}

    def begin(self) -> None:
        """Forgets the validation before."""
        self.looked = Looked()

    def add(self, loss: Loss) -> None:
        """Takes in a batch of a validation."""
        self.looked.add(loss)

    def on_step(self, number: int) -> OnStep:
        """Gives what a sampler should tell its steps to, for clips that are told `number` codebooks."""
        self.traces[number] = Trace()
        return self.traces[number]

    @torch.no_grad()
    def draw(self, solver: DiffusionDecoderSolver, batch: FrameBatch, made: Mapping[int, torch.Tensor]) -> None:
        """Writes `plots/EPOCH_diagnostics.png` and .json, and the picture once more as `diffusion.png`.

        made: what was sampled for the crops of `batch`, as the data has it, [B, D, T] by number of codebooks. What is
        not there, or fails, has no panel; samplings are forgotten afterwards.
        """
        model = solver.model
        parts: dict[str, Callable[[], Any]] = {
            "curves": lambda: curves(solver.history),
            "timesteps": lambda: by_timestep(self.looked, model, self.schedule),
            "snr": lambda: snr_table(self.looked, model, self.schedule),
            "sampling": lambda: {
                number: {**trace.numbers(), "original_std": _std(model.normaliser(_unknown(solver, batch, number)))}
                for number, trace in self.traces.items()
                if trace.t
            },
        }
        numbers: dict[str, Any] = {"epoch": len(solver.history)}
        numbers["objective"] = None if model.objective is None else model.objective.name
        for name, measure in parts.items():
            if found := _attempt(name, measure):
                numbers[name] = plain(found)
        strip = _attempt("denoising strip", lambda: self._strip(solver, batch, made))
        if strip is not None:
            numbers["denoising"] = plain(strip.numbers())
        self.traces = {}
        stem = Path(solver.folder) / "plots" / f"{len(solver.history):04d}_diagnostics"
        storage.write_json(stem.with_suffix(".json"), numbers)
        image = _attempt("picture", lambda: draw_figure(numbers, strip))
        for path in (stem.with_suffix(".png"), Path(solver.folder) / "diffusion.png") if image else ():
            with storage.atomic_write(path) as file:
                file.write(image)

    def _strip(
        self, solver: DiffusionDecoderSolver, batch: FrameBatch, made: Mapping[int, torch.Tensor]
    ) -> Strip | None:
        """Gives the first clip along sampling, for the fewest and for the most codebooks; None without a clip."""
        numbers = sorted({*made, *(number for number, trace in self.traces.items() if trace.t)})
        if not numbers or not len(batch.target):
            return None
        shown = _Shown(solver, batch.target[0])
        rows: dict[int, list[Picture]] = {}
        for number in spread(numbers, 2):
            known = (_like(batch.target, solver.model) - _unknown(solver, batch, number))[0]
            guesses = self.traces[number].moments(STRIP_GUESSES) if number in self.traces else []
            row = [shown.picture(f"t = {t}", shown.undone(x0) + known) for t, x0 in guesses]
            if number in made:
                row.append(shown.picture("result", made[number][0]))
            rows[number] = [*row, Picture("original", shown.original)]
        return Strip(rows, shown.axes())


def _unknown(solver: DiffusionDecoderSolver, batch: FrameBatch, number: int) -> torch.Tensor:
    """Gives what is denoised, before it is normalised, [B, D, T]: the frames, or what the condition lacks of them."""
    frames, model = _like(batch.target, solver.model), solver.model
    if not model.residual:
        return frames
    unknown: torch.Tensor = frames - model.known(solver.told(batch, [number] * len(frames)))
    return unknown


class _Shown:
    """How a clip is looked at: as its mel spectrum, or as the frames that they are where their sound is not known.

    original: the image of the clip's own frames [D, T], that all others are compared with.
    """

    def __init__(self, solver: DiffusionDecoderSolver, frames: torch.Tensor) -> None:
        self.model, self.target = solver.model, solver.target
        self.scale = self.target.scale if isinstance(self.target, MelFrames) else MEL
        self.frames = frames.detach().float().cpu()
        self.original = self.image(frames)

    def undone(self, x0: torch.Tensor) -> torch.Tensor:
        """Gives normalised x0 [D, T] as it was."""
        undone: torch.Tensor = self.model.normaliser.undo(_like(x0[None], self.model))[0]
        return undone

    def image(self, frames: torch.Tensor) -> torch.Tensor:
        """Gives a float image of frames [D, T] as the data has them: decibels [bands, time], or the frames in means and
        deviations of the original's channels.
        """
        if self.target is None:
            mean, std = self.frames.mean(dim=1), self.frames.std(dim=1, correction=0).clamp(min=LEAST_STD)
            return (frames.detach().float().cpu() - mean[:, None]) / std[:, None]
        frames = _like(frames[None], self.model)[..., : max(1, round(STRIP_SECONDS * self.target.frame_rate))]
        if isinstance(self.target, MelFrames):
            return frames[0].cpu() * (20 / math.log(10))  # they are logs of what is shown; no need to make up phases
        wav = self.target.decode(frames).detach().double().cpu()
        spectrum = mel_filters(MEL, self.target.sample_rate).T @ magnitudes(wav, MEL)[0]
        return 20 * torch.log10(spectrum + FLOOR)

    def picture(self, title: str, frames: torch.Tensor) -> Picture:
        """Gives the image of frames [D, T] with its mean distance from the original's, in the image's unit."""
        image = self.image(frames)
        return Picture(title, image, float((image - self.original).abs().mean()))

    def axes(self) -> Axes:
        """Gives scale and units, the same for all pictures: between the original's softest and loudest bands."""
        num_frames = self.original.shape[1]
        if self.target is None:
            return Axes(
                unit="std", low=-3.0, high=3.0, colours="RdBu_r", width=num_frames, across="frames", up="channel"
            )
        finite = self.original[self.original.isfinite()].double()
        high, soft = (float(finite.max()), float(finite.quantile(0.02))) if len(finite) else (0.0, -SHOWN_DB)
        return Axes(
            unit="dB",
            low=min(max(soft, high - SHOWN_DB), high - 1),
            high=high,
            colours="magma",
            width=num_frames * self.scale.hop_samples / self.target.sample_rate,
            across="s",
            up="kHz",
            ticks=_band_ticks(self.scale, self.target.sample_rate),
        )


def _band_ticks(scale: MelScale, sample_rate: int) -> dict[str, float]:
    """Gives the band, as a number with a fraction, at which each of a few frequencies lies (see `audio.mel`)."""
    low, high = _mel(scale.f_min), _mel(scale.f_max or sample_rate / 2)
    named = {"0.25": 250, "1": 1000, "4": 4000, "12": 12000}
    places = {name: (_mel(f) - low) / (high - low) * (scale.n_mels + 1) - 1 for name, f in named.items()}
    return {name: place for name, place in places.items() if 0 <= place <= scale.n_mels - 1}


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


def _like(frames: torch.Tensor, model: Any) -> torch.Tensor:
    return frames.detach().float().to(model.normaliser.mean.device)


def _std(frames: torch.Tensor) -> float | None:
    return float(frames.std(correction=0)) if frames.numel() else None


def _attempt(what: str, make: Callable[[], Any]) -> Any:
    """Gives what `make` gives, or None and a line in the log: no picture is worth a run."""
    try:
        return make()
    except Exception:
        logger.exception("the diagnostics' %s failed; the run goes on without", what)
        return None
