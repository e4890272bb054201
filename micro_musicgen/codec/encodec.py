"""The `Codec` contract over audiocraft's modules (ours, upstream's and exported ones alike)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from micro_musicgen.codec.wrapping import CodecShape, FrozenCodec
from micro_musicgen.errors import MicroMusicGenError


class EncodecCodec(FrozenCodec):
    """A frozen EnCodec of audiocraft's; see `FrozenCodec`.

    Raises:
        MicroMusicGenError: it renormalises loudness, so that its codes don't stand alone.
    """

    def __init__(self, model: Any, config: Mapping[str, Any]) -> None:
        if model.renormalize:
            raise MicroMusicGenError(
                "the codec renormalises loudness, which codes alone can't say; use one with encodec.renormalize=false"
            )
        self.config = dict(config)
        shape = CodecShape(
            sample_rate=int(model.sample_rate),
            channels=int(model.channels),
            hop_samples=int(model.encoder.hop_length),
            num_codebooks=int(model.num_codebooks),
            cardinality=int(model.cardinality),
            latent_dim=int(model.quantizer.dimension),
        )
        super().__init__(model, shape, self.config)

    def _encoded(self, wav: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.model.encoder(wav)
        return latents

    def _quantised(self, latents: torch.Tensor) -> torch.Tensor:
        codes: torch.Tensor = self.model.quantizer.encode(latents)
        return codes

    def _dequantised(self, codes: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.model.quantizer.decode(codes)
        return latents

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        wav: torch.Tensor = self.model.decoder(latents)
        return wav
