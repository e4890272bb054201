"""Kernels: right within their precision, and a row's result its own whatever stands beside it."""

from __future__ import annotations

import pytest
import torch

from micro_musicgen.engine import linear
from micro_musicgen.engine.linear import (
    Fp16Linear,
    HalfLinear,
    Int8Linear,
    PackedLinear,
    PlainLinear,
    RowBlocks,
    SmallLinear,
    make_linear,
)

KINDS = {
    PlainLinear: 1e-5,
    SmallLinear: 1e-5,
    PackedLinear: 1e-5,
    Fp16Linear: 2e-3,
    HalfLinear: 2e-2,
    Int8Linear: 3e-2,
}


def weight(out_features: int = 96, in_features: int = 160) -> torch.Tensor:
    return torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0)) / in_features**0.5


def rows(count: int, width: int = 160) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_right(kind: type, biased: bool) -> None:
    matrix, x = weight(), rows(8)
    bias = torch.linspace(-1, 1, 96) if biased else None
    wanted = torch.nn.functional.linear(x.double(), matrix.double(), None if bias is None else bias.double())
    found = kind(matrix, bias)(x)
    assert found.dtype == torch.float32
    error = float((found - wanted).norm() / wanted.norm())
    assert error < KINDS[kind], error


@pytest.mark.parametrize("kind", [SmallLinear, PackedLinear, Fp16Linear, Int8Linear])
@pytest.mark.parametrize("shape", [(96, 160), (48, 32), (1024, 256), (512, 2048)])
def test_a_row_is_its_own(kind: type, shape: tuple[int, int]) -> None:
    """In batches of any multiple of four, at any place, also where the matrix is large enough for threads."""
    product, x = kind(weight(*shape), None), rows(64, shape[1])
    wanted = torch.cat([product(x[row : row + 4].clone()) for row in range(0, 64, 4)])
    for count in (4, 8, 12, 16, 20, 24, 28, 32, 40, 52, 64):
        for first in (0, 4, 12):
            if first + count <= 64:
                found = product(x[first : first + count].clone())
                assert torch.equal(found, wanted[first : first + count]), (count, first)
    turned = product(x.flip(0))
    assert torch.equal(turned.flip(0), wanted)


def test_blocks_go_by_the_sizes_that_agree() -> None:
    """A product whose sums depend on the number of rows is called with the ones that don't show it."""
    calls: list[int] = []

    def moody(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x * (1 if len(x) in (4, 12) else 1 + 1e-6)

    blocks = RowBlocks(moody, 16, ("moody", 16, 16))
    assert blocks.sizes == {4, 12}
    calls.clear()
    x = rows(36, 16)
    assert torch.equal(blocks(x), x) and calls == [12, 12, 12]
    calls.clear()
    assert torch.equal(blocks(x[:20]), x[:20]) and calls == [12, 4, 4]
    calls.clear()
    assert len(blocks(x[:3])) == 3 and calls == [3]


def test_zeros_and_silence_survive_quantising() -> None:
    matrix = weight()
    matrix[3] = 0
    x = rows(4)
    x[1] = 0
    found = Int8Linear(matrix, None)(x)
    assert bool((found[1] == 0).all()) and bool((found[:, 3] == 0).all()) and found.isfinite().all()


def test_a_row_alone_keeps_its_bits_in_int8() -> None:
    """Scaled by powers of two, the kernel's own scaling of one row gives what scaling many rows by hand gives."""
    matrix, x = weight(96, 512), rows(12, 512)
    x *= torch.logspace(-35, 30, 12)[:, None]
    x[4], x[5], x[6, 0] = 0, x[5] / x[5].abs().max(), -torch.inf
    x[7, 0] = torch.nan
    product = Int8Linear(matrix, torch.linspace(-1, 1, 96), by_powers=True)
    together = product(x)
    for row in range(12):
        torch.testing.assert_close(product(x[row : row + 1]), together[row : row + 1], rtol=0, atol=0, equal_nan=True)
    assert not together[6:8].isfinite().any() and torch.equal(together[4], torch.linspace(-1, 1, 96))


def test_a_network_of_large_matrices_is_all_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a one needs no rows beside its own; one smaller matrix, and steps come in fours."""
    monkeypatch.setattr(linear, "PACKED_FROM", 100)
    monkeypatch.setattr(linear, "ALL_INT8_FROM", 1000)
    assert type(make_linear(weight(64, 64), None, "int8", all_large=True)) is Int8Linear
    assert type(make_linear(weight(64, 64), None, "int8")) is Fp16Linear
    assert Int8Linear.takes_any_rows and PackedLinear.takes_any_rows
    assert not (SmallLinear.takes_any_rows or Fp16Linear.takes_any_rows or HalfLinear.takes_any_rows)


def test_each_matrix_gets_what_its_size_gains_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "PACKED_FROM", 100)
    monkeypatch.setattr(linear, "INT8_FROM", 1000)
    small, middle, large = weight(8, 8), weight(16, 16), weight(64, 64)
    kinds = {
        precision: [type(make_linear(matrix, None, precision)) for matrix in (small, middle, large)]
        for precision in ("fp32", "fp16", "bf16", "int8")
    }
    assert kinds == {
        "fp32": [SmallLinear, PackedLinear, PackedLinear],
        "fp16": [SmallLinear, Fp16Linear, Fp16Linear],
        "bf16": [HalfLinear, HalfLinear, HalfLinear],
        "int8": [SmallLinear, Fp16Linear, Int8Linear],
    }
    assert type(make_linear(large, None, "fp32", plain=True)) is PlainLinear
    monkeypatch.setattr(linear, "packing_is_there", lambda: False)
    assert type(make_linear(large, None, "fp32")) is SmallLinear
