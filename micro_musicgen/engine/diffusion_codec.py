"""A codec whose codes sound through a diffusion model, which refines their latents before the codec plays them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from micro_musicgen.contracts import Codec
from micro_musicgen.diffusion.code_condition import code_condition
from micro_musicgen.diffusion.denoiser import Told
from micro_musicgen.diffusion.model import LatentDiffusion
from micro_musicgen.diffusion.samplers import default_spacings, times
from micro_musicgen.diffusion.sampling import FrameNoise, SamplingParams, params_of, sample
from micro_musicgen.engine.codec import LatentStream, latent_stream
from micro_musicgen.engine.latent_windows import LatentWindows
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.release.decoder import check_fit, codebooks

MAX_CLIPS = 8
"""Clips that an accelerator refines at once. A CPU takes one: it is as fast, and a clip is bit for bit the same in any
batch."""


class DiffusionCodec:
    """A `contracts.Codec` that encodes as the codec within and decodes through a diffusion (or regression) model.

    Invariants: decoding is a function of the codes, with noise that belongs to frames; a clip's samples don't depend on
    the batch that it rides in, nor on the pieces in which a stream gets its codes.
    """

    def __init__(
        self,
        codec: Codec,
        model: LatentDiffusion,
        config: Mapping[str, Any],
        *,
        params: SamplingParams | None = None,
        dtype: torch.dtype | None = None,
        source: str = "the decoder",
    ) -> None:
        """config: as `release.decoder.DecoderParts` has it. params: how to sample, as `config` says by default. dtype:
        of the network, by autocast. source: where the model is from, for messages.

        Raises:
            MicroMusicGenError: the model was trained on other codes, was never fitted, or can't be sampled so.
        """
        check_fit(config, codec, source=source)
        self.codec, self.model, self.config, self.source = codec, model.eval(), config, source
        self.params = params_of(config["sampling"]) if params is None else params
        self.dtype = dtype
        self.counts = codebooks(config)
        self.sample_rate, self.channels = codec.sample_rate, codec.channels
        self.frame_rate, self.hop_samples = codec.frame_rate, codec.hop_samples
        self.num_codebooks, self.cardinality = codec.num_codebooks, codec.cardinality
        self.latent_dim, self.content_hash = codec.latent_dim, codec.content_hash
        stride = model.denoiser.stride
        self.window_frames = max(stride, config["window_frames"] // stride * stride)
        self._check_params()

    def with_params(
        self, *, steps: int | None = None, guidance: float | None = None, noise_scale: float | None = None
    ) -> DiffusionCodec:
        """Gives the same codec and model, sampled otherwise; None leaves a parameter as it is.

        Raises:
            MicroMusicGenError: more steps than the model has, or a guidance that it can't follow.
        """
        given = {"steps": steps, "guidance": guidance, "noise_scale": noise_scale}
        changes = {name: value for name, value in given.items() if value is not None}
        if changes and self.model.is_regression:
            raise MicroMusicGenError(f"{self.source} is a regression, without steps, guidance or noise; leave them out")
        params = replace(self.params, **changes)  # type: ignore[arg-type]
        return DiffusionCodec(self.codec, self.model, self.config, params=params, dtype=self.dtype, source=self.source)

    def _check_params(self) -> None:
        """Says what can't be played before anything is generated."""
        model = self.model
        for part in (model.normaliser, model.condition_normaliser):
            if part is not None and not part.fitted:
                raise MicroMusicGenError(f"{self.source}: its normaliser was never fitted; train or export it again")
        if model.is_regression:
            return
        times(model.schedule, self.params.steps, self.params.spacing or default_spacings.get(self.params.sampler))
        if self.params.guidance != 1 and not self.config["diffusion"].get("condition_dropout", 1):
            raise MicroMusicGenError(
                f"{self.source} was trained with diffusion.condition_dropout=0, so guidance "
                f"{self.params.guidance:g} has nothing to guide from; use 1"
            )

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives int64 codes [B, K, T] of audio [B, C, L]."""
        return self.codec.encode(wav)

    def encode_latents(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives the encoder's latents [B, D, T] of audio [B, C, L]."""
        return self.codec.encode_latents(wav)

    def codes_to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the quantised latents [B, D, T] of codes [B, K, T], not refined."""
        return self.codec.codes_to_latents(codes)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L] of latents [B, D, T], as they are."""
        return self.codec.decode_latents(latents)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, T * hop_samples] of codes [B, K, T].

        Raises:
            MicroMusicGenError: not codes of this codec, a number of codebooks that the model wasn't trained with, too
                little memory, or a model that diverged.
        """
        return self.codec.decode_latents(self.refined(codes))

    def refined(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the latents [B, D, T] that `decode` plays for codes [B, K, T].

        Raises:
            MicroMusicGenError: as `decode`.
        """
        windows = LatentWindows(self._refine, self.window_frames)
        nothing = torch.zeros(len(codes), self.latent_dim, 0, device=self._device)
        return torch.cat([nothing, *windows.push(self._checked(codes)), *windows.finish()], dim=-1)

    def stream(self, num_clips: int) -> DiffusionStream:
        """Gives a stream for `num_clips` clips that advance together, a window at a time."""
        return DiffusionStream(self, num_clips)

    @property
    def _device(self) -> torch.device:
        return self.model.normaliser.mean.device

    def _checked(self, codes: torch.Tensor) -> torch.Tensor:
        if codes.ndim != 3 or codes.shape[1] not in self.counts:
            known = " or ".join(str(number) for number in self.counts)
            raise MicroMusicGenError(
                f"codes of shape {tuple(codes.shape)} are not [clips, codebooks, frames] of {known} codebooks, which "
                f"{self.source} was trained with"
            )
        return codes

    @torch.inference_mode()
    def _refine(self, codes: torch.Tensor, start: int) -> torch.Tensor:
        """Gives refined latents [B, D, n] of one window's codes [B, K, n]; `start` is its first frame in the clip."""
        frames, stride = codes.shape[-1], self.model.denoiser.stride
        missing = -frames % stride
        if missing:
            codes = torch.cat([codes, codes[..., -1:].expand(-1, -1, missing)], dim=-1)
        at_once = 1 if self._device.type == "cpu" else MAX_CLIPS
        with _explained(len(codes), frames, self._device):
            made = torch.cat([self._sampled(some, start) for some in torch.split(codes, at_once)])[..., :frames]
        if not bool(made.isfinite().all()):
            raise MicroMusicGenError(f"{self.source} gives values that are not finite; use another checkpoint of it")
        return made

    def _sampled(self, codes: torch.Tensor, start: int) -> torch.Tensor:
        used = [codes.shape[1]] * len(codes)
        aligned = code_condition(self.codec, codes, used, self.counts).to(self._device)
        frames = codes.shape[-1]
        noise = FrameNoise(self.params.seed, self.model.channels).window(start, frames)
        return sample(self.model, Told(aligned), num_frames=frames, params=self.params, noise=noise, dtype=self.dtype)


class DiffusionStream:
    """Codes in, refined audio out: a window's sound comes when its last frame is known.

    Invariant: what all pushes and `finish` have given, put together, is `decode` of all codes.
    """

    def __init__(self, codec: DiffusionCodec, num_clips: int) -> None:
        self._codec = codec
        self._windows = LatentWindows(codec._refine, codec.window_frames)
        self._inner: LatentStream = latent_stream(codec.codec, num_clips)
        self._nothing = torch.zeros(num_clips, codec.channels, 0)

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the samples [B, C, m] that are final now that codes [B, K, n] have come; mostly none."""
        return self._played(self._windows.push(self._codec._checked(codes)))

    def finish(self) -> torch.Tensor:
        """Gives the samples [B, C, m] that were still waiting for what might follow."""
        wav = self._played(self._windows.finish())
        rest = self._inner.finish()
        return torch.cat([wav.to(rest.device), rest], dim=-1)

    def _played(self, latents: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([self._inner.push_latents(piece) for piece in latents], dim=-1) if latents else self._nothing


@contextlib.contextmanager
def _explained(num_clips: int, num_frames: int, device: torch.device) -> Iterator[None]:
    """Turns what torch says about too little memory into one line."""
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in words:
            raise
        raise MicroMusicGenError(
            f"refining {num_clips} clips of {num_frames} frames needs more memory than {device} has left; "
            "play through decoder plain, or make fewer clips at once"
        ) from error
