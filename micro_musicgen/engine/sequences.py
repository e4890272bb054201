"""The codes of a generation in the order in which they are said."""

from __future__ import annotations

import torch

from micro_musicgen.engine.pattern import SequencePlan
from micro_musicgen.errors import MicroMusicGenError


class Sequences:
    """The codes of B clips by step, and where chance decides.

    codes: int64 [B, K, S], the card where a step gives nothing. is_open: bool [K, S], True where a code is to be drawn.
    chance: fp32 [B, K, S]. health: fp32 [B, K], finite as long as everything drawn came from finite logits.
    """

    def __init__(self, num_clips: int, num_codebooks: int, capacity: int, card: int, device: torch.device) -> None:
        self.card = card
        shape = (num_clips, num_codebooks, capacity)
        self.codes = torch.full(shape, card, dtype=torch.int64, device=device)
        self.chance = torch.zeros(shape, device=device)
        self.is_open = torch.zeros(num_codebooks, capacity, dtype=torch.bool, device=device)
        self.health = torch.zeros(num_clips, num_codebooks, device=device)
        self._steps = torch.zeros(num_codebooks, 0, dtype=torch.int64, device=device)

    def begin(self, plan: SequencePlan, prompt: torch.Tensor | None, chance: torch.Tensor) -> None:
        """Takes the order of T frames, a prompt [B, K, T'] to start from, and chances [B, K, T]."""
        device, length = self.codes.device, plan.num_steps
        frames = plan.frames.to(device)
        known = 0 if prompt is None else prompt.shape[-1]
        where = frames.clamp(min=0).expand(len(self.codes), -1, -1)
        self.codes.fill_(self.card)
        self.chance[..., :length] = chance.to(device).gather(2, where)
        self.is_open.fill_(False)
        self.is_open[:, :length] = frames >= known
        if prompt is not None:
            given = prompt.to(device).gather(2, where.clamp(max=known - 1))
            self.codes[..., :length] = torch.where((frames >= 0) & (frames < known), given, self.card)
        self.health.zero_()
        self._steps = plan.steps.to(device)

    def frames(self, first: int, last: int) -> torch.Tensor:
        """Gives codes [B, K, last - first] of these frames."""
        return self.codes.gather(2, self._steps[:, first:last].expand(len(self.codes), -1, -1))

    def check_health(self) -> None:
        """Refuses codes that were drawn from something else than numbers; waits for the device.

        Raises:
            MicroMusicGenError: the model's output is not finite.
        """
        if not bool(self.health.isfinite().all()):
            raise MicroMusicGenError(
                "the model's output is not finite: its training diverged; take an earlier checkpoint"
            )
