"""What all frozen codecs share: the `Codec` contract over four steps that each kind of codec fills in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class CodecShape:
    """The numbers of a codec; see `contracts.Codec`."""

    sample_rate: int
    channels: int
    hop_samples: int
    num_codebooks: int
    cardinality: int
    latent_dim: int


class FrozenCodec:
    """A codec in evaluation mode around somebody's modules; see `contracts.Codec`.

    Invariant: neither weights nor facts change after construction, so `content_hash` names both. Codes are made of
    latents and audio of latents, so the way through latents gives the same numbers as the direct one.
    """

    def __init__(self, model: Any, shape: CodecShape, facts: Mapping[str, Any]) -> None:
        """facts: plain data that decides, with the weights, what the codec gives."""
        self.model = model.eval().requires_grad_(False)
        self.sample_rate, self.channels = shape.sample_rate, shape.channels
        self.hop_samples = shape.hop_samples
        self.frame_rate = shape.sample_rate / shape.hop_samples
        self.num_codebooks, self.cardinality = shape.num_codebooks, shape.cardinality
        self.latent_dim = shape.latent_dim
        self.content_hash = content_hash(model, facts)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @torch.inference_mode()
    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives int64 codes [B, K, T] of audio [B, C, L]."""
        return self._quantised(self._encoded(wav.to(self.device)))

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, T * hop_samples] of codes [B, K, T]."""
        return self._decoded(self._dequantised(codes.to(self.device)))

    @torch.inference_mode()
    def encode_latents(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives the encoder's latents [B, D, T] of audio [B, C, L]."""
        return self._encoded(wav.to(self.device))

    @torch.inference_mode()
    def codes_to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the quantised latents [B, D, T] of codes [B, K, T]."""
        return self._dequantised(codes.to(self.device))

    @torch.inference_mode()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, T * hop_samples] of latents [B, D, T]."""
        return self._decoded(latents.to(self.device))

    def _encoded(self, wav: torch.Tensor) -> torch.Tensor:
        """Audio [B, C, L] to latents [B, D, T]."""
        raise NotImplementedError

    def _quantised(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, D, T] to int64 codes [B, K, T]."""
        raise NotImplementedError

    def _dequantised(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [B, K, T] to latents [B, D, T]."""
        raise NotImplementedError

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, D, T] to audio [B, C, T * hop_samples]."""
        raise NotImplementedError


class PartedCodec(FrozenCodec):
    """A frozen codec whose model has encoder, residual quantizer and decoder, as audiocraft's and our own have."""

    def __init__(self, model: Any, config: Mapping[str, Any]) -> None:
        """config: what the model is built of, which decides with the weights what it gives."""
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


def content_hash(model: nn.Module, facts: Mapping[str, Any]) -> str:
    """Gives 16 hex digits that name a codec by its facts and every weight, whatever device they are on."""
    return state_hash(model.state_dict(), facts)


def state_hash(state: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> str:
    """Gives the `content_hash` of the codec that has this state_dict, without building it."""
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
