"""A codec whose codes can be told by hand, sounds for it, and stores of them; processes that encode import it too."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from micro_musicgen.data.encode import build_token_store
from micro_musicgen.data.tokens import TokenStore

HOP, RATE = 640, 32_000


class BlockCodec:
    """Codes that can be told by hand: the quantised mean (K 0) and mean magnitude (K 1) of each hop.

    With `reach` the mean is taken over that many hops to both sides too, as the receptive field of a real codec.
    """

    sample_rate, channels, frame_rate, hop_samples = RATE, 1, 50.0, HOP
    num_codebooks, cardinality, latent_dim = 2, 1000, 2

    def __init__(self, reach: int = 0, content_hash: str = "block") -> None:
        self.reach, self.content_hash, self.calls = reach, content_hash, 0

    def encode_latents(self, wav: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(wav[:, 0], (0, -wav.shape[-1] % HOP))
        means = torch.stack([p.unflatten(-1, (-1, HOP)).mean(-1) for p in (padded, padded.abs())], dim=1)
        size = 2 * self.reach + 1
        return torch.nn.functional.avg_pool1d(means, size, 1, self.reach, count_include_pad=False)

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return ((self.encode_latents(wav) + 1) * 499.9).long()

    def codes_to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        return codes / 499.9 - 1

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :1].repeat_interleave(HOP, dim=-1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.decode_latents(self.codes_to_latents(codes))


class DeadlyCodec(BlockCodec):
    """Kills its process, as the kernel does when memory runs out, on audio that is louder than any of ours."""

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        if float(wav.abs().max()) > 1.5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(wav)


def level_steps(num_frames: float, seed: int) -> np.ndarray:
    """Gives audio whose every hop has a level of its own, so that a code tells its place."""
    levels = np.random.default_rng(seed).permutation(990)[: int(np.ceil(num_frames))] / 500 - 0.99
    return np.repeat(levels, HOP)[: round(num_frames * HOP)].astype(np.float32)


def build(folder: Path, tracks: Any, codec: Any = None, **options: Any) -> TokenStore:
    """Builds a store with windows that are short for tests."""
    options = {"segment_s": 1.0, "window_s": 2.0, "overlap_s": 0.4, **options}
    return build_token_store(folder, tracks, codec or BlockCodec(), **options)


def content(folder: Path) -> dict[str, bytes]:
    """Gives every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
