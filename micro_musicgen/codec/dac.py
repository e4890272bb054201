"""The `Codec` contract over transformers' DacModel, the Descript Audio Codec at 16, 24 or 44.1 kHz."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from micro_musicgen.codec import codebooks
from micro_musicgen.codec.wrapping import CodecShape, FrozenCodec

_FACTS = ("sampling_rate", "downsampling_ratios", "upsampling_ratios")


class DacCodec(FrozenCodec):
    """A frozen DacModel of transformers', which is always mono; see `FrozenCodec`.

    Invariant: T frames are T * hop_samples samples. DAC itself wants whole frames, and gives a few samples less where
    a stride is odd (8 of 320 a frame at 16 and 24 kHz); here silence makes up for both.

    Raises:
        MicroMusicGenError: it has fewer than `num_codebooks`.
    """

    def __init__(self, model: Any, name: str, num_codebooks: int | None = None) -> None:
        """num_codebooks: the first so many; None for all."""
        config, quantizer = model.config, model.quantizer
        if num_codebooks is not None:
            codebooks.check(num_codebooks, len(quantizer.quantizers), name)
            quantizer.quantizers = quantizer.quantizers[:num_codebooks]
        quantizer.n_codebooks = len(quantizer.quantizers)
        self.name = name
        shape = CodecShape(
            sample_rate=config.sampling_rate,
            channels=1,
            hop_samples=math.prod(config.downsampling_ratios),  # the published configs' hop_length is wrong at 24 kHz
            num_codebooks=len(quantizer.quantizers),
            cardinality=config.codebook_size,
            latent_dim=config.hidden_size,
        )
        super().__init__(model, shape, {"kind": "dac", **{key: getattr(config, key) for key in _FACTS}})

    def _encoded(self, wav: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.model.encoder(functional.pad(wav, (0, -wav.shape[-1] % self.hop_samples)))
        return latents

    def _quantised(self, latents: torch.Tensor) -> torch.Tensor:
        codes: torch.Tensor = self.model.quantizer(latents)[1]
        return codes

    def _dequantised(self, codes: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.model.quantizer.from_codes(codes)[0]
        return latents

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        wav: torch.Tensor = self.model.decoder(latents)
        return functional.pad(wav, (0, latents.shape[-1] * self.hop_samples - wav.shape[-1]))
