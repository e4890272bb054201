"""A codec whose frame is a beat, or an m-th of one: a causal VQ-VAE over audio with a fixed number of samples a beat.

    encoder    strided causal convolutions with gated dilated blocks between: samples_per_beat samples to m latents
    quantiser  audiocraft's residual one, so that codebooks are kept, cut (`REFERENCE:N`) and stored as EnCodec's are
    decoder    the mirror image, causal too: a beat can be heard as soon as its codes are known

With `stft.use` both halves work on complex spectra (`codec.stft_stage`) instead of samples. Every number comes from the
Hydra sections `beat_vqvae` and `rvq`. The model knows nothing of tempo: trained on beat time its frame is a beat at any
BPM, trained on clock time it is samples_per_beat / sample_rate seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from micro_musicgen.codec.beat_layers import Past, context_steps, down_chain, up_chain
from micro_musicgen.codec.builder import codec_models
from micro_musicgen.codec.stft_stage import StftStage, stft_faults
from micro_musicgen.errors import MicroMusicGenError

MAX_WIDTH = 1 << 14
"""Channels, kernels and strides above this are a mistake, or somebody's attempt to fill our memory."""
LISTS = ("strides", "channels")


@dataclass(frozen=True, kw_only=True)
class StftConfig:
    """The part `stft` of the section; see `StftStage`."""

    use: bool
    n_fft: int
    hop_samples: int
    power: float


@dataclass(frozen=True, kw_only=True)
class BeatVqVaeConfig:
    """The Hydra section `beat_vqvae`, checked.

    samples_per_beat, latents_per_beat: their ratio is the frame. dimension: width of the latents. strides: of the
    encoder, first to last; the decoder goes the other way. channels: behind each stride but the last, whose output
    is the latents. residual_kernel_size, n_residual_layers: of the gated blocks at each of these rates. outer_channels,
    last_kernel_size: of the decoder's last convolution. Invariant: strides (times the STFT's hop) make one frame.
    """

    samples_per_beat: int
    latents_per_beat: int
    dimension: int
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    residual_kernel_size: int
    n_residual_layers: int
    outer_channels: int
    last_kernel_size: int
    stft: StftConfig

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> BeatVqVaeConfig:
        """Gives the config that the Hydra section describes.

        Raises:
            MicroMusicGenError: unknown or missing keys, a value out of range, strides that don't make a frame: all at
                once.
        """
        faults = _key_faults(section, cls, "beat_vqvae")
        if not faults:
            faults = _key_faults(section["stft"], StftConfig, "beat_vqvae.stft") or _faults(section)
        if faults:
            raise MicroMusicGenError("; ".join(faults))
        values: dict[str, Any] = {key: tuple(value) if _is_list(value) else value for key, value in section.items()}
        return cls(**{**values, "stft": StftConfig(**section["stft"])})

    @property
    def frame_samples(self) -> int:
        """Samples of one latent."""
        return self.samples_per_beat // self.latents_per_beat

    @property
    def num_parameters(self) -> int:
        """Trainable weights of encoder and decoder, biases included; codebooks are buffers and do not count.

        A gated block of C channels and kernel k has 2kC^2 + 2C + C^2 + C; the convolution between C and C' channels of
        stride s has 2sCC' and the biases of its output.
        """
        blocks = sum((2 * self.residual_kernel_size + 1) * width**2 + 3 * width for width in self.channels)
        outside = self.stft_channels or 1
        down = (outside, *self.channels, self.dimension)
        up = (self.dimension, *reversed(self.channels), self.outer_channels)
        strided = sum(
            2 * stride * a * b + b for stride, a, b in zip(self.strides, down[:-1], down[1:], strict=True)
        ) + sum(2 * stride * a * b + b for stride, a, b in zip(reversed(self.strides), up[:-1], up[1:], strict=True))
        last = self.last_kernel_size * self.outer_channels * outside + outside
        return 2 * self.n_residual_layers * blocks + strided + last

    @property
    def stft_channels(self) -> int:
        """Channels of the spectra; 0 without the stage."""
        return self.stft.n_fft + 2 if self.stft.use else 0


def _key_faults(section: Any, wanted: Any, name: str) -> list[str]:
    if not isinstance(section, Mapping):
        return [f"{name} must be a section, not {section!r}"]
    names = {f.name for f in fields(wanted)}
    faults = [f"unknown key {name}.{key}" for key in sorted(set(section) - names)]
    return faults + [f"missing key {name}.{key}" for key in sorted(names - set(section))]


def _faults(section: Mapping[str, Any]) -> list[str]:
    """Gives what is wrong with the values, a sentence each."""
    faults = []
    for key in (f.name for f in fields(BeatVqVaeConfig) if f.name != "stft"):
        value, is_size = section[key], key != "samples_per_beat"
        given = value if _is_list(value) else [value]
        if _is_list(value) != (key in LISTS) or not all(_is_whole(each, is_size) for each in given):
            kind = "a list of whole numbers" if key in LISTS else "a whole number"
            faults.append(f"beat_vqvae.{key}={value} must be {kind} from 1" + (f" to {MAX_WIDTH}" if is_size else ""))
    stft = section["stft"]
    faults += [
        f"beat_vqvae.stft.{key}={stft[key]} must be a whole number from 1"
        for key in ("n_fft", "hop_samples")
        if not _is_whole(stft[key], False)
    ]
    if not isinstance(stft["power"], int | float):
        faults.append(f"beat_vqvae.stft.power={stft['power']} must be a number")
    return faults or _frame_faults(section)


def _frame_faults(section: Mapping[str, Any]) -> list[str]:
    strides, channels, stft = section["strides"], section["channels"], section["stft"]
    beat, latents = section["samples_per_beat"], section["latents_per_beat"]
    faults = []
    if len(channels) != len(strides) - 1:
        faults.append(f"beat_vqvae.channels has {len(channels)} widths for {len(strides)} strides; give one less")
    if beat % latents:
        faults.append(f"beat_vqvae.samples_per_beat={beat} is no multiple of latents_per_beat={latents}")
    factors = [*strides]
    if stft["use"]:
        faults += [f"beat_vqvae.{fault}" for fault in stft_faults(stft["n_fft"], stft["hop_samples"], stft["power"])]
        factors = [stft["hop_samples"], *strides]
    if not faults and math.prod(factors) * latents != beat:
        faults.append(
            f"beat_vqvae.strides make frames of {' x '.join(map(str, factors))} = {math.prod(factors)} samples, but "
            f"samples_per_beat / latents_per_beat is {beat} / {latents} = {beat // latents}"
        )
    return faults


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_whole(value: Any, is_size: bool) -> bool:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return is_number and (not is_size or value <= MAX_WIDTH)


class BeatEncoder(nn.Module):
    """Audio to latents. Invariant: latent t depends on no sample behind its frame."""

    def __init__(self, config: BeatVqVaeConfig) -> None:
        super().__init__()
        self.hop_length, self.dimension = config.frame_samples, config.dimension
        self.samples_per_beat, self.latents_per_beat = config.samples_per_beat, config.latents_per_beat
        self.stft = _stage(config)
        widths = (config.stft_channels or 1, *config.channels, config.dimension)
        self.layers = down_chain(widths, config.strides, config.residual_kernel_size, config.n_residual_layers)

    @property
    def context_samples(self) -> int:
        """Samples before its own frame that a latent depends on."""
        if self.stft is None:
            return context_steps(self.layers, finest=1)
        return context_steps(self.layers, finest=1) * self.stft.hop_samples + self.stft.delay_samples

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives latents [B, D, T] of audio [B, 1, T * hop_length].

        Raises:
            MicroMusicGenError: the audio is no whole number of frames.
        """
        if wav.shape[-1] % self.hop_length or not wav.shape[-1]:
            per = f" ({self.latents_per_beat} a beat)" if self.latents_per_beat > 1 else ", a beat"
            raise MicroMusicGenError(
                f"audio of {wav.shape[-1]} samples is no whole number of frames of {self.hop_length} samples{per}; cut "
                f"it, or make dataset.segment_duration and quantiser.bank_segment_s multiples of {self.hop_length} "
                "samples"
            )
        latents: torch.Tensor = self.layers(wav if self.stft is None else self.stft.analysis(wav))
        return latents


class BeatDecoder(nn.Module):
    """Latents to audio. Invariant: frame t depends on no latent behind its own, but for `delay_samples`."""

    def __init__(self, config: BeatVqVaeConfig) -> None:
        super().__init__()
        self.hop_length, self.dimension = config.frame_samples, config.dimension
        self.stft = _stage(config)
        widths = (config.dimension, *reversed(config.channels), config.outer_channels)
        self.layers = up_chain(
            (*widths, config.stft_channels or 1),
            config.strides[::-1],
            config.residual_kernel_size,
            config.n_residual_layers,
            config.last_kernel_size,
        )

    @property
    def delay_samples(self) -> int:
        """Samples at the end of a frame that wait for the next one: the overlap of the STFT's windows, else none."""
        return 0 if self.stft is None else self.stft.delay_samples

    @property
    def context_latents(self) -> int:
        """Latents before its own that a frame depends on."""
        finest = self.hop_length // (1 if self.stft is None else self.stft.hop_samples)
        return math.ceil(context_steps(self.layers, finest=finest) / finest)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, 1, T * hop_length] of latents [B, D, T]. Behind the last latent come zeros where needed."""
        whole = self.advance(torch.cat([latents, self.ending(latents)], dim=-1), None)
        return whole[..., self.delay_samples : self.delay_samples + latents.shape[-1] * self.hop_length]

    def advance(self, latents: torch.Tensor, past: Past | None) -> torch.Tensor:
        """Gives audio [B, 1, n * hop_length] of the next latents [B, D, n], `delay_samples` late."""
        made: torch.Tensor = self.layers(latents, past)
        return made if self.stft is None else self.stft.synthesis(made, past)

    def ending(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives the zeros [B, D, n] that push the last samples out; n is 0 without a delay."""
        return latents.new_zeros(*latents.shape[:2], -(-self.delay_samples // self.hop_length))


def _stage(config: BeatVqVaeConfig) -> StftStage | None:
    stft = config.stft
    return StftStage(stft.n_fft, stft.hop_samples, stft.power) if stft.use else None


class BeatVqVae(nn.Module):
    """Encoder, quantiser and decoder as `solvers.codec` and `codec.quantiser` know them from audiocraft's EncodecModel.

    frame_rate: frames a second at the nominal sample_rate, a float: 3.125 for 10,240 samples at 32 kHz.
    """

    def __init__(self, config: BeatVqVaeConfig, quantizer: Any, *, sample_rate: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.quantizer = BeatEncoder(config), BeatDecoder(config), quantizer
        self.sample_rate, self.channels = sample_rate, 1
        self.frame_rate = sample_rate / config.frame_samples

    @property
    def num_codebooks(self) -> int:
        """Codes of a frame."""
        return int(self.quantizer.num_codebooks)

    @property
    def cardinality(self) -> int:
        """Entries of a codebook."""
        return int(self.quantizer.bins)

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, 1, L] after its way through encoder and decoder alone, L whole frames."""
        decoded: torch.Tensor = self.decoder(self.encoder(wav))
        return decoded


@codec_models.register("beat_vqvae")
def build_beat_vqvae(config: Mapping[str, Any]) -> BeatVqVae:
    """Gives an untrained model of plain config data with the sections `beat_vqvae` and `rvq`.

    Raises:
        MicroMusicGenError: see `BeatVqVaeConfig.parse`; more than one channel; keys that the quantiser does not know.
    """
    from micro_musicgen.upstream import audiocraft_module

    parsed = BeatVqVaeConfig.parse(config.get("beat_vqvae") or {})
    if config["channels"] != 1:
        raise MicroMusicGenError(f"channels={config['channels']}: a beat VQ-VAE is mono; set channels=1")
    rvq = dict(config.get("rvq") or {})
    try:
        quantizer = audiocraft_module("quantization").ResidualVectorQuantizer(dimension=parsed.dimension, **rvq)
    except TypeError as error:
        raise MicroMusicGenError(f"cannot build the quantiser from the section rvq: {error}") from error
    return BeatVqVae(parsed, quantizer, sample_rate=int(config["sample_rate"]))
