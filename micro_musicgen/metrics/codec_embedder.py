"""A codec's own view of a sound, before any quantising: what the model's codes are made of."""

from __future__ import annotations

import torch

from micro_musicgen.contracts import Codec
from micro_musicgen.metrics.embedders import Array, clip_means, in_batches, mono_at

BATCH_S = 60


class CodecEmbedder:
    """The codec's continuous latents, a row for each frame."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.name = f"codec-{codec.content_hash}"
        self.width = codec.latent_dim

    def embed(self, wav: torch.Tensor, sample_rate: int) -> Array:
        """Gives a row for each frame of clips [B, C, L], float64 [B * T, D].

        Raises:
            MicroMusicGenError: the clips are empty, have other axes, or hold NaN.
        """
        mono = mono_at(wav, sample_rate, self.codec.sample_rate)
        return in_batches(mono, BATCH_S * self.codec.sample_rate, self._rows)

    def embed_clips(self, wav: torch.Tensor, sample_rate: int) -> Array:
        """Gives the mean row of each clip, float64 [B, D]."""
        return clip_means(self.embed(wav, sample_rate), len(wav))

    def _rows(self, mono: torch.Tensor) -> torch.Tensor:
        latents = self.codec.encode_latents(mono[:, None].expand(-1, self.codec.channels, -1))
        return latents.transpose(1, 2).flatten(0, 1)
