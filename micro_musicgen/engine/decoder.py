"""Codes to audio without audiocraft: any EnCodec that `codec.builder` builds, at once or as a stream.

A decoder is made straight from a codec's config and weights. `decode` is a stream whose pieces are put together, so
the two agree by construction; memory is a fixed working set beside the result, however long the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from micro_musicgen.engine.activation import Activation
from micro_musicgen.engine.convolution import Conv, Kit, Line, Weights
from micro_musicgen.engine.decoder_config import can_stream, parse_decoder
from micro_musicgen.engine.decoder_spec import DecoderSpec, check_state, classic_names, codebook_name
from micro_musicgen.engine.linear import fbgemm_is_there
from micro_musicgen.engine.lstm import DeviceLstm, Gates, Lstm
from micro_musicgen.engine.seanet import Upsampler, Voice
from micro_musicgen.errors import MicroMusicGenError

PRECISIONS = ("fp32", "bf16", "auto")
BLOCK_FRAMES = 512
"""Frames that the first convolution and the recurrent layers take at once."""
BLOCK_FLOATS = 1 << 20
"""Numbers that a stage makes at once, 4 MB in fp32."""
MAX_CLIPS = 16
"""Clips that go through the recurrent layers together."""

MIN_INT8_WIDTH = 256
"""Recurrent layers narrower than this stay in the cache as they are: fewer bits would make nothing faster."""
MIN_INT8_DB = 52.0
"""Distance from fp32 that recurrent layers in int8 must keep on this very codec; 40 would be inaudible."""
TRIAL_FRAMES = 16
"""Frames of that trial. Errors grow over the first 50: 48 frames came out 2 dB below 16."""


def lstm_kind(precision: str, width: int) -> str:
    """Gives the precision of the recurrent weights to try. Convolutions are fp32 unless bf16 is asked for.

    "auto" is a rule, not a measurement of time, so that a machine gives the same audio on every day: int8 where an x86
    CPU has the kernel and the layer is wide enough to matter. Whether it stays is for the codec's own weights to say.
    """
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and fbgemm_is_there()
    return "int8" if precision == "auto" and fast and width >= MIN_INT8_WIDTH else "fp32"


def distance_db(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Gives the scale-invariant signal-to-distortion ratio of `found`, in dB."""
    target = wanted * ((found * wanted).sum() / wanted.square().sum())
    return float(10 * torch.log10(target.square().sum() / (found - target).square().sum()))


class CodecDecoder:
    """The decoding half of an EnCodec; see `contracts.Codec` for the attributes.

    Invariants: weights never change after construction; nothing random; a clip's samples do not depend on the batch
    that it rides in.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        state: Mapping[str, torch.Tensor],
        *,
        device: str | torch.device,
        precision: str,
        source: str,
    ) -> None:
        """Takes what `from_state` has checked."""
        self.spec, self.precision = spec, precision
        self.device = torch.device(device)
        self.sample_rate, self.channels, self.hop_samples = spec.sample_rate, spec.channels, spec.hop_samples
        self.frame_rate = spec.sample_rate / spec.hop_samples
        self.num_codebooks, self.cardinality = spec.num_codebooks, spec.cardinality
        self.latent_dim, self.lookahead_frames = spec.dimension, spec.lookahead_frames

        def exact(name: str) -> torch.Tensor:
            # A copy, so that the codec's own tensors can go or change.
            return state[name].detach().to(self.device, torch.float32, copy=True)

        activation = Activation(*spec.activation, source=source)
        final = None if spec.final_activation is None else Activation(*spec.final_activation, source=source)
        kit = Kit(exact, torch.float32, spec.pad_mode, activation)
        self.codebooks = [exact(codebook_name(level)) for level in range(spec.num_codebooks)]
        self.first = Conv(spec.first, kit, None)
        self.lstm = self._lstm(exact)
        kit = replace(kit, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
        self.upsampler = Upsampler(spec, kit, final, block_floats=BLOCK_FLOATS)

    def _lstm(self, weights: Weights) -> Lstm | DeviceLstm | None:
        """Gives the recurrent layers; int8 ones only if codes drawn by a fixed lot come out near enough to fp32's."""
        spec = self.spec
        if not spec.lstm_layers:
            return None
        if self.device.type != "cpu":
            return DeviceLstm(weights, spec.lstm_name, spec.lstm_layers)
        gates = [Gates.read(weights, spec.lstm_name, layer) for layer in range(spec.lstm_layers)]
        if lstm_kind(self.precision, spec.first.out_channels) == "int8":
            coarse = Lstm(gates, "int8")
            lot = torch.Generator().manual_seed(0)
            codes = torch.randint(spec.cardinality, (1, spec.num_codebooks, TRIAL_FRAMES), generator=lot)
            x = self.first(Line(), self._rows_of_codes(codes)[0], True)[None]
            found, wanted = (layers(x, layers.start(1, x)) for layers in (coarse, Lstm(gates, "plain")))
            if distance_db(found, wanted) >= MIN_INT8_DB:
                return coarse
        return Lstm(gates)

    @classmethod
    def from_state(
        cls,
        config: Mapping[str, Any],
        state: Mapping[str, torch.Tensor],
        *,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        source: str = "",
    ) -> CodecDecoder:
        """Gives the decoder of a codec's plain `config` and its `state` dict; what only an encoder needs is ignored.

        precision: fp32; auto, which may keep recurrent weights in int8 (see `lstm_kind`); or bf16, for all that is
        between the recurrent layers and the samples. source: where the codec is from, for messages.

        Raises:
            MicroMusicGenError: see `supports`; names or shapes differ from what the config says; unknown precision.
        """
        if precision not in PRECISIONS:
            raise MicroMusicGenError(f"unknown precision {precision!r}; use {', '.join(PRECISIONS)}")
        source = source or "the codec"
        named = classic_names(state)
        spec = parse_decoder(config, len(named), source=source)
        check_state(spec, {name: tuple(tensor.shape) for name, tensor in named.items()}, source=source)
        with torch.inference_mode():
            return cls(spec, named, device=device, precision=precision, source=source)

    @staticmethod
    def supports(config: Mapping[str, Any]) -> bool:
        """Says whether `config` describes a codec that this engine decodes; if not, audiocraft's modules do."""
        return can_stream(config)

    @torch.inference_mode()
    def codes_to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the latents [B, D, T] of codes [B, K, T]; fewer than all codebooks will do."""
        return self._rows_of_codes(self._checked(codes)).transpose(1, 2)

    @torch.inference_mode()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, T * hop_samples] of latents [B, D, T]."""
        rows = latents.to(self.device, torch.float32).transpose(1, 2)
        return self._whole(rows.shape[0], rows.shape[1], lambda clips, frames: rows[clips, frames])

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, T * hop_samples] of codes [B, K, T].

        Raises:
            MicroMusicGenError: not codes of this codec.
        """
        codes = self._checked(codes)
        return self._whole(
            codes.shape[0], codes.shape[2], lambda clips, frames: self._rows_of_codes(codes[clips, :, frames])
        )

    def stream(self, num_clips: int) -> DecoderStream:
        """Gives a stream for `num_clips` clips that advance together."""
        if num_clips < 1:
            raise MicroMusicGenError(f"{num_clips} clips cannot be streamed; ask for 1 or more")
        return DecoderStream(self, num_clips)

    def _whole(self, num_clips: int, num_frames: int, rows: Callable[[slice, slice], torch.Tensor]) -> torch.Tensor:
        wav = torch.empty(num_clips, self.channels, num_frames * self.hop_samples, device=self.device)
        for first in range(0, num_clips, MAX_CLIPS):
            clips = slice(first, min(first + MAX_CLIPS, num_clips))
            stream, done = DecoderStream(self, clips.stop - first), 0
            for start in range(0, num_frames, BLOCK_FRAMES):
                frames = slice(start, min(start + BLOCK_FRAMES, num_frames))
                made = stream._made(rows(clips, frames), last=frames.stop == num_frames)
                wav[clips, :, done : done + made.shape[2]] = made
                done += made.shape[2]
            assert done == wav.shape[2], (done, wav.shape)
        return wav

    def _checked(self, codes: torch.Tensor) -> torch.Tensor:
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= self.num_codebooks or codes.is_floating_point():
            raise MicroMusicGenError(
                f"codes of shape {tuple(codes.shape)} ({codes.dtype}) are not whole numbers "
                f"[clips, 1 to {self.num_codebooks} codebooks, frames]"
            )
        # Looking at the values waits for a GPU; there an index that is too high stops the process by itself.
        if codes.device.type == "cpu" and codes.numel():
            lowest, highest = (int(v) for v in codes.aminmax())
            if lowest < 0 or highest >= self.cardinality:
                raise MicroMusicGenError(f"codes from {lowest} to {highest} are outside 0 to {self.cardinality - 1}")
        return codes.to(self.device, torch.int64)

    def _rows_of_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives latents [B, T, D], summed from the first codebook to the last as audiocraft does."""
        rows = self.codebooks[0][codes[:, 0]]
        for level in range(1, codes.shape[1]):
            rows += self.codebooks[level][codes[:, level]]
        return rows


class DecoderStream:
    """Clips that advance together, frame by frame.

    Invariant: what all pushes and `finish` have given, put together, is `decode` of all codes.
    """

    def __init__(self, decoder: CodecDecoder, num_clips: int) -> None:
        self.decoder, self.num_clips = decoder, num_clips
        self._first = [Line() for _ in range(num_clips)]
        self._voices: list[Voice] = [decoder.upsampler.start() for _ in range(num_clips)]
        self._states = None if decoder.lstm is None else decoder.lstm.start(num_clips, decoder.codebooks[0])
        self._held = torch.empty(num_clips, decoder.channels, 0, device=decoder.device)
        self._frames = 0
        self._finished = False

    @torch.inference_mode()
    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the samples [B, C, m] that are final now that codes [B, K, n] have come; m whole frames, maybe 0."""
        codes = self.decoder._checked(codes)
        self._check(codes.shape[0])
        pieces = [
            self._made(self.decoder._rows_of_codes(codes[:, :, start : start + BLOCK_FRAMES]), last=False)
            for start in range(0, codes.shape[2], BLOCK_FRAMES)
        ]
        return self._whole_frames(pieces, last=False)

    @torch.inference_mode()
    def push_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives the samples [B, C, m] that are final now that latents [B, D, n] have come."""
        self._check(latents.shape[0])
        rows = latents.to(self.decoder.device, torch.float32).transpose(1, 2)
        pieces = [
            self._made(rows[:, start : start + BLOCK_FRAMES], last=False)
            for start in range(0, rows.shape[1], BLOCK_FRAMES)
        ]
        return self._whole_frames(pieces, last=False)

    def _check(self, num_clips: int) -> None:
        if num_clips != self.num_clips:
            raise MicroMusicGenError(f"codes of {num_clips} clips for a stream of {self.num_clips}")
        if self._finished:
            raise MicroMusicGenError("this stream is finished; open another one")

    @torch.inference_mode()
    def finish(self) -> torch.Tensor:
        """Gives the samples [B, C, m] that were still waiting for what might follow."""
        if self._finished:
            raise MicroMusicGenError("this stream is finished; open another one")
        self._finished = True
        nothing = torch.empty(self.num_clips, 0, self.decoder.latent_dim, device=self.decoder.device)
        return self._whole_frames([self._made(nothing, last=True)] if self._frames else [], last=True)

    def _made(self, rows: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Gives the samples [B, C, m] that are final now that latents `rows` [B, n, D] have come."""
        decoder = self.decoder
        self._frames += rows.shape[1]
        # Clip by clip: one has rows enough for a product, and its numbers are then its own in any batch.
        x = torch.stack([decoder.first(line, clip, last) for line, clip in zip(self._first, rows, strict=True)])
        if decoder.lstm is not None and self._states is not None and x.shape[1]:
            x = decoder.lstm(x, self._states)
        made = [decoder.upsampler(voice, clip, last) for voice, clip in zip(self._voices, x, strict=True)]
        return torch.stack(made).transpose(1, 2)

    def _whole_frames(self, pieces: list[torch.Tensor], *, last: bool) -> torch.Tensor:
        """Gives `pieces` behind what was held back, and holds back what is no whole frame yet."""
        wav = torch.cat([self._held, *pieces], dim=2)
        ready = wav.shape[2] - wav.shape[2] % self.decoder.hop_samples
        assert not last or ready == wav.shape[2], (ready, wav.shape)
        self._held = wav[:, :, ready:].clone()
        return wav[:, :, :ready]
