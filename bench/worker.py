"""The process in which one engine holds one model: it is told over a pipe to do one thing at a time, and how long it
took goes back. Times are taken here, so that the pipe costs nothing.

First line in: {"engine", "folder", "device", "precision"}. Every further line: {"do": NAME, ...}, see `Bench`. Every
line out: a JSON object, with "error" when the thing could not be done. The process ends when its input does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from serving import serve_stdin


def peak_mb() -> float | None:
    """Gives the most memory that this process has held, in 10^6 bytes; None where the system can't say.

    Linux's VmHWM, because ru_maxrss of a child begins at what its parent held.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class Bench:
    """What a worker can be told to do. Invariant: the device is idle when a method begins and when it ends."""

    def __init__(self, engine: str, folder: str, device: str, precision: str) -> None:
        from peers import ENGINES, synchronise

        began = time.perf_counter()
        self.engine = ENGINES[engine](Path(folder), device=device, precision=precision)
        synchronise(device)
        self.load_s = time.perf_counter() - began
        self.device = device
        self._codes: dict[tuple[int, float], Any] = {}

    def codes(self, batch: int, duration_s: float, guidance: float | None = None) -> dict[str, Any]:
        """The LM alone."""
        return self._timed(lambda: self.engine.codes(batch, duration_s, guidance=guidance))

    def decode(self, batch: int, duration_s: float) -> dict[str, Any]:
        """The codec alone, on codes drawn once at random; the same codes in every engine."""
        codes = self._random_codes(batch, duration_s)
        return self._timed(lambda: self.engine.decode(codes))

    def job(self, batch: int, duration_s: float) -> dict[str, Any]:
        """Codes and audio."""
        return self._timed(lambda: self.engine.decode(self.engine.codes(batch, duration_s)))

    def first_chunk(self, duration_s: float, chunk_s: float) -> dict[str, Any]:
        """From the call to the first audio in hand."""
        return self._timed(lambda: self.engine.first_chunk(duration_s, chunk_s))

    def score(self, codes_file: str) -> dict[str, Any]:
        """Cross-entropy of held-out codes [B, K, T], mean nat a code."""
        import torch

        codes = torch.load(codes_file, weights_only=True)
        return {"value": self.engine.score(codes)}

    def rates(self) -> dict[str, Any]:
        """What the machine can do at best: see limits.measure_rates."""
        from limits import measure_rates

        return measure_rates(self.device)

    def _random_codes(self, batch: int, duration_s: float) -> Any:
        import torch

        key = (batch, duration_s)
        if key not in self._codes:
            shape = (batch, self.engine.num_codebooks, round(duration_s * self.engine.frame_rate))
            drawn = torch.randint(self.engine.card, shape, generator=torch.Generator().manual_seed(0))
            self._codes[key] = drawn.to(self.device)
        return self._codes[key]

    def _timed(self, work: Any) -> dict[str, Any]:
        from peers import synchronise

        synchronise(self.device)
        began = time.perf_counter()
        result = work()
        synchronise(self.device)
        seconds = time.perf_counter() - began
        finite = bool(result.isfinite().all()) if result.is_floating_point() else True
        if not finite:
            return {"error": "gave audio that is not finite"}
        return {"seconds": seconds, "peak_mb": self._peak_mb(), "shape": list(result.shape)}

    def _peak_mb(self) -> float | None:
        if not self.device.startswith("cuda"):
            return peak_mb()
        import torch

        return torch.cuda.max_memory_allocated() / 1e6


if __name__ == "__main__":
    serve_stdin(Bench, lambda bench: {"load_s": bench.load_s, "peak_mb": peak_mb()})
