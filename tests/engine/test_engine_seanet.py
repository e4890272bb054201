"""The decoder's layers against torch's own convolutions and recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from micro_musicgen.engine import convolution, lstm
from micro_musicgen.engine.activation import Activation
from micro_musicgen.engine.convolution import Conv, Kit, Line, UpConv, pad_rows
from micro_musicgen.engine.decoder_spec import ConvSpec
from micro_musicgen.engine.lstm import Lstm, recurrence

Layer = Callable[[Line, torch.Tensor, bool], torch.Tensor]


def kit(module: nn.Module, mode: str = "constant", name: str = "Identity", **params: Any) -> Kit:
    return Kit(lambda key: module.state_dict()[key[2:]], torch.float32, mode, Activation(name, params, source=""))


def pieces(layer: Layer, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """What `layer` makes of `x` in pieces of the given sizes and a last one."""
    line, done = Line(), 0
    out = []
    for size in sizes:
        out.append(layer(line, x[done : done + size], False))
        done += size
    return torch.cat([*out, layer(line, x[done:], True)])


@pytest.mark.parametrize(("channels_in", "channels_out"), [(64, 32), (64, 1), (5, 3), (8, 8), (70, 2)])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 4), (7, 1), (1, 1), (2, 1)])
def test_a_convolution_in_pieces_is_torchs(channels_in: int, channels_out: int, kernel: int, dilation: int) -> None:
    torch.manual_seed(0)
    module = nn.Conv1d(channels_in, channels_out, kernel, dilation=dilation)
    total = (kernel - 1) * dilation
    spec = ConvSpec("m", channels_in, channels_out, kernel, dilation, total - total // 2, total // 2, False)
    x = torch.randn(331, channels_in)
    with torch.no_grad():
        padded = nn.functional.pad(nn.functional.elu(x).t(), (spec.left, spec.right))
        want = module(padded[None])[0].t()
        layer = Conv(spec, kit(module), Activation("ELU", {}, source=""))
        for sizes in ([], [1, 0, 200], [2, 3, 5, 7, 100, 101]):
            found = pieces(layer, x, sizes)
            assert found.shape == want.shape and (found - want).abs().max() < 5e-6


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_a_transposed_convolution_in_pieces_is_torchs(stride: int) -> None:
    torch.manual_seed(0)
    module = nn.ConvTranspose1d(6, 4, 2 * stride, stride)
    right = stride // 2
    spec = ConvSpec("m", 6, 4, 2 * stride, 1, stride - right, right, False, transposed=True)
    x = torch.randn(400, 6)
    with torch.no_grad():
        whole = module(x.t()[None])[0].t()
        want = whole[spec.left : whole.shape[0] - spec.right]
        for sizes in ([], [1, 0, 97], [98, 99, 101]):
            found = pieces(UpConv(spec, kit(module)), x, sizes)
            assert found.shape == want.shape and (found - want).abs().max() < 5e-6


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_other_padding_waits_for_what_it_needs(mode: str, length: int) -> None:
    module = nn.Conv1d(3, 3, 7)
    spec = ConvSpec("m", 3, 3, 7, 1, 3, 3, False)
    x = torch.randn(length, 3, generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        want = module(pad_rows(x, 3, 3, mode).t()[None])[0].t()
        for sizes in ([], [0], [1] * (length - 1)):
            assert (pieces(Conv(spec, kit(module, mode), None), x, sizes) - want).abs().max() < 1e-6


def test_padding_of_a_clip_too_short_to_mirror() -> None:
    """Zeros lengthen it on the right, are mirrored like sound, and are cut off again."""
    x = torch.tensor([[1.0], [2.0]])
    assert pad_rows(x, 3, 3, "reflect")[:, 0].tolist() == [0, 0, 2, 1, 2, 0, 0, 0]


def test_elu_is_exact_to_a_rounding_error_in_and_out_of_place() -> None:
    x = torch.cat([torch.linspace(-120, 120, 10001), torch.tensor([0.0, -1e-8, 1e-8, 3e38, -3e38])])
    out = torch.empty_like(x)
    activation = Activation("ELU", {"alpha": 1.0}, source="")
    activation(x, out)
    assert torch.equal(out[x > 0], x[x > 0]) and (out - nn.functional.elu(x)).abs().max() <= 2.4e-7
    again = x.clone()
    activation(again, again)
    assert torch.equal(again, out)


def weights_of(module: nn.Module) -> Callable[[str], torch.Tensor]:
    state = module.state_dict()
    return lambda name: state[name.removeprefix("x.")]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_recurrent_layers_are_torchs_and_carry_their_state(num_layers: int) -> None:
    torch.manual_seed(0)
    module = nn.LSTM(24, 24, num_layers, batch_first=True)
    x = 2 * torch.randn(3, 50, 24)
    with torch.no_grad():
        want = module(x)[0] + x
        layers = Lstm.read(weights_of(module), "x", num_layers)
        state = layers.start(3, x)
        found = torch.cat([layers(part, state) for part in (x[:, :1], x[:, 1:20], x[:, 20:])], dim=1)
        assert (found - want).abs().max() < 2e-6
        other = lstm.DeviceLstm(weights_of(module), "x", num_layers)
        state = other.start(3, x)
        found = torch.cat([other(part, state) for part in (x[:, :7], x[:, 7:])], dim=1)
        assert (found - want).abs().max() < 2e-6


@pytest.mark.parametrize("kind", ["fp32", "int8"])
@pytest.mark.parametrize("packed", [True, False])
def test_rows_of_a_product_do_not_depend_on_the_batch(kind: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        monkeypatch.setattr(lstm, "packing_is_there", lambda: False)
        monkeypatch.setattr(lstm, "fbgemm_is_there", lambda: False)
    torch.manual_seed(0)
    weight, x = torch.randn(512, 128) / 10, torch.rand(20, 128) - 0.5
    layer, given = recurrence(weight, kind), torch.zeros(20, 512)

    def product(rows: torch.Tensor) -> torch.Tensor:
        return layer(rows, given[: len(rows)], torch.empty(len(rows), 512))

    whole = product(x)
    error = (whole - x @ weight.t()).abs().max() / (x @ weight.t()).std()
    assert error < {"fp32": 1e-5, "int8": 0.08}[kind]
    for count in range(1, 20):
        for first in (0, 1, 20 - count):
            assert torch.equal(product(x[first : first + count].contiguous()), whole[first : first + count])


@pytest.mark.parametrize("kind", ["fp32", "plain", "int8"])
def test_what_a_frame_gives_is_added(kind: str) -> None:
    torch.manual_seed(0)
    weight, x, given = torch.randn(64, 16), torch.rand(1, 16) - 0.5, torch.randn(1, 64)
    out = torch.empty(1, 64)
    assert recurrence(weight, kind)(x, given, out) is out
    assert (out - given - x @ weight.t()).abs().max() < {"fp32": 1e-5, "plain": 1e-5, "int8": 0.1}[kind]


def test_a_matrix_row_of_zeros_survives_eight_bits() -> None:
    given, out = torch.zeros(2, 16), torch.empty(2, 16)
    assert torch.equal(recurrence(torch.zeros(16, 16), "int8")(torch.rand(2, 16) - 0.5, given, out), given)
    assert torch.equal(recurrence(torch.ones(16, 16), "int8")(torch.zeros(2, 16), given, out), given)


def test_fast_products_are_the_ones_under_test() -> None:
    """The sizes above reach fewer products and grouped rows."""
    assert convolution.FAST_ROWS < 331
    narrow = ConvSpec("m", 64, 1, 7, 1, 3, 3, False)
    assert Conv(narrow, kit(nn.Conv1d(64, 1, 7)), None).grouped is not None
