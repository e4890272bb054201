"""What the machine allows at best: rates measured in the same run, and the steps per second that follow from them.

A step of generation reads every weight once and multiplies it with each row of the batch. So it takes at least
bytes / (read rate) and at least operations / (GEMM rate); the greater of the two binds. Weights that fit into a cache
are read faster than memory allows: the read rate is measured over sizes, and taken at the size of the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micro_musicgen.contracts import LMSpec

READ_MB = (1, 2, 4, 8, 16, 32, 64, 128, 512)
"""Buffer sizes of the read rate, 10^6 bytes."""
GEMM_SIZE = 1024
WIDENS_TO = {"fp32": ("fp32",), "fp16": ("fp32",), "bf16": ("bf16", "fp32"), "int8": ("int8", "bf16", "fp32")}
BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0}


@dataclass(frozen=True)
class StepCost:
    """What one step must at least move and compute. bytes: weights in one precision, keys and values in fp32."""

    bytes: float
    operations: float


@dataclass(frozen=True)
class StepLimit:
    """Steps per second that the machine allows. binds: "bytes" or "FLOPs", whichever allows less."""

    by_bytes: float
    by_operations: float | None

    @property
    def steps_per_s(self) -> float:
        """Gives the lesser."""
        return self.by_bytes if self.by_operations is None else min(self.by_bytes, self.by_operations)

    @property
    def binds(self) -> str:
        """Says which of the two it is."""
        return "bytes" if self.steps_per_s == self.by_bytes else "FLOPs"


def step_cost(shape: LMSpec, *, precision: str, rows: int, num_steps: int, condition_length: int = 0) -> StepCost:
    """Gives the cost of a step in the middle of a clip of `num_steps`. rows: of the batch, both guidance branches."""
    d, layers = shape.dim, shape.num_layers
    linear = layers * (4 * d * d + 2 * d * shape.ffn_dim) + shape.num_codebooks * d * shape.card
    if shape.conditioning == "cross":
        linear += layers * 2 * d * d  # keys and values of the condition are made once a clip
    positions = num_steps / 2 + condition_length
    cached = rows * layers * 2 * d * positions  # keys and values
    return StepCost(
        bytes=BYTES_PER_WEIGHT[precision] * linear + 4 * cached,
        operations=rows * 2 * linear + 2 * cached,
    )


def step_limit(cost: StepCost, rates: Mapping[str, Any], precision: str) -> StepLimit:
    """Gives the limit on a machine with `rates`, as `measure_rates` gives them.

    A narrow weight may be widened and multiplied in a wider form where that is faster, as on CPUs without bf16 units.
    """
    usable = WIDENS_TO[precision]
    gemm = max((rates["gemm"][form] for form in usable if rates["gemm"].get(form)), default=None)
    by_operations = None if gemm is None else gemm / cost.operations
    return StepLimit(read_rate(rates, cost.bytes) / cost.bytes, by_operations)


def read_rate(rates: Mapping[str, Any], size: float) -> float:
    """Gives bytes per second at which a buffer of `size` bytes is read over and over, between the measured sizes."""
    points = sorted((float(mb) * 1e6, float(rate)) for mb, rate in rates["read"].items())
    # A part is never read slower than the whole: where it was, something else had the machine.
    points = [(mb, max(rate for _, rate in points[index:])) for index, (mb, _) in enumerate(points)]
    if size <= points[0][0]:
        return points[0][1]
    for (low, low_rate), (high, high_rate) in zip(points, points[1:], strict=False):
        if size <= high:
            share = math.log(size / low) / math.log(high / low)
            return low_rate + share * (high_rate - low_rate)
    return points[-1][1]


def fastest(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the better of two measurements of one machine, rate by rate: of a limit, the higher is the truer."""

    def better(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
        return {key: max((x for x in (one[key], other[key]) if x), default=None) for key in one}

    return {
        "read": better(first["read"], second["read"]),
        "copy": max(first["copy"], second["copy"]),
        "gemm": better(first["gemm"], second["gemm"]),
        "gpu": first["gpu"],
    }


def measure_rates(device: str) -> dict[str, Any]:
    """Gives {"read": {MB: bytes/s}, "copy": bytes/s, "gemm": {precision: operations/s}, "gpu": its name or None}."""
    import torch

    def timed(work: Callable[[], Any], least_s: float = 0.3, least_calls: int = 3) -> float:
        """Gives the seconds of the fastest of several calls: a limit is what is possible, not what is usual."""
        work()
        best, calls, began = math.inf, 0, time.perf_counter()
        while time.perf_counter() - began < least_s or calls < least_calls:
            calls += 1
            start = time.perf_counter()
            work()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
        return best

    buffer = torch.ones(READ_MB[-1] * 250_000, device=device)
    read = {}
    for mb in READ_MB:
        part = buffer[: mb * 250_000]
        read[str(mb)] = mb * 1e6 / timed(part.sum)
    half = len(buffer) // 2
    copy = 2 * half * 4 / timed(lambda: buffer[:half].copy_(buffer[half : 2 * half]))
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {"read": read, "copy": copy, "gemm": _gemm_rates(device, timed), "gpu": gpu}


def _gemm_rates(device: str, timed: Callable[[Callable[[], Any]], float]) -> dict[str, float | None]:
    import torch

    a = torch.randn(GEMM_SIZE, GEMM_SIZE, device=device)
    b = torch.randn(GEMM_SIZE, GEMM_SIZE, device=device)
    operations = 2.0 * GEMM_SIZE**3
    rates: dict[str, float | None] = {"fp32": operations / timed(lambda: a @ b)}
    a16, b16 = a.bfloat16(), b.bfloat16()
    rates["bf16"] = operations / timed(lambda: a16 @ b16)
    rates["int8"] = _int8_rate(a, b, operations, timed)
    return rates


def _int8_rate(a: Any, b: Any, operations: float, timed: Callable[[Callable[[], Any]], float]) -> float | None:
    """Gives the int8 rate of torch's own kernels; None where this build has none for the device."""
    import torch

    try:
        if a.is_cuda:
            a8, b8 = (x.clamp(-1, 1).mul(100).to(torch.int8) for x in (a, b.t().contiguous().t()))
            return operations / timed(lambda: torch._int_mm(a8, b8))
        quantised = torch.quantize_per_tensor(b, 0.05, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantised, None)
        return operations / timed(lambda: torch.ops.quantized.linear_dynamic(a, packed, True))
    except (RuntimeError, AttributeError, NotImplementedError):
        return None
