"""How a model is played: parameters, noise that belongs to frames and not to calls, and the way from it to frames."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import torch

from micro_musicgen.allocator import keep_freed_memory
from micro_musicgen.diffusion.denoiser import Told, check_frames
from micro_musicgen.diffusion.guidance import Guided, clips_told, is_conditional
from micro_musicgen.diffusion.model import LatentDiffusion
from micro_musicgen.diffusion.samplers import OnStep, default_spacings, samplers, spacings, times
from micro_musicgen.errors import MicroMusicGenError

MAX_SEED = 2**63 - 1
NOISE_BLOCK = 64
"""Frames that are drawn at once. Part of what a seed means: another number gives other noise."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to play a model. Replaced whole, never edited.

    sampler: ancestral | ddim | dpm. steps: calls of the network, 1 to the model's T. guidance: 1 is none, 0 ignores the
    condition. noise_scale: deviation of the noise at the start and of what a sampler draws; 1 is what a model was
    trained on, less is duller and cleaner. spacing: which steps (log_snr | trailing), None for the one that suits the
    sampler. seed: of the noise, 0 or more.
    """

    sampler: str
    steps: int
    guidance: float
    noise_scale: float = 1.0
    spacing: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises:
        MicroMusicGenError: all that is out of range, in one line.
        """
        faults = list(self._faults())
        if faults:
            raise MicroMusicGenError("; ".join(faults))

    def _faults(self) -> list[str]:
        faults = []
        if self.sampler not in samplers:
            faults.append(f"unknown sampler {self.sampler!r}; known: {', '.join(samplers)}")
        if self.spacing is not None and self.spacing not in spacings:
            faults.append(f"unknown spacing {self.spacing!r}; known: {', '.join(spacings)}")
        if not isinstance(self.steps, int) or self.steps < 1:
            faults.append(f"sampling.steps={self.steps} must be a whole number from 1 on; 20 is usual for dpm")
        if not math.isfinite(self.guidance):
            faults.append(f"sampling.guidance={self.guidance:g} must be a finite number; 1 is no guidance")
        if not 0 <= self.noise_scale < math.inf:
            faults.append(f"sampling.noise_scale={self.noise_scale:g} must be 0 or more; 1 is what models learn from")
        if not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            faults.append(f"sampling.seed={self.seed} must be a whole number from 0 to {MAX_SEED}")
        return faults


def params_of(section: Mapping[str, Any]) -> SamplingParams:
    """Gives the parameters that a config's section `sampling` holds: the fields of `SamplingParams`, no others.

    Raises:
        MicroMusicGenError: unknown or missing keys, or values out of range.
    """
    known = {field.name for field in fields(SamplingParams)}
    faults = [f"unknown key sampling.{key}; known: {', '.join(sorted(known))}" for key in sorted(set(section) - known)]
    faults += [f"sampling.{key} is missing" for key in ("sampler", "steps", "guidance") if key not in section]
    if faults:
        raise MicroMusicGenError("; ".join(faults))
    return SamplingParams(**section)


NoiseSource: TypeAlias = Callable[[int], torch.Tensor]
"""Gives the unit noise of one step, float32 [D, T] for all clips alike or [B, D, T]. Step 0 is what sampling starts
from; 1, 2, ... are what a sampler draws behind its 1st, 2nd, ... call of the network.
"""


@dataclass(frozen=True)
class FrameNoise:
    """Noise that belongs to frames. Invariant: what a frame gets depends on (seed, its place in the clip, step) alone:
    never on the batch, on the window that it is asked for in, or on what was asked before.

    So a clip is the same alone or in a batch, whole or in windows, and two windows agree about the frames they share.
    """

    seed: int
    channels: int

    def at(self, start_frame: int, num_frames: int, step: int) -> torch.Tensor:
        """Gives unit normal noise, float32 [D, num_frames] on the CPU, of the frames from start_frame >= 0 on."""
        assert start_frame >= 0 and num_frames >= 1, (start_frame, num_frames)
        first, last = start_frame // NOISE_BLOCK, (start_frame + num_frames - 1) // NOISE_BLOCK
        blocks = [self._block(block, step) for block in range(first, last + 1)]
        skipped = start_frame - first * NOISE_BLOCK
        return torch.cat(blocks, dim=1)[:, skipped : skipped + num_frames]

    def window(self, start_frame: int, num_frames: int) -> NoiseSource:
        """Gives the noise of a window, for `sample`."""
        return lambda step: self.at(start_frame, num_frames, step)

    def _block(self, block: int, step: int) -> torch.Tensor:
        # NumPy's Philox takes all of (seed, step, block); torch's generator on the CPU would keep 32 bits of it.
        mixed = np.random.SeedSequence(self.seed, spawn_key=(step, block))
        drawn = np.random.Generator(np.random.Philox(mixed)).standard_normal((self.channels, NOISE_BLOCK), np.float32)
        return torch.from_numpy(drawn)


def sample(
    model: LatentDiffusion,
    told: Told,
    *,
    num_frames: int,
    params: SamplingParams,
    num_clips: int | None = None,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Gives frames as the data has them, fp32 [B, D, num_frames], on the model's device; `told` has to be there.

    A regression model is called once, under the condition: steps and guidance mean nothing to it. On a CPU the process
    keeps what memory it frees from then on: see `allocator`.

    num_clips: B, for models that are told nothing. noise: None for that of `params.seed` from frame 0 on, the same for
    every clip, so that what is told decides alone. on_step: sees normalised frames. dtype: of the network, by autocast.

    Raises:
        MicroMusicGenError: num_frames is no multiple of the network's stride, more steps than the model has, guidance
            without a condition, or a normaliser that was never fitted.
    """
    check_frames(num_frames, model.denoiser.stride)
    device = model.normaliser.mean.device
    if device.type == "cpu":
        keep_freed_memory()
    assert told.aligned is None or told.aligned.shape[-1] == num_frames, (told.aligned.shape, num_frames)
    clips = _num_clips(model, told, num_clips)
    if model.is_regression:
        nothing = torch.zeros(clips, model.channels, num_frames, device=device)
        return model.normaliser.undo(Guided(model, told, guidance=1, dtype=dtype)(nothing, 0)) + model.known(told)
    chosen = times(model.schedule, params.steps, params.spacing or default_spacings.get(params.sampler))
    source = noise or FrameNoise(params.seed, model.channels).window(0, num_frames)
    steps = itertools.count()

    def draw() -> torch.Tensor:
        drawn = source(next(steps)).to(device) * params.noise_scale
        return drawn.expand(clips, model.channels, num_frames)

    guided = Guided(model, told, guidance=params.guidance, dtype=dtype)
    x0 = samplers.get(params.sampler)(guided, draw(), model.schedule, chosen, noise=draw, on_step=on_step)
    return model.normaliser.undo(x0) + model.known(told)


def _num_clips(model: LatentDiffusion, told: Told, num_clips: int | None) -> int:
    if not is_conditional(model):
        assert num_clips is not None, "a model that is told nothing has to be told how many clips: num_clips"
        return num_clips
    assert num_clips in (None, clips_told(told)), (num_clips, clips_told(told))
    return clips_told(told)
