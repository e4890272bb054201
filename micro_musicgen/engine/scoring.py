"""How well a model predicts codes that are there, under the very arithmetic that it generates with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.engine.runner import NO_CONDITIONS
from micro_musicgen.engine.state import LMState
from micro_musicgen.engine.step import read_positions

if TYPE_CHECKING:
    from micro_musicgen.engine.engine import MicroMusicGen
    from micro_musicgen.engine.runner import Runner


@torch.inference_mode()
def step_logits(runner: Runner, codes: torch.Tensor, conditions: Fused = NO_CONDITIONS) -> torch.Tensor:
    """Gives fp32 logits [B, K, T, card] for every code of `codes` [B, K, T] given what comes before it. No cache.

    conditions: of B rows, unguided.
    """
    network = runner.network
    plan = runner.plan(codes.shape[-1])
    frames = plan.frames.to(network.device)
    state = LMState(network, len(codes), conditions.prefix_length + plan.num_steps)
    state.begin(conditions)
    state.open_read(conditions.prefix_length + plan.num_steps, conditions.prefix_mask)
    said = codes.to(network.device).gather(2, frames.clamp(min=0).expand(len(codes), -1, -1))
    said = torch.where(frames >= 0, said, network.arch.card)
    found = []
    for row in range(len(codes)):
        out = read_positions(network, state, slice(row, row + 1), said[row : row + 1], conditions)
        logits = network.logits(out[0, conditions.prefix_length :])  # [S, K, card]; step s gives what is said at s + 1
        books = torch.arange(network.arch.num_codebooks, device=network.device)[:, None]
        found.append(logits[plan.steps.to(network.device) - 1, books])
    return torch.stack(found)


def code_cross_entropy(model: MicroMusicGen, codes: torch.Tensor) -> float:
    """Gives the mean cross-entropy in nat per code of `codes` [B, K, T], T within the model's window."""
    total = 0.0
    for clip in codes:
        logits = step_logits(model.runner, clip[None])[0]
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), clip.flatten().to(logits.device)))
    return total / len(codes)
