"""The `Codec` contract over transformers' EncodecModel, as which the 24 and the 32 kHz model are published."""

from __future__ import annotations

import math
from typing import Any

import torch

from micro_musicgen.codec import codebooks
from micro_musicgen.codec.wrapping import CodecShape, FrozenCodec
from micro_musicgen.errors import MicroMusicGenError

# What the weights don't show and yet decides what they give. Not the whole config, which says who wrote it as well.
_FACTS = (
    "sampling_rate", "audio_channels", "upsampling_ratios", "norm_type", "num_residual_layers", "dilation_growth_rate",
    "use_causal_conv", "pad_mode", "compress", "trim_right_ratio", "use_conv_shortcut",
)  # fmt: skip


class TransformersEncodec(FrozenCodec):
    """A frozen EncodecModel of transformers'; see `FrozenCodec`.

    Invariant: loudness is never renormalised and audio is coded whole, so that codes stand alone.

    Raises:
        MicroMusicGenError: it is stereo, renormalises or chunks, or has fewer than `num_codebooks`.
    """

    def __init__(self, model: Any, name: str, num_codebooks: int | None = None) -> None:
        """num_codebooks: the first so many; None for all that its highest bandwidth uses."""
        config, quantizer = model.config, model.quantizer
        if config.audio_channels != 1:
            raise MicroMusicGenError(
                f"codec {name} has {config.audio_channels} channels and music here has one; use a mono codec"
            )
        if config.normalize or config.chunk_length_s:
            raise MicroMusicGenError(
                f"codec {name} renormalises or chunks its audio, which codes alone can't say; use one that does neither"
            )
        if num_codebooks is not None:
            codebooks.check(num_codebooks, len(quantizer.layers), name)
            quantizer.layers = quantizer.layers[:num_codebooks]
        quantizer.num_quantizers = len(quantizer.layers)
        self.name = name
        shape = CodecShape(
            sample_rate=config.sampling_rate,
            channels=config.audio_channels,
            hop_samples=math.prod(config.upsampling_ratios),
            num_codebooks=len(quantizer.layers),
            cardinality=config.codebook_size,
            latent_dim=config.hidden_size,
        )
        super().__init__(model, shape, {"kind": "encodec", **{key: getattr(config, key) for key in _FACTS}})

    def _encoded(self, wav: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.model.encoder(wav)
        return latents

    def _quantised(self, latents: torch.Tensor) -> torch.Tensor:
        codes: torch.Tensor = self.model.quantizer.encode(latents)  # [K, B, T]
        return codes.transpose(0, 1)

    def _dequantised(self, codes: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.model.quantizer.decode(codes.transpose(0, 1))
        return latents

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        wav: torch.Tensor = self.model.decoder(latents)
        return wav
