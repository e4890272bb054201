"""Clips of any length out of a model with a window: window after window, or one cache that rolls on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.runner import NO_CONDITIONS, Runner
from micro_musicgen.engine.sampler import Progress, chances
from micro_musicgen.engine.threads import threads
from micro_musicgen.errors import MicroMusicGenError

DEFAULT_STRIDE = 0.6
"""Share of the window by which each window moves on; the rest is what it hears of the one before."""


@dataclass(frozen=True)
class Windows:
    """Frames of a window and how far one moves on. Invariant: 0 < stride < window, or both are 1.

    rolls: go on step by step instead, hearing the last `window` frames: for models to whom only distances matter.
    """

    window: int
    stride: int
    rolls: bool = False

    def context(self, done: int, total: int) -> int:
        """Gives how many of `done` frames the next window begins with, when `total` are wanted."""
        return done if total <= self.window else min(done, self.window - self.stride)


def windows(
    window_s: float, frame_rate: float, stride_s: float | None, *, can_roll: bool = False, grain: int = 1
) -> Windows:
    """Gives the windows of a model; stride_s None takes 60 % of the window, or rolls where the model can.

    grain: frames of which strides are a multiple, one at least, where the window holds more than that: bars.

    Raises:
        MicroMusicGenError: the stride is not shorter than the window.
    """
    window = max(1, round(window_s * frame_rate))
    stride = max(1, round(DEFAULT_STRIDE * window if stride_s is None else stride_s * frame_rate))
    if stride_s is not None and stride >= window:
        raise MicroMusicGenError(
            f"extend_stride {stride_s:g} s must be shorter than the model's window of {window_s:g} s"
        )
    if grain < window:
        stride = min(max(1, stride // grain), (window - 1) // grain) * grain
    return Windows(window, stride, can_roll and stride_s is None)


@dataclass(frozen=True, kw_only=True)
class CodeRequest:
    """Codes to make. prompt: codes [B, K, T] to begin with, T < num_frames. conditions: of B rows a branch.

    coefs: between the branches of guidance, see `conditions.Rows`.
    """

    params: GenerationParams
    generators: Sequence[torch.Generator]
    num_frames: int
    shape: Windows
    prompt: torch.Tensor | None = None
    conditions: Fused = NO_CONDITIONS
    coefs: tuple[float, ...] = ()

    @property
    def prompt_frames(self) -> int:
        """Frames that are there already."""
        return 0 if self.prompt is None else self.prompt.shape[-1]


def code_chunks(
    runner: Runner, request: CodeRequest, *, chunk_frames: int | None = None, progress: Progress | None = None
) -> Iterator[torch.Tensor]:
    """Yields int64 codes [B, K, n] as they become final, the prompt first; together [B, K, num_frames].

    chunk_frames: yield as soon as so many are there; None waits for each window's end. progress: hears of frames after
    the prompt's.

    Raises:
        MicroMusicGenError: the model's output is not finite.
    """
    total, first = request.num_frames, request.prompt_frames
    assert first < total, (first, total)
    chance = chances(request.generators, runner.network.arch.num_codebooks, total)
    done, heard, rising = first, request.prompt, _Rising(progress, total - first)
    if heard is not None:
        yield heard
    while done < total:
        context, length = _extent(request.shape, done, total)
        known = heard[..., heard.shape[-1] - context :] if heard is not None and context else None
        part = chance[..., done - context : done - context + length]
        report = rising.shifted(done - context - first)
        parts = [] if known is None else [known]
        for chunk in _window(runner, request, part, known, chunk_frames, report):
            parts.append(chunk)
            done += chunk.shape[-1]
            yield chunk
        heard = torch.cat(parts, dim=-1)
    assert done == total, (done, total)


def generate_codes(runner: Runner, request: CodeRequest, progress: Progress | None = None) -> torch.Tensor:
    """Gives int64 codes [B, K, num_frames] that begin with the prompt; see `code_chunks`."""
    return torch.cat(list(code_chunks(runner, request, progress=progress)), dim=-1)


def _extent(shape: Windows, done: int, total: int) -> tuple[int, int]:
    """Gives how many frames the next window hears and how many it has in all."""
    if shape.rolls and total > shape.window:
        context = min(done, shape.window)
        return context, total - done + context
    context = shape.context(done, total)
    return context, min(shape.window, context + total - done)


def _window(
    runner: Runner,
    request: CodeRequest,
    chance: torch.Tensor,
    known: torch.Tensor | None,
    chunk_frames: int | None,
    report: Callable[[int], None],
) -> Iterator[torch.Tensor]:
    """Yields the new codes of one window of as many frames as `chance` [B, K, T] has."""
    length = chance.shape[-1]
    given = 0 if known is None else known.shape[-1]
    rolls = request.shape.rolls and length > request.shape.window
    steps = runner.run(
        request.params,
        length,
        chance,
        prompt=known,
        conditions=request.conditions,
        coefs=request.coefs,
        least_frames=0 if rolls else min(request.shape.window, request.num_frames),
        rolling_steps=runner.plan(request.shape.window).num_steps if rolls else None,
    )
    wanted = chunk_frames or length
    while given < length:
        with threads(runner.network.num_threads):
            complete = given
            while complete < min(given + wanted, length):
                complete, sequences = next(steps)
                report(complete)
            chunk = sequences.frames(given, complete)
            sequences.check_health()
        given = complete
        yield chunk


class _Rising:
    """Passes numbers of frames done on to `progress`, each once."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.total = total
        self.highest = 0

    def shifted(self, before: int) -> Callable[[int], None]:
        """Gives a hook for a window ahead of which `before` frames lie."""

        def report(complete: int) -> None:
            if self.progress is not None and before + complete > self.highest:
                self.highest = before + complete
                self.progress(self.highest, self.total)

        return report
