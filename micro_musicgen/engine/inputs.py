"""What a caller hands to a model, checked and brought into the model's form: sounds to continue, texts, counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from micro_musicgen.audio.io import resample
from micro_musicgen.conditioners.base import ConditionTensors
from micro_musicgen.contracts import Codec
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.upstream import audiocraft_module

if TYPE_CHECKING:
    pass


def check_count(num_samples: int) -> int:
    """Gives `num_samples` when it is a usable number of clips.

    Raises:
        MicroMusicGenError: it is below 1.
    """
    if num_samples < 1:
        raise MicroMusicGenError(f"{num_samples} clips were asked for; ask for 1 or more")
    return num_samples


def prompt_codes(prompt: torch.Tensor, sample_rate: int, codec: Codec, *, num_frames: int) -> torch.Tensor:
    """Gives the codes [B, K, T] of audio [B, C, L] or [C, L] that a clip of `num_frames` frames is to begin with.

    The audio is resampled and mixed to the codec's channels. What is left over after the last whole frame is cut off:
    padded, it would end in a moment of silence that the model then continues.

    Raises:
        MicroMusicGenError: wrong axes, channels or rate, NaN, shorter than a frame, or not shorter than the clip.
    """
    wav = _to_codec_format(_checked(prompt, sample_rate), sample_rate, codec)
    frames = wav.shape[-1] // codec.hop_samples
    if frames < 1:
        raise MicroMusicGenError(
            f"the prompt of {wav.shape[-1]} samples is shorter than one frame of {codec.hop_samples}; give a longer one"
        )
    if frames >= num_frames:
        raise MicroMusicGenError(
            f"the prompt of {frames / codec.frame_rate:g} s leaves nothing to add to a clip of "
            f"{num_frames / codec.frame_rate:g} s; raise the duration or cut the prompt"
        )
    return codec.encode(wav[..., : frames * codec.hop_samples])


def _checked(prompt: torch.Tensor, sample_rate: int) -> torch.Tensor:
    wav = prompt[None] if prompt.dim() == 2 else prompt
    if wav.dim() != 3 or not wav.is_floating_point():
        kind = f"{tuple(prompt.shape)} {prompt.dtype}"
        raise MicroMusicGenError(f"a prompt has the axes [B, C, L] or [C, L] and is float; got {kind}")
    if wav.shape[1] not in (1, 2):
        raise MicroMusicGenError(f"a prompt has 1 or 2 channels, got {wav.shape[1]} (axes are [B, C, L])")
    if not wav.shape[0] or not wav.shape[2]:
        raise MicroMusicGenError(
            f"the prompt is empty: {tuple(prompt.shape)}; give audio, or generate without a prompt"
        )
    if not sample_rate > 0:
        raise MicroMusicGenError(f"prompt sample rate {sample_rate} must be above 0 Hz")
    if not wav.isfinite().all():
        raise MicroMusicGenError("the prompt holds NaN or infinite samples; give clean audio")
    return wav.detach()


def _to_codec_format(wav: torch.Tensor, sample_rate: int, codec: Codec) -> torch.Tensor:
    if wav.shape[1] != codec.channels:
        wav = wav.mean(dim=1, keepdim=True).expand(-1, codec.channels, -1)
    if sample_rate == codec.sample_rate:
        return wav.float()
    clips = [
        [resample(channel.numpy(), sample_rate, codec.sample_rate) for channel in clip] for clip in wav.float().cpu()
    ]
    return torch.stack([torch.stack([torch.from_numpy(channel) for channel in clip]) for clip in clips])


class Conditioner(Protocol):
    """Turns what a caller says into what the network hears."""

    def tensors(self, descriptions: Sequence[str | None]) -> tuple[ConditionTensors, ConditionTensors]:
        """Gives the conditions of B clips, and those of B clips that nothing was said about."""


class Unconditioned:
    """For models that were trained without conditions."""

    def tensors(self, descriptions: Sequence[str | None]) -> tuple[ConditionTensors, ConditionTensors]:
        """Gives nothing.

        Raises:
            MicroMusicGenError: something was said.
        """
        texts = [text for text in descriptions if text is not None]
        if texts:
            raise MicroMusicGenError(
                f"this model was trained without text, so {texts[0]!r} means nothing to it; use generate_unconditional"
            )
        return {}, {}


class UpstreamConditioner:
    """audiocraft's conditioners, as they were trained with the model. Knows text."""

    def __init__(self, provider: Any) -> None:
        known = set(provider.conditioners)
        others = ", ".join(sorted(known - set(provider.text_conditions)))
        self.provider = provider
        self.fault = f"this model also listens to {others}, which can't be given here yet" if others else None
        self.names = sorted(known)

    @torch.inference_mode()
    def tensors(self, descriptions: Sequence[str | None]) -> tuple[ConditionTensors, ConditionTensors]:
        """Gives the conditions, padded to the longest as audiocraft pads them: both halves together.

        Raises:
            MicroMusicGenError: a text for a model that knows none, or a model that needs something else than text.
        """
        if self.fault is not None:
            raise MicroMusicGenError(self.fault)
        if "description" not in self.names:
            Unconditioned().tensors(descriptions)
        attributes = audiocraft_module("modules.conditioners").ConditioningAttributes
        silent: dict[str, str | None] = dict.fromkeys(self.names)
        said = [attributes(text={**silent, "description": text}) for text in descriptions]
        unsaid = [attributes(text=dict(silent)) for _ in descriptions]
        found = self.provider(self.provider.tokenize([*said, *unsaid]))
        half = len(descriptions)
        conditional = {name: (x[:half], mask[:half]) for name, (x, mask) in found.items()}
        return conditional, {name: (x[half:], mask[half:]) for name, (x, mask) in found.items()}
