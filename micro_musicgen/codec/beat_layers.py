"""Layers that hear the past and never the future, whole or piece by piece.

A causal layer reads some steps to the left of what it is given. For a whole signal those are zeros; for a signal that
comes in pieces they are the end of the piece before, kept in a `Past`. Both ways give the same numbers, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

SLOPE = 0.3
"""Of LeakyReLU: nearly linear, so that phase gets through within a short run (docs/codec_trials.md)."""


class Past:
    """What the causal layers of one signal remember between its pieces."""

    def __init__(self) -> None:
        self._kept: dict[nn.Module, torch.Tensor] = {}

    def join(self, layer: nn.Module, x: torch.Tensor, left: int) -> torch.Tensor:
        """Gives `x` [B, C, T] behind the last `left` steps that `layer` was given, zeros at first: [B, C, left + T]."""
        kept = self._kept.get(layer)
        joined = functional.pad(x, (left, 0)) if kept is None else torch.cat([kept, x], dim=-1)
        self._kept[layer] = joined[..., joined.shape[-1] - left :]
        return joined


def _joined(layer: nn.Module, x: torch.Tensor, left: int, past: Past | None) -> torch.Tensor:
    return functional.pad(x, (left, 0)) if past is None else past.join(layer, x, left)


class CausalConv(nn.Conv1d):
    """A convolution whose step t ends where its input's steps (t + 1) * stride end. `left`: steps it reads before."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, dilation=dilation)
        self.left = (kernel - 1) * dilation + 1 - stride
        assert self.left >= 0, f"a kernel of {kernel} leaves out steps between strides of {stride}"

    def forward(self, x: torch.Tensor, past: Past | None = None) -> torch.Tensor:
        """Gives [B, C', T / stride] of [B, C, T], T a multiple of the stride."""
        return super().forward(_joined(self, x, self.left, past))


class CausalUpsample(nn.ConvTranspose1d):
    """`stride` steps of each step and the one before: a transposed convolution with a kernel of two strides."""

    left = 1

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 2 * stride, stride=stride)
        self.factor = stride

    def forward(  # type: ignore[override]  # no output_size: the length follows from the input's
        self, x: torch.Tensor, past: Past | None = None
    ) -> torch.Tensor:
        """Gives [B, C', T * stride] of [B, C, T]."""
        made = super().forward(_joined(self, x, self.left, past))
        return made[..., self.factor : self.factor * (x.shape[-1] + 1)]


class Leaky(nn.LeakyReLU):
    """LeakyReLU with the arguments of a causal layer."""

    def __init__(self) -> None:
        super().__init__(SLOPE)

    def forward(self, x: torch.Tensor, past: Past | None = None) -> torch.Tensor:
        """Gives [B, C, T] of [B, C, T]."""
        return super().forward(x)


class GatedBlock(nn.Module):
    """x + out(signal(x) * sigmoid(gate(x))), signal and gate two dilated convolutions of their own weights.

    The signal has no tanh on it: what is multiplied by a gate keeps its phase and its level.
    """

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        # One convolution of twice the channels computes both projections.
        self.projections = CausalConv(channels, 2 * channels, kernel, dilation=dilation)
        self.out = CausalConv(channels, channels, 1)

    def forward(self, x: torch.Tensor, past: Past | None = None) -> torch.Tensor:
        """Gives [B, C, T] of [B, C, T]."""
        mixed: torch.Tensor = self.out(functional.glu(self.projections(x, past), dim=1), past)
        return x + mixed


class Chain(nn.ModuleList):
    """Causal layers one behind the other."""

    def forward(self, x: torch.Tensor, past: Past | None = None) -> torch.Tensor:
        """Gives what the last layer gives."""
        for layer in self:
            x = layer(x, past)
        return x

    def causal_layers(self) -> Iterator[CausalConv | CausalUpsample]:
        """Gives the layers that read the past, first to last."""
        return (layer for layer in self.modules() if isinstance(layer, CausalConv | CausalUpsample))


def gated_stack(channels: int, kernel: int, num_blocks: int) -> list[nn.Module]:
    """Gives blocks of dilations 1, 2, 4, ..."""
    return [GatedBlock(channels, kernel, 2**index) for index in range(num_blocks)]


def down_chain(widths: Sequence[int], strides: Sequence[int], kernel: int, num_blocks: int) -> Chain:
    """Gives a chain from `widths[0]` channels to `widths[-1]`, `prod(strides)` steps to one; blocks before each stride
    but the first, which is where steps are many and channels few.
    """
    layers: list[nn.Module] = []
    for index, stride in enumerate(strides):
        if index:
            layers += [*gated_stack(widths[index], kernel, num_blocks), Leaky()]
        layers.append(CausalConv(widths[index], widths[index + 1], 2 * stride, stride=stride))
    return Chain(layers)


def up_chain(widths: Sequence[int], strides: Sequence[int], kernel: int, num_blocks: int, last: int) -> Chain:
    """Gives the mirror of `down_chain`, one step to `prod(strides)`; `last`: kernel of the convolution at its end, of
    `widths[-2]` channels to `widths[-1]`.
    """
    layers: list[nn.Module] = []
    for index, stride in enumerate(strides):
        if index:
            layers += [*gated_stack(widths[index], kernel, num_blocks), Leaky()]
        layers.append(CausalUpsample(widths[index], widths[index + 1], stride))
    layers += [Leaky(), CausalConv(widths[-2], widths[-1], last)]
    return Chain(layers)


def context_steps(chain: Chain, *, finest: int) -> int:
    """Gives how many steps, at the finer end of `chain`, it reads before the coarse step that it is at.

    finest: 1 for a chain that starts there, the product of its strides for one that ends there.
    """
    size, total = finest, 0
    for layer in chain.causal_layers():
        total += layer.left * size
        if isinstance(layer, CausalUpsample):
            size //= layer.factor
        else:
            size *= _only(layer.stride)
    return total


def _only(value: Any) -> int:
    return int(value[0]) if isinstance(value, tuple) else int(value)
