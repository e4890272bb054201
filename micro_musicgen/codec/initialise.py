"""Starting weights under which every layer of an autoencoder speaks at the same level.

An untrained SEANet's latents hardly depend on the sound: training first finds the one spectrum that suits all clips
and can stay there for most of a short run. Weights that are scaled on a real batch, layer by layer, so that every
channel has mean 0 and variance 1, skip that stage (data-dependent initialisation; Salimans and Kingma 2016, Mishkin
and Matas 2016). In numbers: docs/codec_trials.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

QUIET = 1e-5
"""A channel below this level is silent on the batch and is left as it is."""


@torch.no_grad()
def level_layers(model: Any, wav: torch.Tensor) -> None:
    """Scales and shifts the convolutions of audiocraft's `model`: on `wav` [B, 1, L] every channel gets variance 1.

    The output gets the level of `wav`. Silence changes nothing. state_dict keys stay as they are.
    """
    if float(wav.std()) <= QUIET:
        return
    layers = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]
    last = [m for m in model.decoder.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)][-1]

    def level(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        wanted = wav.std() if layer is last else torch.ones((), device=wav.device)
        # The weights of a transposed convolution have their input channels first: one scale for all of them.
        per_channel = isinstance(layer, nn.Conv1d)
        std = output.std(dim=(0, 2)) if per_channel else output.std().expand(output.shape[1])
        heard = std > QUIET
        factor = torch.where(heard, wanted / std.clamp(min=QUIET), torch.ones_like(std))
        mean = torch.where(heard, output.mean(dim=(0, 2)), torch.zeros_like(std))
        _scale_weight(layer, factor if per_channel else factor[:1])
        bias: Any = layer.bias
        if bias is not None:
            bias.sub_(mean).mul_(factor)
            output = output - mean[:, None]
        return output * factor[:, None]

    handles = [layer.register_forward_hook(level) for layer in layers]
    try:
        model.decoder(model.encoder(wav))
    finally:
        for handle in handles:
            handle.remove()


def _scale_weight(layer: nn.Module, factor: torch.Tensor) -> None:
    """Multiplies a layer's weight, through its magnitude where it is under weight norm."""
    weight: Any = getattr(layer, "weight_g", layer.weight)
    weight.mul_(factor.view(-1, *[1] * (weight.ndim - 1)))
