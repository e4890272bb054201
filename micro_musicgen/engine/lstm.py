"""The recurrent layers of a codec's decoder, for many clips at once.

All frames go through a layer's input matrix together; what is left per frame is one product with the recurrent matrix,
which is read whole for every frame and sets the pace. Its kernel is torch's own, chosen so that a clip's numbers do not
depend on how many clips are in the batch: each row of the product is the same whatever rows are beside it.

The cell is computed with one kind of function, s(x) = 1 / (1 + e^-x), because tanh(x) = 2 s(2x) - 1 and torch's tanh is
four times slower. With a cell C = 2c and hidden values H = h / 2, and the factors of two worked into the weights:

    C = s(f) C + 4 s(i) (s(2g) - 1/2),        H = s(o) (s(C) - 1/2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from micro_musicgen.engine.linear import Int8Linear, PackedLinear, Product, fbgemm_is_there, packing_is_there

Weights = Callable[[str], torch.Tensor]

TINY = torch.finfo(torch.float32).tiny


def fp32_product(weight: torch.Tensor) -> Product:
    """Gives the product with `weight` [N, D] in fp32."""
    if weight.device.type == "cpu" and packing_is_there():
        return PackedLinear(weight, None)
    turned = weight.t().contiguous()
    # One clip at a time: a BLAS takes another path for a single row, which rounds differently.
    return lambda x: torch.cat([torch.mm(row[None], turned) for row in x])


class Recurrence:
    """Adds the product of hidden values and the recurrent matrix to what a frame gives; any kernel of fp32."""

    def __init__(self, product: Product) -> None:
        self.product = product

    def __call__(self, hidden: torch.Tensor, given: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Gives `out` after putting hidden W' + given into it."""
        return torch.add(self.product(hidden), given, out=out)


class Int8Recurrence:
    """The same by `Int8Linear`'s kernel, in five calls a frame instead of seven; rows are scaled to 1 as there.

    Fixed steps, which need no looking for the loudest value, fail for layers that are quiet: 28 dB on untrained ones.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        found = Int8Linear(weight, None)
        self.weight, self.levels = found.weight, found.levels
        self._product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def __call__(self, hidden: torch.Tensor, given: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Gives `out` after putting hidden W' + given into it."""
        loudest = torch.linalg.vector_norm(hidden, torch.inf, 1, True).clamp_min_(TINY)
        found = self._product(hidden / loudest, 1 / self.levels, self.levels + 1, self.weight)
        return torch.addcmul(given, found, loudest, out=out)


@dataclass(frozen=True)
class Gates:
    """A layer's weights as `LstmLayer` wants them: rows of input, forget, output and cell gates, factors worked in."""

    into: torch.Tensor
    back: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def read(cls, weights: Weights, name: str, layer: int) -> Gates:
        """Gives those of `layer`."""

        def ordered(part: str) -> torch.Tensor:
            gate_in, forget, cell, out = weights(f"{name}.{part}_l{layer}").chunk(4)
            return torch.cat([gate_in, forget, out, 2 * cell])

        return cls(ordered("weight_ih"), ordered("weight_hh").mul_(2), ordered("bias_ih") + ordered("bias_hh"))


@dataclass
class LstmState:
    """Hidden values and cell [B, D] of one layer, scaled as the layer likes them."""

    hidden: torch.Tensor
    cell: torch.Tensor


class LstmLayer:
    """One layer."""

    def __init__(self, gates: Gates, kind: str) -> None:
        """kind: see `Lstm`."""
        self.width = gates.into.shape[1]
        self.bias, self.into = gates.bias, gates.into
        self.back = recurrence(gates.back, kind)

    def __call__(self, x: torch.Tensor, state: LstmState) -> torch.Tensor:
        """Gives [n, B, D] of [n, B, D] and moves `state` on."""
        given = x.new_empty(*x.shape[:2], 4 * self.width)
        # Clip by clip: how a BLAS rounds depends on the number of rows.
        for clip, gates in zip(x.unbind(1), given.unbind(1), strict=True):
            torch.addmm(self.bias, clip, self.into.t(), out=gates)
        out = torch.empty_like(x)
        hidden, cell = state.hidden, state.cell
        gates, opened = given.new_empty(x.shape[1], 4 * self.width), torch.empty_like(cell)
        gate_in, forget, gate_out, fresh = gates.chunk(4, dim=1)
        for now, slot in zip(given.unbind(0), out.unbind(0), strict=True):
            self.back(hidden, now, gates).sigmoid_()
            fresh.sub_(0.5)
            cell.mul_(forget).addcmul_(gate_in, fresh, value=4)
            torch.sigmoid(cell, out=opened).sub_(0.5)
            hidden = torch.mul(opened, gate_out, out=slot)
        state.hidden = hidden.clone()
        return out.mul_(2)


def recurrence(weight: torch.Tensor, kind: str) -> Recurrence | Int8Recurrence:
    """Gives the recurrent product with `weight` [N, D]; int8 is fp32 where this CPU has no kernel for it."""
    if kind == "plain":
        return Recurrence(lambda x: torch.mm(x, weight.t()))
    return Int8Recurrence(weight) if kind == "int8" and fbgemm_is_there() else Recurrence(fp32_product(weight))


class Lstm:
    """All layers, and their input added to their output."""

    def __init__(self, gates: Sequence[Gates], kind: str = "fp32") -> None:
        """kind: of the recurrent products' weights: fp32; plain, the same as they are, slow to run and ready at once,
        for one clip; or int8."""
        self.layers = [LstmLayer(layer, kind) for layer in gates]

    @classmethod
    def read(cls, weights: Weights, name: str, num_layers: int, kind: str = "fp32") -> Lstm:
        """Gives the layers of a state dict."""
        return cls([Gates.read(weights, name, layer) for layer in range(num_layers)], kind)

    def start(self, num_clips: int, like: torch.Tensor) -> list[LstmState]:
        """Gives the state of clips that have not begun."""
        zeros = [like.new_zeros(num_clips, layer.width) for layer in self.layers]
        return [LstmState(z, z.clone()) for z in zeros]

    def __call__(self, x: torch.Tensor, states: list[LstmState]) -> torch.Tensor:
        """Gives [B, n, D] of [B, n, D] and moves the states on."""
        # Frames first: what a frame reads and writes is then in one piece for all clips.
        y = x = x.transpose(0, 1).contiguous()
        for layer, state in zip(self.layers, states, strict=True):
            y = layer(y, state)
        return y.add_(x).transpose(0, 1)


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
