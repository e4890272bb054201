"""Codecs that others trained and published: EnCodec as transformers loads it, behind the `Codec` contract.

Supported by name, never required. Mind their licence: `facebook/encodec_32khz` may not be used commercially.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from micro_musicgen import hub_client, storage
from micro_musicgen.codec.encodec import content_hash
from micro_musicgen.errors import MicroMusicGenError, MissingExtraError
from micro_musicgen.upstream import audiocraft_module

KNOWN = {"facebook/encodec_32khz": "CC-BY-NC-4.0"}
"""Pretrained codecs whose licence we know."""

WEIGHT_FILES = ("config.json", "*.safetensors")


class PretrainedCodec:
    """A frozen EnCodec of transformers', as audiocraft wraps it; see `contracts.Codec`.

    Invariant: loudness is never renormalised and audio is coded whole, so that codes stand alone.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        config = self.model.model.config
        if config.normalize or config.chunk_length_s:
            raise MicroMusicGenError(
                f"codec {name} renormalises or chunks its audio, which codes alone can't say; use {', '.join(KNOWN)}"
            )
        self.name = name
        self.sample_rate = int(self.model.sample_rate)
        self.channels = int(self.model.channels)
        self.frame_rate = float(self.model.frame_rate)
        self.hop_samples = round(self.sample_rate / self.frame_rate)
        self.num_codebooks = int(self.model.num_codebooks)
        self.cardinality = int(self.model.cardinality)
        self.latent_dim = int(config.hidden_size)
        self.content_hash = content_hash(model, json.loads(config.to_json_string()))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @torch.inference_mode()
    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives int64 codes [B, K, T] of audio [B, C, L]."""
        codes: torch.Tensor
        codes, _ = self.model.encode(wav.to(self.device))
        return codes

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, T * hop_samples] of codes [B, K, T]."""
        found: torch.Tensor = self.model.decode(codes.to(self.device), None)
        return found

    @torch.inference_mode()
    def encode_latents(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives the encoder's latents [B, D, T] of audio [B, C, L]."""
        found: torch.Tensor = self.model.model.encoder(wav.to(self.device))
        return found

    @torch.inference_mode()
    def codes_to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the quantised latents [B, D, T] of codes [B, K, T]."""
        found: torch.Tensor = self.model.decode_latent(codes.to(self.device))
        return found

    @torch.inference_mode()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L] of latents [B, D, T]."""
        found: torch.Tensor = self.model.model.decoder(latents.to(self.device))
        return found


def load_pretrained(name: str, device: torch.device | str = "cpu") -> PretrainedCodec:
    """Gives the codec called `name` on the Hub, fetched when it is new.

    Raises:
        MissingExtraError: transformers is not installed.
        MicroMusicGenError: the Hub can't be reached, or the model is no EnCodec.
    """
    try:
        version("transformers")
    except PackageNotFoundError:
        raise MissingExtraError(
            f"the pretrained codec {name} needs transformers; run: pip install 'micro-musicgen[text]', "
            "or train a codec of your own"
        ) from None
    folder = hub_client.download_folder(name, WEIGHT_FILES)
    kind = storage.read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    if kind != "encodec":
        raise MicroMusicGenError(
            f"{name} on the Hub is no EnCodec but {kind or 'something else'}; use {', '.join(KNOWN)}"
        )
    upstream = audiocraft_module("models.encodec")
    try:
        model = upstream.HFEncodecModel.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise MicroMusicGenError(f"{name} cannot be loaded as an EnCodec: {str(error).splitlines()[0]}") from error
    return PretrainedCodec(upstream.HFEncodecCompressionModel(model).to(device), name)
