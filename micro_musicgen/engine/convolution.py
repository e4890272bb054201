"""Convolutions as matrix products over a stream of samples.

A clip is a matrix [samples, channels] that arrives in pieces of any length. A convolution of kernel k is k products of
shifted rows with [channels in, channels out] matrices, added up: no unfolding, and each product has the shape that a
BLAS is fastest at. Every layer keeps the few rows that its next piece looks back at, so pieces join without a seam
and no sample is computed twice.

    transposed convolution of kernel 2s and stride s: row t of the output, which holds s samples, is
        out[t] = in[t] W0 + in[t-1] W1 + b,        W0, W1 of shape [channels in, s * channels out]

so it is a convolution with two taps whose rows are then read as s samples each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from micro_musicgen.engine.activation import Activation
from micro_musicgen.engine.decoder_spec import ConvSpec

Weights = Callable[[str], torch.Tensor]
"""Gives a tensor of the state dict in fp32, on the device that it is computed on."""

FAST_ROWS = 96
"""Rows from which fewer and smaller products are worth the additions around them."""


def folded_weight(spec: ConvSpec, weights: Weights) -> torch.Tensor:
    """Gives a convolution's weight, [out, in, k] or transposed [in, out, k], weight norm worked in."""
    if not spec.normed:
        return weights(f"{spec.name}.weight")
    direction = weights(f"{spec.name}.weight_v")
    folded: torch.Tensor = direction * (weights(f"{spec.name}.weight_g") / direction.norm(dim=(1, 2), keepdim=True))
    return folded


def empty_rows(like: torch.Tensor, num_rows: int, width: int) -> torch.Tensor:
    """Gives an unset matrix of `like`'s dtype and device."""
    return torch.empty(num_rows, width, dtype=like.dtype, device=like.device)


@dataclass
class Line:
    """What a convolution remembers of one clip.

    tail: rows that the next piece looks back at, activated; None before the padding on the left could be made.
    waiting: rows that came before it could.
    """

    tail: torch.Tensor | None = None
    waiting: torch.Tensor | None = None


@dataclass(frozen=True)
class Kit:
    """What all layers are made with: the tensors, the dtype to compute in, the padding and the activation."""

    weights: Weights
    dtype: torch.dtype
    pad_mode: str
    activation: Activation


class Conv:
    """A convolution of stride 1 behind an optional activation."""

    def __init__(self, spec: ConvSpec, kit: Kit, activation: Activation | None, *, owns: bool = False) -> None:
        """owns: the activation may overwrite its input."""
        self.spec, self.activation, self.pad_mode, self.owns = spec, activation, kit.pad_mode, owns
        weight = folded_weight(spec, kit.weights).to(kit.dtype)
        self.bias = kit.weights(f"{spec.name}.bias").to(kit.dtype)
        self.taps = list(weight.permute(2, 1, 0).contiguous())  # k of [in, out]
        self.grouped = _grouped_weights(spec, self.taps) if spec.dilation == 1 else None

    def __call__(self, line: Line, x: torch.Tensor, last: bool) -> torch.Tensor:
        """Gives the rows [m, out] that are final now that `x` [n, in] has come; `last`: nothing follows."""
        if self.spec.span == 0:
            return self._product(self._activated(x), x.shape[0])
        window = self._window(line, x, last)
        num_rows = max(0, window.shape[0] - self.spec.span)
        if line.waiting is None:
            line.tail = window[num_rows:].clone()
        return self._product(window, num_rows)

    def _activated(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation is None:
            return x
        out = x if self.owns else torch.empty_like(x)
        self.activation(x, out)
        return out

    def _window(self, line: Line, x: torch.Tensor, last: bool) -> torch.Tensor:
        """Gives the padded, activated rows to convolve; none while the padding on the left has to wait."""
        left, right = self.spec.left, self.spec.right
        if line.tail is None and self.pad_mode != "constant":
            x = self._activated(x)
            x = x if line.waiting is None else torch.cat([line.waiting, x])
            line.waiting = None
            if last:
                return pad_rows(x, left, right, self.pad_mode)
            if x.shape[0] <= max(left, right):
                line.waiting = x
                return x[:0]
            return pad_rows(x, left, 0, self.pad_mode)
        kept = left if line.tail is None else line.tail.shape[0]
        end = kept + x.shape[0]
        window = empty_rows(x, end + (right if last else 0), self.spec.in_channels)
        window[:kept] = 0 if line.tail is None else line.tail
        if self.activation is None:
            window[kept:end] = x
        else:
            self.activation(x, window[kept:end])
        if last and right:
            window[end:] = _right_pad(window[:end], right, self.pad_mode)
        return window

    def add_to(self, out: torch.Tensor, x: torch.Tensor) -> None:
        """Adds the convolution of `x` [m, in] to `out` [m, out], but for the bias; for kernels of one tap."""
        assert self.spec.span == 0, self.spec
        self._accumulate(self._activated(x), out)

    def _product(self, window: torch.Tensor, num_rows: int) -> torch.Tensor:
        out = empty_rows(window, num_rows, self.spec.out_channels).copy_(self.bias)
        self._accumulate(window, out)
        return out

    def _accumulate(self, window: torch.Tensor, out: torch.Tensor) -> None:
        """Adds the products of `window` to `out`."""
        done, num_rows = 0, out.shape[0]
        if self.grouped is not None:
            done = self._grouped_product(window, out, *self.grouped)
        if done < num_rows:
            for tap, weight in enumerate(self.taps):
                start = done + tap * self.spec.dilation
                out[done:].addmm_(window[start : start + num_rows - done], weight)

    def _grouped_product(self, window: torch.Tensor, out: torch.Tensor, own: torch.Tensor, next_: torch.Tensor) -> int:
        """Adds group by group of rows and gives the number of rows done; see `_grouped_weights`."""
        width, wide = self.spec.in_channels, self.spec.out_channels
        size = own.shape[0] // width
        groups = out.shape[0] // size
        if groups == 0:
            return 0
        done = out[: groups * size].view(groups, size * wide)
        done.addmm_(window[: groups * size].view(groups, size * width), own)
        if self.spec.span:
            following = window.as_strided(
                (groups, self.spec.span * width), (size * width, 1), int(window.storage_offset()) + size * width
            )
            done.addmm_(following, next_)
        return groups * size


def _grouped_weights(spec: ConvSpec, taps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Gives the two matrices that make a group of G output rows out of G input rows and the k - 1 behind them.

    A product with one to sixteen columns leaves most of a vector unit idle; G rows side by side fill it, at the price
    of multiplying by some zeros. None where the rows are wide enough as they are.
    """
    if spec.out_channels >= 16:
        return None
    size = max(spec.kernel - 1, -(-16 // spec.out_channels))
    matrix = taps[0].new_zeros(size + spec.span, spec.in_channels, size, spec.out_channels)
    for row in range(size):
        for tap, weight in enumerate(taps):
            matrix[row + tap, :, row] = weight
    flat = matrix.flatten(2).flatten(0, 1)
    return flat[: size * spec.in_channels].contiguous(), flat[size * spec.in_channels :].contiguous()


def pad_rows(x: torch.Tensor, left: int, right: int, mode: str) -> torch.Tensor:
    """Gives a whole clip [n, C] with padding at its ends, the way audiocraft does it.

    A clip too short to be mirrored is first lengthened by zeros, which are cut off the right end again.
    """
    missing = max(0, max(left, right) - x.shape[0] + 1) if mode == "reflect" else 0
    columns = nn.functional.pad(x.t(), (0, missing))
    padded = nn.functional.pad(columns[None], (left, right), mode)[0].t()
    return padded[: padded.shape[0] - missing].contiguous()


def _right_pad(rows: torch.Tensor, count: int, mode: str) -> torch.Tensor:
    """Gives the `count` rows that follow a clip whose last rows, more than `count`, are `rows`."""
    end = rows.shape[0]
    if mode == "reflect":
        return rows[end - 1 - count : end - 1].flip(0)
    return rows[end - 1 :].expand(count, -1) if mode == "replicate" else torch.zeros_like(rows[:1])


class UpConv:
    """A transposed convolution of kernel 2s and stride s behind an activation."""

    def __init__(self, spec: ConvSpec, kit: Kit) -> None:
        self.spec, self.activation = spec, kit.activation
        weight = folded_weight(spec, kit.weights).to(kit.dtype).permute(0, 2, 1)  # [in, k, out]
        self.now = weight[:, : spec.stride].flatten(1).contiguous()
        self.before = weight[:, spec.stride :].flatten(1).contiguous()
        self.half_sum, self.half_difference = (self.now + self.before) / 2, (self.now - self.before) / 2
        self.bias = kit.weights(f"{spec.name}.bias").to(kit.dtype).repeat(spec.stride)

    def __call__(self, line: Line, x: torch.Tensor, last: bool) -> torch.Tensor:
        """Gives the rows [m, out] that are final now that `x` [n, in] has come; `last`: nothing follows."""
        n, spec = x.shape[0], self.spec
        window = empty_rows(x, 1 + n + last, spec.in_channels)
        window[0] = 0 if line.tail is None else line.tail
        self.activation(x, window[1 : n + 1])
        if last:
            window[n + 1] = 0
        cut_left = spec.left if line.tail is None and n + last else 0
        if n or line.tail is not None:
            line.tail = window[n].clone()
        out = self._product(window).view(-1, spec.out_channels)
        return out[cut_left : out.shape[0] - (spec.right if last else 0)]

    def _product(self, window: torch.Tensor) -> torch.Tensor:
        num_rows = window.shape[0] - 1
        out = empty_rows(window, num_rows, self.now.shape[1])
        rest = num_rows % 3 if num_rows >= FAST_ROWS and window.dtype == torch.float32 else num_rows
        if rest < num_rows:
            self._fast_product(window[: num_rows - rest + 1], out[: num_rows - rest])
        if rest:
            tail = window[num_rows - rest :]
            torch.addmm(self.bias, tail[1:], self.now, out=out[num_rows - rest :])
            out[num_rows - rest :].addmm_(tail[:-1], self.before)
        return out

    def _fast_product(self, window: torch.Tensor, out: torch.Tensor) -> None:
        """Three rows by four products instead of six: Winograd's F(3, 2) with matrices for numbers.

        With d0..d3 rows of the window and out_i = d_i W1 + d_(i+1) W0:
            p = (d1 + d2)(W0 + W1)/2,  q = (d1 - d2)(W0 - W1)/2
            out0 = (d0 - d2) W1 + p + q,  out1 = p - q,  out2 = p + q + (d3 - d1) W0
        """
        d0, d1, d2, d3 = window[:-1:3], window[1::3], window[2::3], window[3::3]
        p = torch.addmm(self.bias, d1 + d2, self.half_sum)
        q = torch.mm(d1 - d2, self.half_difference)
        both = p + q
        torch.sub(p, q, out=out[1::3])
        torch.addmm(both, d0 - d2, self.before, out=out[0::3])
        torch.addmm(both, d3 - d1, self.now, out=out[2::3])
