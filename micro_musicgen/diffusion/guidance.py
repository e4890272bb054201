"""A model that was told something, as samplers call it: guess the clean frames of x at step t."""

from __future__ import annotations

import contextlib

import torch
from torch.func import functional_call

from micro_musicgen.diffusion.denoiser import Told
from micro_musicgen.diffusion.model import LatentDiffusion
from micro_musicgen.errors import MicroMusicGenError


class Guided:
    """A `Denoise` with classifier-free guidance: u + w (c - u), in the space of what the network predicts.

    c is the prediction under the condition and u that under the learned null condition; both go through the network as
    one batch. w = 1 runs c alone and w = 0 u alone. What is told is heard once, when this is made.

    calls: how often the network ran. branch_calls: the same, with a batch of both branches counted twice.
    """

    def __init__(
        self, model: LatentDiffusion, told: Told, *, guidance: float, dtype: torch.dtype | None = None
    ) -> None:
        """model: in eval mode. told: as the data says it, not normalised. dtype: the network runs under autocast to it,
        such as torch.bfloat16; None for the dtype of its weights.

        Raises:
            MicroMusicGenError: guidance other than 1 for a model that is told nothing.
        """
        assert not model.training, "a model that plays has to be in eval mode: call model.eval()"
        if guidance != 1 and not is_conditional(model):
            raise MicroMusicGenError(
                f"sampling.guidance={guidance:g} has nothing to guide: this model has no condition; use 1"
            )
        self.guidance = guidance
        self.branches = 1 if guidance in (0, 1) else 2
        self.calls = 0
        self.branch_calls = 0
        self._model = model
        self._device = model.normaliser.mean.device
        self._dtype = dtype
        self._weights = _matrices(model.denoiser, dtype)
        with torch.no_grad(), self._autocast():
            self._heard = model.denoiser.hear(self._told(told))

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """Gives the guess at the clean normalised frames, fp32 [B, D, T], of noisy x [B, D, T] at step t."""
        steps = torch.full((len(x),), t, dtype=torch.int64, device=x.device)
        with self._autocast():
            asked = (x.repeat(self.branches, 1, 1), steps.repeat(self.branches), self._heard)
            prediction = functional_call(self._model.denoiser, self._weights, asked).float()
        self.calls += 1
        self.branch_calls += self.branches
        if self.branches == 2:
            conditional, null = prediction.chunk(2)
            prediction = null + self.guidance * (conditional - null)
        return self._model.x0(prediction, x, steps)

    def _told(self, told: Told) -> Told:
        """Gives what the network hears: the clips' conditions, the null condition, or the one behind the other."""
        if not is_conditional(self._model):
            return Told()
        if self.guidance == 1:
            return self._model.told(told)
        dropped = torch.ones(clips_told(told), dtype=torch.bool, device=self._device)
        if self.guidance == 0:
            return self._model.told(told, dropped)
        return self._model.told(_twice(told), torch.cat([~dropped, dropped]))

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)


def _matrices(denoiser: torch.nn.Module, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Gives the matrices of a network on a CPU in the dtype that autocast would cast them to at every call, which takes
    a tenth of the time there; none elsewhere, where what is compiled keeps to the weights that it was compiled with.
    """
    found = dict(denoiser.named_parameters())
    if dtype is None or any(each.device.type != "cpu" for each in found.values()):
        return {}
    return {name: each.detach().to(dtype) for name, each in found.items() if each.ndim > 1}


def is_conditional(model: LatentDiffusion) -> bool:
    """Whether the model is told anything: frames beside its own, or a text."""
    return bool(model.condition_channels or model.text_channels)


def clips_told(told: Told) -> int:
    """Gives the number of clips, B, that something is told about."""
    said = told.aligned if told.text is None else told.text[0]
    assert said is not None, "a conditional model has to be told something; its null condition is guidance 0"
    return len(said)


def _twice(told: Told) -> Told:
    aligned = None if told.aligned is None else told.aligned.repeat(2, 1, 1)
    text = None if told.text is None else (told.text[0].repeat(2, 1, 1), told.text[1].repeat(2, 1))
    return Told(aligned, text)
