"""The recurrent layers of a codec's decoder, for many clips at once.

All frames go through a layer's input matrix together; what is left per frame is one product with the recurrent matrix,
which is read whole for every frame and sets the pace. Its kernel is torch's own, chosen so that a clip's numbers do not
depend on how many clips are in the batch: each row of the product is the same whatever rows are beside it.

The cell is computed with one kind of function, s(x) = 1 / (1 + e^-x), because tanh(x) = 2 s(2x) - 1 and torch's tanh is
four times slower. With a cell C = 2c and hidden values H = h / 2, and the factors of two worked into the weights:

    C = s(f) C + 4 s(i) (s(2g) - 1/2),        H = s(o) (s(C) - 1/2)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from micro_musicgen.engine.linear import Int8Linear, PackedLinear, Product, fbgemm_is_there, packing_is_there

Weights = Callable[[str], torch.Tensor]


def fp32_product(weight: torch.Tensor) -> Product:
    """Gives the product with `weight` [N, D] in fp32."""
    if weight.device.type == "cpu" and packing_is_there():
        return PackedLinear(weight, None)
    turned = weight.t().contiguous()
    # One clip at a time: a BLAS takes another path for a single row, which rounds differently.
    return lambda x: torch.cat([torch.mm(row[None], turned) for row in x])


def int8_product(weight: torch.Tensor) -> Product:
    """Gives the product with `weight` [N, D] in 8 bits where this CPU has the kernel, else in fp32."""
    return Int8Linear(weight, None) if fbgemm_is_there() else fp32_product(weight)


@dataclass
class LstmState:
    """Hidden values and cell [B, D] of one layer, scaled as the layer likes them."""

    hidden: torch.Tensor
    cell: torch.Tensor


class LstmLayer:
    """One layer."""

    def __init__(self, weights: Weights, name: str, layer: int, kind: str) -> None:
        def ordered(part: str) -> torch.Tensor:
            """Gives the rows of input, forget, output and cell gates, the last doubled for its tanh."""
            gate_in, forget, cell, out = weights(f"{name}.{part}_l{layer}").chunk(4)
            return torch.cat([gate_in, forget, out, 2 * cell])

        self.bias = ordered("bias_ih") + ordered("bias_hh")
        into, back = ordered("weight_ih"), ordered("weight_hh")
        self.width = into.shape[1]
        self.into = into.t().contiguous()
        self.back = int8_product(2 * back) if kind == "int8" else fp32_product(2 * back)

    def __call__(self, x: torch.Tensor, state: LstmState) -> torch.Tensor:
        """Gives [B, n, D] of [B, n, D] and moves `state` on."""
        given = torch.stack([torch.addmm(self.bias, clip, self.into) for clip in x])
        out = torch.empty_like(x)
        hidden, cell = state.hidden, state.cell
        gates, opened = given.new_empty(x.shape[0], 4 * self.width), torch.empty_like(cell)
        gate_in, forget, gate_out, fresh = gates.chunk(4, dim=1)
        for now, slot in zip(given.unbind(1), out.unbind(1), strict=True):
            torch.add(self.back(hidden), now, out=gates).sigmoid_()
            fresh.sub_(0.5)
            cell.mul_(forget).addcmul_(gate_in, fresh, value=4)
            torch.sigmoid(cell, out=opened).sub_(0.5)
            torch.mul(opened, gate_out, out=hidden)
            slot.copy_(hidden)
        return out.mul_(2)


class Lstm:
    """All layers, and their input added to their output."""

    def __init__(self, weights: Weights, name: str, num_layers: int, kind: str = "fp32") -> None:
        """kind: of the recurrent products' weights, fp32 or int8."""
        self.layers = [LstmLayer(weights, name, layer, kind) for layer in range(num_layers)]

    def start(self, num_clips: int, like: torch.Tensor) -> list[LstmState]:
        """Gives the state of clips that have not begun."""
        zeros = [like.new_zeros(num_clips, layer.width) for layer in self.layers]
        return [LstmState(z, z.clone()) for z in zeros]

    def __call__(self, x: torch.Tensor, states: list[LstmState]) -> torch.Tensor:
        """Gives [B, n, D] of [B, n, D] and moves the states on."""
        y = x
        for layer, state in zip(self.layers, states, strict=True):
            y = layer(y, state)
        return y.add_(x)


class DeviceLstm:
    """The same on a device whose library runs all frames of all layers in one call, cuDNN above all."""

    def __init__(self, weights: Weights, name: str, num_layers: int) -> None:
        self.width = weights(f"{name}.weight_hh_l0").shape[1]
        self.module = torch.nn.LSTM(self.width, self.width, num_layers, batch_first=True, device="meta")
        state = {key: weights(f"{name}.{key}").clone() for key in self.module.state_dict()}
        self.module.load_state_dict(state, assign=True)
        self.module.requires_grad_(False).flatten_parameters()

    def start(self, num_clips: int, like: torch.Tensor) -> list[LstmState]:
        """Gives the state of clips that have not begun, of all layers at once."""
        zeros = like.new_zeros(self.module.num_layers, num_clips, self.width)
        return [LstmState(zeros, zeros.clone())]

    def __call__(self, x: torch.Tensor, states: list[LstmState]) -> torch.Tensor:
        """Gives [B, n, D] of [B, n, D] and moves the states on."""
        (state,) = states
        y: torch.Tensor
        y, (state.hidden, state.cell) = self.module(x, (state.hidden, state.cell))
        return x + y
