"""Convolutions and norms over frames-major activations, [B, T, C] in memory.

Every layer of a network over frames is then a matrix product of its frames, or a convolution in the layout that the
fastest kernels of CPUs and GPUs take: weights are kept as they read them, [out, k, in], and nothing is reordered at a
call.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

NORM_EPS = 1e-5


class FrameConv(nn.Module):
    """A convolution in time, zeros around the clip. weight: [out, k, in]. Gives T / stride frames."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.padding = stride, (kernel - stride + 1) // 2
        self.weight = nn.Parameter(torch.empty(channels_out, kernel, channels_in))
        self.bias = nn.Parameter(torch.empty(channels_out))
        _initialise(self.weight, self.bias, fan_in=kernel * channels_in)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives [B, T / stride, out] of x [B, T, in]."""
        # As a picture one pixel high in channels-last order, both are views.
        picture = x.transpose(1, 2).unsqueeze(2)
        weight = self.weight.transpose(1, 2).unsqueeze(2)
        y = F.conv2d(picture, weight, self.bias, stride=(1, self.stride), padding=(0, self.padding))
        return y.squeeze(2).transpose(1, 2)


class FrameUp(nn.Module):
    """A transposed convolution of kernel 4 and stride 2 that gives 2 T frames, zeros around the clip.

        out[2t]     = A x[t] + D x[t - 1] + b
        out[2t + 1] = B x[t] + C x[t + 1] + b

    same: [2, out, in], A and B. other: [2, out, in], C and D.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.channels_out = channels_out
        self.same = nn.Parameter(torch.empty(2, channels_out, channels_in))
        self.other = nn.Parameter(torch.empty(2, channels_out, channels_in))
        self.bias = nn.Parameter(torch.empty(channels_out))
        for weight in (self.same, self.other):
            _initialise(weight, self.bias, fan_in=2 * channels_in)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives [B, 2 T, out] of x [B, T, in]."""
        same, other = self._products(x)
        same[:, 1:, 0] += other[:, :-1, 1]
        same[:, :-1, 1] += other[:, 1:, 0]
        return same.flatten(1, 2)

    def ends(self, ends: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Gives the mean over time, the first and the last frame of what `forward` gives, [B, 3, out], of those of its
        input [B, 3, in] with T = num_frames: exact, and 2 T frames need not be made where only their mean is looked at.
        """
        same, other = self._products(ends)
        # C never sees the first frame and D never the last.
        passed = other[:, 0].sum(dim=1) - (other[:, 1, 0] + other[:, 2, 1]) / num_frames
        mean = (same[:, 0].sum(dim=1) + passed) / 2
        return torch.stack([mean, same[:, 1, 0], same[:, 2, 1]], dim=1)

    def _products(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives (A x + b, B x + b) and (C x, D x), [B, T, 2, out] each."""
        same = F.linear(x, self.same.flatten(0, 1), self.bias.repeat(2))
        other = F.linear(x, self.other.flatten(0, 1))
        return torch.unflatten(same, 2, (2, -1)), torch.unflatten(other, 2, (2, -1))


class ClipNorm(nn.Module):
    """Brings a whole clip [T, C] to mean 0 and variance 1, then weighs and shifts channels: GroupNorm of one group."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x [B, T, C] normalised."""
        picture = x.transpose(1, 2).unsqueeze(2)
        return F.group_norm(picture, 1, self.weight, self.bias, NORM_EPS).squeeze(2).transpose(1, 2)


def _initialise(weight: torch.Tensor, bias: torch.Tensor, *, fan_in: int) -> None:
    """Fills both evenly within 1 / sqrt(fan_in), as torch fills its convolutions."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(weight, -bound, bound)
    nn.init.uniform_(bias, -bound, bound)
