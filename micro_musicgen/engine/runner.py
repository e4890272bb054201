"""Runs a network over sequences of codes: reads what is there, then step by step draws what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.cursor import HostCursor
from micro_musicgen.engine.fixed import FixedStep
from micro_musicgen.engine.pattern import SequencePlan, sequence_plan
from micro_musicgen.engine.sequences import Sequences
from micro_musicgen.engine.state import LMState
from micro_musicgen.engine.step import Step
from micro_musicgen.engine.transformer_lm import Network

NO_CONDITIONS = Fused(rows=0)
KEPT_PLANS = 4


class Runner:
    """A network, its codebook pattern, and the buffers it runs in, kept from one call to the next.

    Invariant: what a call gives doesn't depend on the calls before. mode: how a step is run: "eager"; "graph", recorded
    as a CUDA graph (CUDA only); "compile", compiled by torch.
    """

    def __init__(self, network: Network, pattern: Mapping[str, Any], *, mode: str = "eager") -> None:
        self.network = network
        self.pattern = dict(pattern)
        self.mode = mode
        self._plans: dict[int, SequencePlan] = {}
        self._buffers: tuple[LMState, Sequences] | None = None
        self._fixed: dict[tuple[GenerationParams, tuple[float, ...]], FixedStep] = {}

    @property
    def warm_up_s(self) -> float:
        """Seconds spent on recording or compiling steps that are still in use."""
        return sum(step.warm_up_s for step in self._fixed.values())

    def plan(self, num_frames: int) -> SequencePlan:
        """Gives the order of `num_frames` frames."""
        if num_frames not in self._plans:
            while len(self._plans) >= KEPT_PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[num_frames] = sequence_plan(self.pattern, self.network.arch.num_codebooks, num_frames)
        return self._plans[num_frames]

    def _room(self, num_clips: int, rows: int, num_slots: int, num_steps: int) -> tuple[LMState, Sequences]:
        """Gives buffers of at least this size: those of the last call when they fit."""
        if self._buffers is not None:
            state, sequences = self._buffers
            fits = state.num_slots >= num_slots and sequences.codes.shape[-1] >= num_steps
            if (state.rows, len(sequences.codes)) == (rows, num_clips) and fits:
                return self._buffers
        self._buffers, self._fixed = None, {}  # first, so that old and new never stand side by side
        arch = self.network.arch
        state = LMState(self.network, rows, num_slots, num_positions=num_steps)
        sequences = Sequences(num_clips, arch.num_codebooks, num_steps, arch.card, self.network.device)
        self._buffers = state, sequences
        return self._buffers

    @torch.inference_mode()
    def run(
        self,
        params: GenerationParams,
        num_frames: int,
        chance: torch.Tensor,
        *,
        prompt: torch.Tensor | None = None,
        conditions: Fused = NO_CONDITIONS,
        coefs: tuple[float, ...] = (),
        least_frames: int = 0,
        rolling_steps: int | None = None,
    ) -> Iterator[tuple[int, Sequences]]:
        """Yields after each step (leading frames that are complete, the sequences), to be read before going on.

        chance: [B, K, num_frames]. conditions: of B rows a branch, see `conditions.Rows`; coefs: between the branches.
        least_frames: make room for so many, so that the buffers serve longer clips too. rolling_steps: hear only the
        last so many.
        """
        plan = self.plan(num_frames)
        state, sequences = self._prepare(plan, chance, conditions, coefs, least_frames, rolling_steps)
        sequences.begin(plan, prompt, chance)
        step = Step(state, sequences, params, coefs=coefs)
        first = plan.first_step(0 if prompt is None else prompt.shape[-1])
        prefix, window = state.prefix_length, rolling_steps or self._context()
        if first > 1 or prefix:
            step.read(first, conditions, HostCursor(first - 1, prefix=prefix))
            yield plan.complete[first], sequences
        else:
            first = 0
        cursor = HostCursor(first, prefix=prefix, window=window)
        take = self._stepper(step, cursor, rolling_steps)
        for at in range(first, plan.num_steps - 1):
            take()
            yield plan.complete[at + 1], sequences

    def _prepare(
        self,
        plan: SequencePlan,
        chance: torch.Tensor,
        conditions: Fused,
        coefs: tuple[float, ...],
        least_frames: int,
        rolling_steps: int | None,
    ) -> tuple[LMState, Sequences]:
        num_clips = len(chance)
        num_steps = max(plan.num_steps, self.plan(least_frames).num_steps if least_frames else 0)
        positions = conditions.prefix_length + num_steps
        slots = 2 * rolling_steps if rolling_steps else positions
        state, sequences = self._room(num_clips, num_clips * (1 + len(coefs)), slots, positions)
        state.begin(conditions)
        return state, sequences

    def _context(self) -> int | None:
        """Gives how many slots a step may hear, itself included."""
        context = self.network.arch.past_context
        return None if context is None else context + 1

    def _stepper(self, step: Step, cursor: HostCursor, rolling_steps: int | None) -> Callable[[], None]:
        if rolling_steps is not None:
            keep = rolling_steps - 1

            def roll_and_step() -> None:
                step.state.roll(cursor, keep)
                step(cursor)

            return roll_and_step
        if self.mode == "eager" or cursor.window is not None:
            return lambda: step(cursor)
        key = (step.params.updated(seed=None, duration_s=1.0), step.coefs)
        if key not in self._fixed:
            self._fixed[key] = FixedStep(step, self.mode)
        fixed = self._fixed[key]
        fixed.begin(step, cursor.step)
        return fixed
