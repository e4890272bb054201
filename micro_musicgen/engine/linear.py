"""Matrix products of the language model's step, in each precision, by torch's own kernels.

The promise behind all of them on a CPU: a row of the output depends on its row of the input and on nothing else, bit
for bit, whatever else is in the batch. Plain `F.linear` breaks it: MKL takes other kernels, with another order of
summation, for 1, 2, 3 rows than for 4. What keeps it (measured, bench/NOTES.md; tested wherever the tests run):
- rows in blocks of 4, or of multiples that this machine was seen to give the same sums for (`RowBlocks`);
- oneDNN with weights packed once, for any number of rows; at 10 rows also three times as fast as MKL on an AMD;
- FBGEMM's int8: sums of integers are exact, and activations are scaled row by row.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Protocol

import torch

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ROW_MULTIPLE = 4
"""Rows of a step come in multiples of this where a matrix of the network needs it."""
BLOCK_SIZES = (4, 8, 12, 16, 20, 24)
PACKED_FROM = 1 << 17
"""Weights of a matrix above which packed fp32 and fp16 are faster than MKL on four rows; see bench/NOTES.md."""
INT8_FROM = 1 << 22
"""Weights of a matrix from which on int8 gains more than scaling the activations costs."""
ALL_INT8_FROM = 1 << 18
"""The same where no matrix of the network has fewer: all in int8, a single clip needs no rows beside its own."""

LEAST_SCALE = 2.0**-100
"""Of a row of activations, for the kernel to scale it: below, numbers of fp32 run out."""
EXPONENT_BITS = 0x7F800000
"""Of an fp32 number."""

Product = Callable[[torch.Tensor], torch.Tensor]
"""x [M, in] -> [M, out]."""
plain_product = torch._C._nn.linear  # F.linear without its detour through Python


class Linear(Protocol):
    """x [M, in] -> [M, out] in x's dtype.

    takes_any_rows: on a CPU rows are independent for any M; else for multiples of ROW_MULTIPLE.
    """

    num_bytes: int
    takes_any_rows: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives the product, a new tensor."""


class RowBlocks:
    """Calls a product with numbers of rows only for which it gives a row the same result as among four.

    Which these are is tried out once per shape and number of threads on this machine, when first needed: a small
    network is loaded with all threads and run with one. More rows than the largest go in several calls.
    """

    def __init__(self, product: Product, in_features: int, key: tuple[str, int, int]) -> None:
        self.product = product
        self.in_features = in_features
        self.key = key
        self.seen: set[tuple[int, int]] = set()

    def fit(self, x: torch.Tensor) -> bool:
        """Whether x [M, in] may be computed at once; asked by every product of every step, hence remembered."""
        asked = (x.shape[0], torch.get_num_threads())
        if asked in self.seen:
            return True
        if asked[0] in self.sizes or asked[0] < ROW_MULTIPLE:
            self.seen.add(asked)
            return True
        return False

    @property
    def sizes(self) -> frozenset[int]:
        """Numbers of rows that may be computed at once with the present number of threads."""
        return _equal_sizes(self.product, self.in_features, self.key)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives the product of x [M, in]; what is left over after the last block goes as one more call."""
        if self.fit(x):
            return self.product(x)
        rows, sizes = len(x), self.sizes
        parts, done = [], 0
        while done < rows:
            size = max((size for size in sizes if size <= rows - done), default=rows - done)
            parts.append(self.product(x[done : done + size]))
            done += size
        return torch.cat(parts)


_known_sizes: dict[tuple[str, int, int, int], frozenset[int]] = {}


def _equal_sizes(product: Product, in_features: int, key: tuple[str, int, int]) -> frozenset[int]:
    """Gives the block sizes that agree with blocks of four, bit for bit; tried once per kind of kernel and shape."""
    full = (*key, torch.get_num_threads())
    if full not in _known_sizes:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(max(BLOCK_SIZES), in_features, generator=generator)
        wanted = torch.cat([product(x[row : row + 4].clone()) for row in range(0, len(x), 4)])
        same = [size for size in BLOCK_SIZES if torch.equal(product(x[:size].clone()), wanted[:size])]
        _known_sizes[full] = frozenset({ROW_MULTIPLE, *same})
    return _known_sizes[full]


class PlainLinear:
    """torch's own, for small matrices and for GPUs."""

    takes_any_rows = False

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight.contiguous()
        self.bias = bias
        self.num_bytes = weight.numel() * weight.element_size()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x W' + b."""
        found: torch.Tensor = plain_product(x, self.weight, self.bias)
        return found


class SmallLinear(PlainLinear):
    """torch's own on a CPU, in blocks of rows."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._blocks = RowBlocks(super().__call__, weight.shape[1], ("plain", *weight.shape))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x W' + b."""
        if self._blocks.fit(x):
            found: torch.Tensor = plain_product(x, self.weight, self.bias)
            return found
        return self._blocks(x)


class Fp16Linear:
    """fp16 weights, fp32 activations and sums: half the bytes, and no error to speak of (FBGEMM)."""

    takes_any_rows = False

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)
        self.num_bytes = 2 * weight.numel()
        self._operator = torch.ops.quantized.linear_dynamic_fp16.default
        self._blocks = RowBlocks(self._product, weight.shape[1], ("fp16", *weight.shape))

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._operator(x, self.weight)
        return found

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x W' + b."""
        return self._product(x) if self._blocks.fit(x) else self._blocks(x)


class HalfLinear:
    """bfloat16 weights and products under fp32 activations, for CPUs that have units for it."""

    takes_any_rows = False

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight.to(torch.bfloat16)
        self.bias = bias
        self.num_bytes = 2 * weight.numel()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x W' + b, the sum rounded to bfloat16."""
        y: torch.Tensor = plain_product(x.to(torch.bfloat16), self.weight).to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)


class PackedLinear:
    """fp32 through oneDNN, the weights in its own layout."""

    HINT_ROWS = 10
    """The number of rows that the layout is chosen for. 1 would be 15 % faster for one row, half as fast for 10."""

    takes_any_rows = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), self.HINT_ROWS)
        self.bias = bias
        self.num_bytes = 4 * weight.numel()
        self._product = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x W' + b."""
        found: torch.Tensor = self._product(x, self.weight, self.bias, "none", [], "")
        return found


class Int8Linear:
    """8-bit weights, scaled by output; activations rounded on the fly, scaled by row; sums in 32-bit integers.

    Without VNNI the CPU adds two products in 16 bits, which must not overflow: activations then have 7 bits.
    by_powers: rows are scaled by powers of two, at a cost of up to one of these bits. Such scales commute with every
    rounding, so that a row alone can leave its scaling to the kernel, in three calls less, and keeps all its bits.
    """

    takes_any_rows = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, by_powers: bool = False) -> None:
        scale = weight.abs().amax(1).clamp_(min=torch.finfo(torch.float32).tiny) / 127
        rounded = (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        with warnings.catch_warnings():
            # The tensor type is on its way out of torch, the kernels are not yet; see `fbgemm_is_there`.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
            quantised = torch._make_per_channel_quantized_tensor(rounded, scale.double(), zeros, 0)
            self.weight = torch.ops.quantized.linear_prepack(quantised, None)
        self.bias = bias
        self.num_bytes = weight.numel()
        self.levels = 127 if has_vnni() else 63
        self.by_powers = by_powers
        self._product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x W' + b."""
        y = self._one_row(x) if self.by_powers and x.shape[0] == 1 else self._rows(x)
        return y if self.bias is None else y.add_(self.bias)

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True)
        if self.by_powers:
            # The exponent's bits alone: the power of two at or below the number, infinite for what is not finite. It is
            # 0 for silence, which then multiplies whatever the kernel makes of it.
            scale = scale.view(torch.int32).bitwise_and_(EXPONENT_BITS).view(torch.float32)
            step = 2 / self.levels
        else:
            scale.clamp_(min=torch.finfo(torch.float32).tiny)
            step = 1 / self.levels
        y: torch.Tensor = self._product(x / scale, step, self.levels + 1, self.weight)
        return y.mul_(scale)

    def _one_row(self, x: torch.Tensor) -> torch.Tensor:
        """Gives what `_rows` gives, bit for bit."""
        low, high = x.aminmax()
        loudest = max(high.item(), -low.item())
        if not LEAST_SCALE < loudest < math.inf:
            return self._rows(x)
        step = math.ldexp(1 / self.levels, math.frexp(loudest)[1])
        y: torch.Tensor = self._product(x, step, self.levels + 1, self.weight)
        return y


def has_vnni() -> bool:
    """Whether this CPU multiplies bytes and sums them in 32 bits in one go."""
    return bool(torch.cpu._is_vnni_supported()) if hasattr(torch.cpu, "_is_vnni_supported") else False


def has_bf16() -> bool:
    """Whether this CPU has units for bfloat16; without, it is slower than fp32 for all but a single row."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in names if hasattr(torch.cpu, name))


def fbgemm_is_there() -> bool:
    """Whether this torch has FBGEMM's int8 and fp16 kernels for this CPU."""
    wanted = ("linear_with_input_q_dq_qweight_dq_output_fp32", "linear_dynamic_fp16", "linear_prepack_fp16")
    return (
        "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch, "_make_per_channel_quantized_tensor")
        and all(hasattr(torch.ops.quantized, name) for name in wanted)
    )


@functools.cache
def packing_is_there() -> bool:
    """Whether this torch lets oneDNN keep weights in its own layout."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def make_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    precision: str,
    *,
    plain: bool = False,
    all_large: bool = False,
) -> Linear:
    """Gives the kernel for a matrix [out, in] (fp32, on its device) in `precision`.

    A precision is the least that is used: int8 takes large matrices only, fp16 those of some size, since calling the
    special kernels costs more than they gain on small ones. plain: torch's own kernels only, which torch.compile and
    CUDA graphs can look into. all_large: every matrix of the network has ALL_INT8_FROM weights.
    """
    assert precision in PRECISIONS, precision
    if plain or weight.device.type != "cpu":
        half = precision == "bf16"
        return PlainLinear(weight.to(torch.bfloat16) if half else weight, _like(bias, half))
    if precision == "bf16":
        return HalfLinear(weight, bias)
    if precision == "int8" and weight.numel() >= (ALL_INT8_FROM if all_large else INT8_FROM):
        return Int8Linear(weight, bias, by_powers=True)
    if weight.numel() > PACKED_FROM:
        if precision in ("fp16", "int8"):
            return Fp16Linear(weight, bias)
        if packing_is_there():
            return PackedLinear(weight, bias)
    return SmallLinear(weight, bias)


def _like(bias: torch.Tensor | None, half: bool) -> torch.Tensor | None:
    return bias.to(torch.bfloat16) if half and bias is not None else bias
