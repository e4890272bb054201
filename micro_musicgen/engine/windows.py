"""Clips longer than the window that a model was trained on: window after window, each continuing the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.sampler import Progress, generate_window
from micro_musicgen.errors import MicroMusicGenError

DEFAULT_STRIDE = 0.6
"""Share of the window by which each window moves on; the rest is what it hears of the one before."""


@dataclass(frozen=True)
class Windows:
    """Frames of a window and how far one moves on. Invariant: 0 < stride < window, or both are 1."""

    window: int
    stride: int

    def context(self, done: int, total: int) -> int:
        """Gives how many of `done` frames the next window begins with, when `total` are wanted."""
        return done if total <= self.window else min(done, self.window - self.stride)


def windows(window_s: float, frame_rate: float, stride_s: float | None) -> Windows:
    """Gives the windows of a model; stride_s None takes 60 % of the window.

    Raises:
        MicroMusicGenError: the stride is not shorter than the window.
    """
    window = max(1, round(window_s * frame_rate))
    stride = max(1, round(DEFAULT_STRIDE * window if stride_s is None else stride_s * frame_rate))
    if stride_s is not None and stride >= window:
        raise MicroMusicGenError(
            f"extend_stride {stride_s:g} s must be shorter than the model's window of {window_s:g} s"
        )
    return Windows(window, stride)


def generate_codes(
    lm: Any,
    params: GenerationParams,
    generators: Sequence[torch.Generator],
    num_frames: int,
    shape: Windows,
    *,
    prompt: torch.Tensor | None = None,
    conditions: Sequence[Any] = (),
    progress: Progress | None = None,
) -> torch.Tensor:
    """Gives int64 codes [B, K, num_frames] that begin with `prompt` [B, K, T], T < num_frames, of any length."""
    codes = prompt
    first = done = 0 if prompt is None else prompt.shape[-1]
    while done < num_frames:
        context = shape.context(done, num_frames)
        length = min(shape.window, context + num_frames - done)
        heard = codes[..., done - context :] if codes is not None and context else None
        report = _shifted(progress, done - first, num_frames - first)
        window = generate_window(lm, params, generators, length, prompt=heard, conditions=conditions, progress=report)
        new = window[..., context:]
        codes = new if codes is None else torch.cat([codes, new], dim=-1)
        done = codes.shape[-1]
    assert codes is not None and done == num_frames, (done, num_frames)
    return codes


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Gives a hook that counts over all windows instead of within one."""
    if progress is None:
        return None

    def report(done: int, _: int) -> None:
        progress(before + done, total)

    return report
