"""A step whose shapes and addresses never change, for those who can record it: CUDA graphs and torch.compile.

The first call records or compiles, which takes seconds (graph) to minutes (compile); the time is logged and kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from micro_musicgen.engine.cursor import DeviceCursor
from micro_musicgen.engine.step import Step
from micro_musicgen.errors import MicroMusicGenError

MODES = ("eager", "graph", "compile")
logger = logging.getLogger(__name__)


class FixedStep:
    """One step over the buffers of the `Step` that it was made from, its position a tensor on the device.

    Invariant: buffers are never replaced while this lives; what changes between generations is written into them.
    warm_up_s: seconds spent on recording or compiling so far.
    """

    def __init__(self, step: Step, mode: str) -> None:
        assert mode in MODES, mode
        self.step = step
        self.mode = mode
        self.cursor = DeviceCursor(step.network.device)
        self.warm_up_s = 0.0
        self._run: Callable[[], None] | None = None
        self._made_for: tuple[int, ...] = ()

    def begin(self, step: Step, first: int) -> None:
        """Goes to step `first` of what `step` is about, which shares the buffers; records anew where some moved."""
        assert step.state is self.step.state and step.sequences is self.step.sequences
        if self._made_for != _addresses(step):
            self._run = None
        self.cursor.reset(first, prefix=step.state.prefix_length)

    def __call__(self) -> None:
        """Takes one step."""
        if self._run is None:
            self._run = self._warmed(self._recorded if self.mode == "graph" else self._compiled)
        else:
            self._run()

    def _warmed(self, make: Callable[[], Callable[[], None]]) -> Callable[[], None]:
        start = time.perf_counter()
        self._made_for = _addresses(self.step)
        made = make()
        if self.step.network.device.type == "cuda":
            torch.cuda.synchronize(self.step.network.device)
        seconds = time.perf_counter() - start
        self.warm_up_s += seconds
        logger.info("warm-up of the %s step took %.1f s", self.mode, seconds)
        return made

    def _eager(self) -> None:
        self.step(self.cursor)

    def _recorded(self) -> Callable[[], None]:
        """Takes the step while recording it; gives the replay.

        Steps taken to warm up allocators and handles would move the sequence on, so everything they write is put back.
        """
        device = self.step.network.device
        if device.type != "cuda":
            raise MicroMusicGenError(f"mode graph records CUDA graphs, and the model is on {device}; use eager")
        sequences, cursor = self.step.sequences, self.cursor
        kept = sequences.codes.clone(), sequences.health.clone(), cursor.step.clone(), cursor.position.clone()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._eager()
                self._put_back(kept)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._eager()
        self._put_back(kept)  # capturing runs nothing, but is no promise
        graph.replay()
        return graph.replay

    def _put_back(self, kept: tuple[torch.Tensor, ...]) -> None:
        """Undoes a step. Cache slots and the mask need no undoing: the same step writes them again."""
        sequences, cursor = self.step.sequences, self.cursor
        for buffer, value in zip((sequences.codes, sequences.health, cursor.step, cursor.position), kept, strict=True):
            buffer.copy_(value)

    def _compiled(self) -> Callable[[], None]:
        """Compiles the network's part of the step and takes it; drawing stays as it is, it is not what takes time."""
        logits = torch.compile(self.step.logits, dynamic=False)

        def run() -> None:
            self.step.draw(logits(self.cursor), self.cursor)
            self.cursor.advance()

        run()
        return run


def _addresses(step: Step) -> tuple[int, ...]:
    """Gives where the tensors lie that a state may make anew for other conditions."""
    state = step.state
    parts = (state.mask, state.cross_mask, state.added, *state.cross)
    return tuple(0 if part is None else part.data_ptr() for part in parts)
