"""What a diffusion model works on: sound as frames of floats, and back. One interface for latents and spectra."""

from __future__ import annotations

from typing import Protocol

import torch

from micro_musicgen.conditioners.lazy_registry import LazyRegistry
from micro_musicgen.contracts import Codec
from micro_musicgen.errors import MicroMusicGenError


class Representation(Protocol):
    """Mono sound to frames and back. Invariants: T = ceil(L / hop_samples); clips don't hear each other.

    Frame n is about the samples [n * hop_samples, (n + 1) * hop_samples), whatever more it hears to both sides, so
    frames of two representations with equal frame rates lie beside each other.

    channels: D. content_hash: names everything that decides what the frames of a sound are.
    """

    @property
    def name(self) -> str:
        """What the registry calls it."""

    @property
    def channels(self) -> int:
        """D, the numbers in a frame."""

    @property
    def sample_rate(self) -> int:
        """Of the sound, in Hz."""

    @property
    def frame_rate(self) -> float:
        """Frames a second, sample_rate / hop_samples."""

    @property
    def hop_samples(self) -> int:
        """Samples that one frame stands for."""

    @property
    def content_hash(self) -> str:
        """Names what decides the frames: a codec by its weights, a spectrum by its settings."""

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives float32 frames [B, D, T] of audio [B, 1, L]; what the last frame lacks is silence."""

    def decode(self, frames: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, 1, T * hop_samples] of frames [B, D, T]."""


class MakeRepresentation(Protocol):
    """Gives a representation; codec: the one to use, None where there is none."""

    def __call__(self, codec: Codec | None) -> Representation:
        """Gives the representation.

        Raises:
            MicroMusicGenError: it needs a codec, or one of another kind.
        """


representations: LazyRegistry[MakeRepresentation] = LazyRegistry(
    "representation",
    {
        "mel_16k": "micro_musicgen.diffusion.mel_frames",
        "mel_32k": "micro_musicgen.diffusion.mel_frames",
    },
)


class CodecFrames:
    """The continuous latents of a codec's encoder, [B, latent_dim, T], and its decoder as their inverse."""

    name = "codec"

    def __init__(self, codec: Codec) -> None:
        if codec.channels != 1:
            raise MicroMusicGenError(
                f"the codec has {codec.channels} channels; latents are diffused with a mono codec only"
            )
        self.codec = codec
        self.channels = codec.latent_dim
        self.sample_rate, self.frame_rate, self.hop_samples = codec.sample_rate, codec.frame_rate, codec.hop_samples
        self.content_hash = codec.content_hash

    @torch.no_grad()
    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives the encoder's latents, float32 [B, D, T], before any quantising."""
        return self.codec.encode_latents(wav).float()

    @torch.no_grad()
    def decode(self, frames: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, 1, L] of latents."""
        return self.codec.decode_latents(frames)


@representations.register("codec")
def make_codec_frames(codec: Codec | None) -> Representation:
    """Gives the latents of `codec`."""
    if codec is None:
        raise MicroMusicGenError("the representation 'codec' needs a codec and got none; name one, or use mel_32k")
    return CodecFrames(codec)


def resampled(frames: torch.Tensor, num_frames: int, step: float | None = None) -> torch.Tensor:
    """Gives frames [B, D, T] at another frame rate, [B, D, num_frames], by linear interpolation in time.

    A frame's value counts for its middle; before the first middle and behind the last one the value stays.
    step: frames in for one frame out, the ratio of the rates; None for T / num_frames.
    """
    length = frames.shape[-1]
    middles = torch.arange(num_frames, dtype=torch.float64, device=frames.device) + 0.5
    places = (middles * (length / num_frames if step is None else step) - 0.5).clamp(0, length - 1)
    left = places.long().clamp(max=max(0, length - 2))
    weight = (places - left).to(frames.dtype)
    right = (left + 1).clamp(max=length - 1)
    return torch.lerp(frames[..., left], frames[..., right], weight)


def nearest(frames: torch.Tensor, num_frames: int, step: float | None = None) -> torch.Tensor:
    """Gives frames or codes [B, D, T] at another frame rate, [B, D, num_frames]: those that hold each frame's middle.

    step: as in `resampled`.
    """
    length = frames.shape[-1]
    middles = torch.arange(num_frames, dtype=torch.float64, device=frames.device) + 0.5
    places = (middles * (length / num_frames if step is None else step)).long()
    return frames[..., places.clamp(max=length - 1)]
