"""The `Codec` contract over a beat VQ-VAE, and its decoding beat by beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from micro_musicgen.codec.beat_layers import Past
from micro_musicgen.codec.wrapping import PartedCodec
from micro_musicgen.errors import MicroMusicGenError


class BeatCodec(PartedCodec):
    """A frozen `BeatVqVae`; see `FrozenCodec`. Audio that ends within a frame is made up with silence."""

    def __init__(self, model: Any, config: Mapping[str, Any]) -> None:
        super().__init__(model, config)
        self.latents_per_beat = int(model.encoder.latents_per_beat)

    def stream(self, num_clips: int) -> BeatStream:
        """Gives a stream for `num_clips` clips that advance together."""
        if num_clips < 1:
            raise MicroMusicGenError(f"{num_clips} clips cannot be streamed; ask for 1 or more")
        return BeatStream(self, num_clips)

    def _encoded(self, wav: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.model.encoder(functional.pad(wav, (0, -wav.shape[-1] % self.hop_samples)))
        return latents


class BeatStream:
    """Clips that advance together, beat by beat.

    Invariant: what all pushes and `finish` have given, put together, is `decode` of all codes, up to rounding.
    """

    def __init__(self, codec: BeatCodec, num_clips: int) -> None:
        self.codec, self.num_clips = codec, num_clips
        self._past, self._decoder = Past(), codec.model.decoder
        # The first samples of a decoder with a delay belong to what was before the clip.
        self._to_skip = int(self._decoder.delay_samples)
        self._is_begun = self._is_finished = False

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the samples [B, C, m] that are final now that codes [B, K, n] have come."""
        return self.push_latents(self.codec.codes_to_latents(codes))

    @torch.inference_mode()
    def push_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives the samples [B, C, m] that are final now that latents [B, D, n] have come."""
        if latents.shape[0] != self.num_clips:
            raise MicroMusicGenError(f"codes of {latents.shape[0]} clips for a stream of {self.num_clips}")
        if self._is_finished:
            raise MicroMusicGenError("this stream is finished; open another one")
        if not latents.shape[-1]:
            return self._nothing()
        self._is_begun = True
        wav: torch.Tensor = self._decoder.advance(latents.to(self.codec.device), self._past)
        skipped = min(self._to_skip, wav.shape[-1])
        self._to_skip -= skipped
        return wav[..., skipped:]

    @torch.inference_mode()
    def finish(self) -> torch.Tensor:
        """Gives the samples [B, C, m] that were still waiting for what might follow."""
        if self._is_finished:
            raise MicroMusicGenError("this stream is finished; open another one")
        rest = self._nothing()
        if self._decoder.delay_samples and self._is_begun:
            empty = torch.zeros(self.num_clips, self.codec.latent_dim, 0)
            rest = self.push_latents(self._decoder.ending(empty))[..., : self._decoder.delay_samples]
        self._is_finished = True
        return rest

    def _nothing(self) -> torch.Tensor:
        return torch.zeros(self.num_clips, self.codec.channels, 0, device=self.codec.device)
