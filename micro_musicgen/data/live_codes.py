"""Codes made while training: every crop goes through the codec when it is drawn, instead of once before the run.

Slower, and without a token store on disk. A crop's codes are those of the crop alone, which differ near its edges from
the codes that the whole track has there (docs/tokens.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from micro_musicgen.contracts import Codec
from micro_musicgen.data.crop_batch import Crops
from micro_musicgen.data.crops import AudioCrops, AudioCut, stacked


class LiveCodes:
    """`CodeCrops` over audio: the same batches for the same step. Invariant: every crop is a whole number of frames."""

    def __init__(self, crops: AudioCrops, codec: Codec, device: torch.device | str) -> None:
        assert crops.segment_samples % codec.hop_samples == 0, (crops.segment_samples, codec.hop_samples)
        self._crops, self._codec, self._device = crops, codec, device

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Gives int64 codes [B / world_size, K, T]: those of `crops`."""
        return self.crops(step, batch_size, rank, world_size).codes

    def crops(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1, prompt_frames: int = 0) -> Crops:
        """Gives one rank's share of the batch of training step `step` >= 0; see `CodeCrops.crops`.

        A prompt is encoded apart from its crop: its codes hear nothing of it.
        """
        hop = self._codec.hop_samples
        cuts = self._crops.cuts(step, batch_size, rank, world_size, prompt=prompt_frames * hop, grain=hop)
        return self._encoded(cuts)

    def valid_batches(self, batch_size: int, max_items: int) -> Iterator[torch.Tensor]:
        """Gives the same batches [b, K, T] on every call; see `AudioCrops.valid_batches`."""
        return (crops.codes for crops in self.valid_crops(batch_size, max_items))

    def valid_crops(self, batch_size: int, max_items: int, prompt_frames: int = 0) -> Iterator[Crops]:
        """Gives the same crops on every call; see `CodeCrops.valid_crops`."""
        hop = self._codec.hop_samples
        for cuts in self._crops.valid_cuts(batch_size, max_items, prompt=prompt_frames * hop, grain=hop):
            yield self._encoded(cuts)

    def _encoded(self, cuts: Sequence[AudioCut]) -> Crops:
        codes = self._encode(stacked(cut.wav for cut in cuts))
        prompts: dict[int, torch.Tensor] = {}
        by_size: dict[int, list[int]] = {}
        for index, cut in enumerate(cuts):
            if cut.prompt is not None:
                by_size.setdefault(len(cut.prompt), []).append(index)
        for indices in by_size.values():
            found = self._encode(stacked(wav for i in indices if (wav := cuts[i].prompt) is not None))
            prompts.update(zip(indices, found, strict=True))
        return Crops(
            codes=codes,
            tracks=tuple(cut.track for cut in cuts),
            places=tuple(cut.place for cut in cuts),
            prompts=tuple(prompts.get(index) for index in range(len(cuts))),
            bars=tuple(cut.bar for cut in cuts),
        )

    @torch.no_grad()
    def _encode(self, wav: torch.Tensor) -> torch.Tensor:
        return self._codec.encode(wav.to(self._device))
