"""The codec as the engine plays it: a fast decoder at once, the rest of the codec when something asks for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch

from micro_musicgen.codec.beat_codec import BeatCodec
from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.codec.parts import CodecParts
from micro_musicgen.codec.wrapping import state_hash
from micro_musicgen.contracts import Codec
from micro_musicgen.engine.decoder import CodecDecoder, DecoderStream


class PlayingCodec:
    """A `contracts.Codec` whose decoding half is ours and whose encoding half is built on first use.

    Invariant: both halves are of the same weights.
    """

    def __init__(
        self, decoder: CodecDecoder, whole: Callable[[], Codec], name: Callable[[], str] | None = None
    ) -> None:
        """name: gives the content hash, where that can be had without the other half."""
        self.decoder = decoder
        self._whole = functools.cache(whole)
        self._name = name
        self.sample_rate, self.channels = decoder.sample_rate, decoder.channels
        self.frame_rate, self.hop_samples = decoder.frame_rate, decoder.hop_samples
        self.num_codebooks, self.cardinality = decoder.num_codebooks, decoder.cardinality
        self.latent_dim = decoder.latent_dim
        self.content_hash: str

    def __getattr__(self, name: str) -> str:
        """Gives the hash, which takes all weights of both halves, when somebody asks for it."""
        if name != "content_hash":
            raise AttributeError(name)
        self.content_hash = self.whole.content_hash if self._name is None else self._name()
        return self.content_hash

    @property
    def whole(self) -> Codec:
        """The codec with both halves, in audiocraft's modules."""
        return self._whole()

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives int64 codes [B, K, T] of audio [B, C, L]."""
        return self.whole.encode(wav)

    def encode_latents(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives the encoder's latents [B, D, T] of audio [B, C, L]."""
        return self.whole.encode_latents(wav)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, T * hop_samples] of codes [B, K, T]."""
        return self.decoder.decode(codes)

    def codes_to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the quantised latents [B, D, T] of codes [B, K, T]."""
        return self.decoder.codes_to_latents(codes)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L] of latents [B, D, T]."""
        return self.decoder.decode_latents(latents)

    def stream(self, num_clips: int) -> DecoderStream:
        """Gives a stream of codes to audio."""
        return self.decoder.stream(num_clips)


def codec_of_parts(found: CodecParts, device: torch.device, precision: str = "fp32") -> Codec:
    """Gives the codec made of `found`, with the fast decoder where it knows the codec's kind.

    Raises:
        MicroMusicGenError: weights and config don't belong together.
    """
    from micro_musicgen.codec.resolve import build_codec

    if found.pretrained is not None or not CodecDecoder.supports(found.config):
        return build_codec(found, device)
    decoder = CodecDecoder.from_state(
        found.config, found.state, device=device, precision=precision, source=found.source
    )
    return PlayingCodec(decoder, lambda: build_codec(found, device), lambda: state_hash(found.state, found.config))


def playing(codec: Codec) -> Codec:
    """Gives `codec` with the fast decoder where it knows the codec's kind; its weights are copied."""
    if not isinstance(codec, EncodecCodec) or not CodecDecoder.supports(codec.config):
        return codec
    decoder = CodecDecoder.from_state(codec.config, codec.model.state_dict(), device=codec.device)
    return PlayingCodec(decoder, lambda: codec)


class AudioStream(Protocol):
    """Codes in, audio out, as it becomes final."""

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the samples [B, C, m] that are final once codes [B, K, n] are known too."""

    def finish(self) -> torch.Tensor:
        """Gives the rest."""


class LatentStream(Protocol):
    """Latents in, audio out, as it becomes final."""

    def push_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives the samples [B, C, m] that are final once latents [B, D, n] are known too."""

    def finish(self) -> torch.Tensor:
        """Gives the rest."""


@runtime_checkable
class Streaming(Protocol):
    """A codec whose codes can be decoded in pieces."""

    def stream(self, num_clips: int) -> AudioStream:
        """Gives a stream for `num_clips` clips that advance together."""


class _Whole:
    """For codecs that can't be decoded in pieces: nothing until the end."""

    def __init__(self, codec: Codec, num_clips: int) -> None:
        self.codec = codec
        self.nothing = torch.zeros(num_clips, codec.channels, 0)
        self.codes: list[torch.Tensor] = []
        self.latents: list[torch.Tensor] = []

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        self.codes.append(codes)
        return self.nothing

    def push_latents(self, latents: torch.Tensor) -> torch.Tensor:
        self.latents.append(latents)
        return self.nothing

    def finish(self) -> torch.Tensor:
        if self.latents:
            return self.codec.decode_latents(torch.cat(self.latents, dim=-1))
        return self.codec.decode(torch.cat(self.codes, dim=-1)) if self.codes else self.nothing


def audio_stream(codec: Codec, num_clips: int) -> AudioStream:
    """Gives a stream that decodes `num_clips` clips; a codec that can't be cut gives everything at the end."""
    return codec.stream(num_clips) if isinstance(codec, Streaming) else _Whole(codec, num_clips)


def latent_stream(codec: Codec, num_clips: int) -> LatentStream:
    """Gives a stream over latents; a codec that can't be cut gives everything at the end."""
    return codec.stream(num_clips) if isinstance(codec, PlayingCodec | BeatCodec) else _Whole(codec, num_clips)


def decoded(codec: Codec, chunks: Iterator[torch.Tensor], num_clips: int) -> Iterator[torch.Tensor]:
    """Yields the audio [B, C, L] of code chunks [B, K, n]; pieces without samples are left out."""
    stream = audio_stream(codec, num_clips)
    for codes in chunks:
        wav = stream.push(codes)
        if wav.shape[-1]:
            yield wav
    wav = stream.finish()
    if wav.shape[-1]:
        yield wav
