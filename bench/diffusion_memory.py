"""What attention to the 16 frames around a frame takes in memory: our local attention, and full attention with a mask.

Each is measured in a process of its own, by the growth of its peak memory; see `main`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import Row, Sample, make_row
from pool import child_environment

HEADS, HEAD_DIM, WINDOW = 8, 32, 16
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
QUICK_LENGTHS = (1024, 4096, 16384)
MOST_MB = 3000.0
"""Full attention is measured up to here and calculated beyond."""


def full_mb(num_frames: int) -> float:
    """Gives what the scores of full attention take at least: one fp32 number a pair of frames a head, 10^6 bytes."""
    return 4.0 * HEADS * num_frames**2 / 1e6


def rows(*, quick: bool) -> list[Row]:
    """Gives a row a length, and the seconds of both in its note."""
    found = []
    for frames in QUICK_LENGTHS if quick else LENGTHS:
        local = _measured("local", frames)
        measured = full_mb(frames) <= MOST_MB
        full = _measured("full", frames) if measured else {"mb": full_mb(frames)}
        seconds = f"{local['seconds']:.3f} s" if "seconds" in local else ""
        seconds += f" against {full['seconds']:.3f} s" if "seconds" in full else ""
        name = f"local_attention_memory_{frames}"
        note = seconds + ("" if measured else "; the peer's is calculated: its scores alone")
        found.append(make_row(name, _sample(local), "MB", peer="full, masked", theirs=_sample(full), note=note))
    return found


def _sample(found: dict[str, Any]) -> Sample:
    return Sample((found["mb"],)) if "mb" in found else Sample(failure=found["error"])


def _measured(kind: str, frames: int) -> dict[str, Any]:
    argv = [sys.executable, str(Path(__file__).resolve()), kind, str(frames)]
    done = subprocess.run(argv, capture_output=True, text=True, env=child_environment(), timeout=600)
    if done.returncode:
        return {"error": f"{kind} attention over {frames} frames ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def attend(kind: str, frames: int) -> dict[str, float]:
    """Gives {"mb", "seconds"} of one attention over random frames: growth of the peak memory while it is computed."""
    import torch

    from micro_musicgen.diffusion.local_attention import local_attention

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, frames, HEAD_DIM) for _ in range(3))

    def once() -> torch.Tensor:
        if kind == "local":
            return local_attention(q, k, v, window=WINDOW, mask_edges=True)
        place = torch.arange(frames)
        apart = place[None, :] - place[:, None]
        heard = (apart >= -(WINDOW // 2)) & (apart < WINDOW - WINDOW // 2)
        scores = (q @ k.transpose(-1, -2)) / HEAD_DIM**0.5
        return scores.masked_fill_(~heard, -torch.inf).softmax(dim=-1) @ v

    with torch.inference_mode():
        local_attention(q[:, :, :64], k[:, :, :64], v[:, :, :64], window=WINDOW)
        before = _peak_mb(reset=True)
        began = time.perf_counter()
        once()
        return {"seconds": time.perf_counter() - began, "mb": max(0.0, _peak_mb() - before)}


def _peak_mb(*, reset: bool = False) -> float:
    """Gives the most memory held since the last reset, where the system can forget; since the start where not."""
    from worker import peak_mb

    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            pass
    return peak_mb() or 0.0


def main() -> None:
    """Prints {"mb", "seconds"} of one measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=("local", "full"))
    parser.add_argument("frames", type=int)
    given = parser.parse_args()
    print(json.dumps(attend(given.kind, given.frames)))


if __name__ == "__main__":
    main()
