"""A network with all that it takes to train and to play it: normalisers, schedule, objective, the null condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from micro_musicgen.diffusion.denoiser import Denoiser, Told, check_frames
from micro_musicgen.diffusion.normaliser import Normaliser
from micro_musicgen.diffusion.objective import LossWeight, Objective, noised
from micro_musicgen.diffusion.schedule import NoiseSchedule

REGRESSION = "regression"
"""Instead of an objective's name: no noise, no steps; the network gives its guess at once. The twin to compare with."""


@dataclass(frozen=True)
class Loss:
    """Of each clip, [B]. loss: weighted. mse: not. t: the steps that were drawn. prediction: [B, D, T], detached."""

    loss: torch.Tensor
    mse: torch.Tensor
    t: torch.Tensor
    prediction: torch.Tensor


class LatentDiffusion(nn.Module):
    """A denoiser between normalised frames. Invariant: its state_dict and its config are all that is needed to play it.

    objective: None is regression. residual: what is denoised is the difference to the first `channels` channels of the
    condition, so that what is known already is neither learned nor drawn. The null condition is learned: what a clip
    hears instead of its condition when that is dropped, one value per channel, and one embedding in place of a text.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        channels: int,
        condition_channels: int,
        text_channels: int = 0,
        schedule: NoiseSchedule,
        objective: Objective | None,
        loss_weight: LossWeight,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule = schedule
        self.objective = objective
        self.loss_weight = loss_weight
        self.residual = residual
        self.channels, self.condition_channels, self.text_channels = channels, condition_channels, text_channels
        self.normaliser = Normaliser(channels)
        self.condition_normaliser = Normaliser(condition_channels) if condition_channels else None
        self.null_condition = nn.Parameter(torch.zeros(condition_channels)) if condition_channels else None
        self.null_text = nn.Parameter(torch.zeros(text_channels)) if text_channels else None

    @property
    def is_regression(self) -> bool:
        """Whether the network gives its guess at once."""
        return self.objective is None

    def known(self, told: Told) -> torch.Tensor | float:
        """Gives what a residual model starts from, [B, D, T]; 0 for others."""
        if not self.residual:
            return 0.0
        assert told.aligned is not None
        return told.aligned[:, : self.channels].float()

    def told(self, told: Told, dropped: torch.Tensor | None = None) -> Told:
        """Gives what the network is told: normalised, and the null condition for clips whose bool [B] `dropped` is
        True; None drops nothing.
        """
        aligned, text = told.aligned, told.text
        if self.condition_normaliser is None:
            aligned = None
        else:
            assert aligned is not None and self.null_condition is not None
            aligned = self.condition_normaliser(aligned)
            if dropped is not None:
                null = self.null_condition.to(aligned.dtype)[None, :, None]
                aligned = torch.where(dropped[:, None, None], null, aligned)
        if self.null_text is None:
            text = None
        else:
            assert text is not None
            text = self._null_texts(text, dropped)
        return Told(aligned, text)

    def _null_texts(
        self, text: tuple[torch.Tensor, torch.Tensor], dropped: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts the null embedding, alone, in place of texts that are dropped or empty."""
        embeddings, mask = text
        assert self.null_text is not None
        silent = ~mask.any(dim=1) if dropped is None else dropped | ~mask.any(dim=1)
        first = torch.zeros_like(mask)
        first[:, 0] = True
        null = self.null_text.to(embeddings.dtype).expand_as(embeddings)
        return (
            torch.where(silent[:, None, None], null, embeddings),
            torch.where(silent[:, None], first, mask),
        )

    def predict(self, x: torch.Tensor, t: torch.Tensor, heard: Any) -> torch.Tensor:
        """Gives what the network says about x [B, D, T], in fp32."""
        prediction: torch.Tensor = self.denoiser(x, t, heard)
        return prediction.float()

    def x0(self, prediction: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Gives the clean frames [B, D, T] that a prediction at steps t [B] stands for."""
        if self.objective is None:
            return prediction
        alpha, sigma = self.schedule.alpha(t)[:, None, None], self.schedule.sigma(t)[:, None, None]
        return self.objective.x0(prediction, x, alpha, sigma)

    def loss(
        self,
        clean: torch.Tensor,
        told: Told,
        *,
        dropped: torch.Tensor | None = None,
        t: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        autocast: Callable[[], Any] | None = None,
    ) -> Loss:
        """Gives the loss of clean frames [B, D, T] as the data has them; steps t [B] and noise are drawn if not given.

        Raises:
            MicroMusicGenError: T is no multiple of the network's stride.
        """
        check_frames(clean.shape[-1], self.denoiser.stride)
        wanted = self.normaliser(clean - self.known(told))
        if t is None:
            t = torch.randint(0, self.schedule.num_timesteps, (len(clean),), device=clean.device)
        if self.objective is None:
            t, noisy, target = torch.zeros_like(t), torch.zeros_like(wanted), wanted
        else:
            noise = torch.randn_like(wanted) if noise is None else noise
            alpha, sigma = self.schedule.alpha(t)[:, None, None], self.schedule.sigma(t)[:, None, None]
            noisy = noised(wanted, noise, alpha, sigma)
            target = self.objective.target(wanted, noise, alpha, sigma)
        heard_from = self.told(told, dropped)
        if autocast is None:
            prediction = self.predict(noisy, t, self.denoiser.hear(heard_from))
        else:
            with autocast():
                prediction = self.denoiser(noisy, t, self.denoiser.hear(heard_from))
            prediction = prediction.float()
        mse = (prediction - target).square().mean(dim=(1, 2))
        weight = torch.ones_like(mse) if self.objective is None else self.loss_weight(self.schedule.snr(t))
        return Loss(loss=weight * mse, mse=mse, t=t, prediction=prediction.detach())
