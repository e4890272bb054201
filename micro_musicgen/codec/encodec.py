"""The `Codec` contract over audiocraft's modules (ours, upstream's and exported ones alike)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


class EncodecCodec:
    """A frozen EnCodec in evaluation mode; see `contracts.Codec`.

    Invariant: neither weights nor config change after construction, so `content_hash` names both.
    """

    def __init__(self, model: Any, config: Mapping[str, Any]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = dict(config)
        self.sample_rate = int(self.model.sample_rate)
        self.channels = int(self.model.channels)
        self.frame_rate = float(self.model.frame_rate)
        self.hop_samples = round(self.sample_rate / self.frame_rate)
        self.num_codebooks = int(self.model.num_codebooks)
        self.cardinality = int(self.model.cardinality)
        self.latent_dim = int(self.model.quantizer.dimension)
        self.content_hash = content_hash(model, config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @torch.inference_mode()
    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives int64 codes [B, K, T] of audio [B, C, L]."""
        codes: torch.Tensor
        codes, scale = self.model.encode(wav.to(self.device))
        assert scale is None, "a codec that renormalises loudness has codes that don't stand alone"
        return codes

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, T * hop_samples] of codes [B, K, T]."""
        found: torch.Tensor = self.model.decode(codes.to(self.device), None)
        return found

    @torch.inference_mode()
    def encode_latents(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives the encoder's latents [B, D, T] of audio [B, C, L]."""
        found: torch.Tensor = self.model.encoder(wav.to(self.device))
        return found

    @torch.inference_mode()
    def codes_to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the quantised latents [B, D, T] of codes [B, K, T]."""
        found: torch.Tensor = self.model.decode_latent(codes.to(self.device))
        return found

    @torch.inference_mode()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L] of latents [B, D, T]."""
        found: torch.Tensor = self.model.decoder(latents.to(self.device))
        return found


def content_hash(model: nn.Module, config: Mapping[str, Any]) -> str:
    """Gives 16 hex digits that name a codec by its config and every weight."""
    digest = hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
