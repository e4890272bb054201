"""Codes made while training: every crop goes through the codec when it is drawn, instead of once before the run.

Slower, and without a token store on disk. A crop's codes are those of the crop alone, which differ near its edges from
the codes that the whole track has there (docs/tokens.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from micro_musicgen.contracts import Codec
from micro_musicgen.data.crops import AudioCrops


class LiveCodes:
    """`CodeCrops` over audio: the same batches for the same step. Invariant: every crop is a whole number of frames."""

    def __init__(self, crops: AudioCrops, codec: Codec, device: torch.device | str) -> None:
        assert crops.segment_samples % codec.hop_samples == 0, (crops.segment_samples, codec.hop_samples)
        self._crops, self._codec, self._device = crops, codec, device

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Gives int64 codes [B / world_size, K, T]: one rank's share of the batch of training step `step` >= 0."""
        return self._encode(self._crops.batch(step, batch_size, rank, world_size))

    def valid_batches(self, batch_size: int, max_items: int) -> Iterator[torch.Tensor]:
        """Gives the same batches [b, K, T] on every call; see `AudioCrops.valid_batches`."""
        for wav in self._crops.valid_batches(batch_size, max_items):
            yield self._encode(wav)

    @torch.no_grad()
    def _encode(self, wav: torch.Tensor) -> torch.Tensor:
        return self._codec.encode(wav.to(self._device))
