"""The smallest network there is: what it says is a sum of x, the time, the condition and the text, each by a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from micro_musicgen.diffusion.denoiser import Denoiser, Told
from micro_musicgen.diffusion.model import LatentDiffusion
from micro_musicgen.diffusion.objective import loss_weight, objectives
from micro_musicgen.diffusion.schedule import make_schedule

CHANNELS, CONDITION, TEXT, STEPS = 4, 3, 5, 100


class LinearDenoiser(Denoiser):
    """Counts what it is asked: `heard` how often, `batches` with how many clips each time."""

    def __init__(self, condition_channels: int, text_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.from_x = nn.Linear(CHANNELS, CHANNELS)
        self.from_aligned = nn.Linear(condition_channels, CHANNELS) if condition_channels else None
        self.from_text = nn.Linear(text_channels, CHANNELS) if text_channels else None
        self.heard = 0
        self.batches: list[int] = []
        self.dtypes: list[torch.dtype] = []

    def hear(self, told: Told) -> torch.Tensor:
        self.heard += 1
        said: Any = torch.zeros(1, CHANNELS, 1)
        if self.from_aligned is not None:
            assert told.aligned is not None
            said = said + self.from_aligned(told.aligned.mT).mT
        if self.from_text is not None:
            assert told.text is not None
            embeddings, mask = told.text
            said = said + (self.from_text(embeddings) * mask[..., None]).sum(1)[..., None]
        return said

    def forward(self, x: torch.Tensor, t: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        mixed = self.from_x(x.mT).mT
        self.dtypes.append(mixed.dtype)
        return torch.tanh(mixed + t[:, None, None] / STEPS + heard)


def linear_model(
    objective: str | None = "v",
    *,
    condition_channels: int = CONDITION,
    text_channels: int = 0,
    stride: int = 1,
) -> LatentDiffusion:
    """Gives a model in eval mode with weights from a fixed seed, null condition and normalisers too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LatentDiffusion(
            LinearDenoiser(condition_channels, text_channels, stride),
            channels=CHANNELS,
            condition_channels=condition_channels,
            text_channels=text_channels,
            schedule=make_schedule("cosine", STEPS),
            objective=None if objective is None else objectives.get(objective),
            loss_weight=loss_weight("uniform", "v"),
        )
        for null in (model.null_condition, model.null_text):
            if null is not None:
                nn.init.normal_(null)
        model.normaliser.fit([3 * torch.randn(2, CHANNELS, 50) + 7])
        if model.condition_normaliser is not None:
            model.condition_normaliser.fit([torch.randn(2, condition_channels, 50)])
    return model.eval()
