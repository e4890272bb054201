"""Sounds that a caller hands to a model, checked and turned into codes: to be continued, or to be listened to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from micro_musicgen.audio.io import resample
from micro_musicgen.contracts import Codec
from micro_musicgen.errors import MicroMusicGenError

AudioPrompts = torch.Tensor | Sequence[torch.Tensor | None]
"""[B, C, L] or a list of [C, L], None for clips without; [1, C, L] or [C, L] for all clips alike. Codes, int64 [K, T],
stand for a sound that is encoded already."""

SILENCE = 1e-4
"""A sound whose peak is below this (-80 dB of full scale) tells a model nothing."""


def prompt_codes(prompt: torch.Tensor, sample_rate: int, codec: Codec, *, num_frames: int) -> torch.Tensor:
    """Gives the codes [B, K, T] of audio [B, C, L] or [C, L] that a clip of `num_frames` frames is to begin with.

    The audio is resampled and mixed to the codec's channels. What is left over after the last whole frame is cut off:
    padded, it would end in a moment of silence that the model then continues.

    Raises:
        MicroMusicGenError: wrong axes, channels or rate, NaN, shorter than a frame, or not shorter than the clip.
    """
    wav = _whole_frames(prompt, sample_rate, codec, "the prompt")
    frames = wav.shape[-1] // codec.hop_samples
    if frames >= num_frames:
        raise MicroMusicGenError(
            f"the prompt of {frames / codec.frame_rate:g} s leaves nothing to add to a clip of "
            f"{num_frames / codec.frame_rate:g} s; raise the duration or cut the prompt"
        )
    return codec.encode(wav)


def sound_codes(
    prompts: AudioPrompts | None, sample_rate: int, codec: Codec, *, num_clips: int, max_frames: int | None = None
) -> list[torch.Tensor | None]:
    """Gives for each clip the codes [K, T] of the sound that it is to be like, None for those without.

    Resampled, mixed and cut to whole frames as in `prompt_codes`, and to the first `max_frames`. Encoded one by one, so
    that a clip's codes don't depend on the others' lengths; a sound that is given more than once is encoded once.

    Raises:
        MicroMusicGenError: more or fewer sounds than clips, or one that can't be used: wrong axes, channels or rate,
            NaN, silent, or shorter than a frame.
    """
    if prompts is None:
        return [None] * num_clips
    made: dict[int, torch.Tensor] = {}
    found: list[torch.Tensor | None] = []
    for number, sound in enumerate(_one_each(prompts, num_clips), 1):
        if sound is not None and id(sound) not in made:
            codes = _codes_of(sound, sample_rate, codec, max_frames, f"audio prompt {number}")
            made[id(sound)] = codes[:, :max_frames]
        found.append(None if sound is None else made[id(sound)])
    return found


def _codes_of(sound: torch.Tensor, sample_rate: int, codec: Codec, max_frames: int | None, what: str) -> torch.Tensor:
    """Gives the codes [K, T] of one sound."""
    if sound.dtype == torch.int64 and sound.dim() == 2 and len(sound) == codec.num_codebooks:
        return sound
    if sound.dim() != 2:
        raise MicroMusicGenError(f"{what} has the shape {tuple(sound.shape)}; each has the axes [C, L]")
    wav = _whole_frames(sound, sample_rate, codec, what)
    if max_frames is not None:
        wav = wav[..., : max_frames * codec.hop_samples]
    if float(wav.abs().max()) < SILENCE:
        raise MicroMusicGenError(f"{what} is silent (peak below -80 dB); give a sound, or leave it out")
    return codec.encode(wav)[0]


def count_sounds(prompts: AudioPrompts) -> int:
    """Gives how many clips audio prompts are for when nothing else says so."""
    return 1 if isinstance(prompts, torch.Tensor) and prompts.dim() < 3 else len(prompts)


def _one_each(prompts: AudioPrompts, num_clips: int) -> list[torch.Tensor | None]:
    if isinstance(prompts, torch.Tensor):
        if prompts.dim() not in (2, 3):
            raise MicroMusicGenError(
                f"audio prompts have the axes [B, C, L] or [C, L]; got {tuple(prompts.shape)} {prompts.dtype}"
            )
        if prompts.dim() == 2 or len(prompts) == 1:
            return [prompts if prompts.dim() == 2 else prompts[0]] * num_clips
        prompts = list(prompts)
    if isinstance(prompts, str) or not all(each is None or isinstance(each, torch.Tensor) for each in prompts):
        raise MicroMusicGenError("audio prompts are tensors [C, L], one per clip, or one [1, C, L]; read files first")
    if len(prompts) != num_clips:
        raise MicroMusicGenError(
            f"{len(prompts)} audio prompts for {num_clips} clips; give one each (None for clips without), "
            "or one tensor [1, C, L] for all"
        )
    return list(prompts)


def _whole_frames(sound: torch.Tensor, sample_rate: int, codec: Codec, what: str) -> torch.Tensor:
    """Gives audio [B, C, L] in the codec's format, L a multiple of its hop."""
    wav = _to_codec_format(_checked(sound, sample_rate, what), sample_rate, codec)
    frames = wav.shape[-1] // codec.hop_samples
    if frames < 1:
        raise MicroMusicGenError(
            f"{what} of {wav.shape[-1]} samples is shorter than one frame of {codec.hop_samples}; give a longer one"
        )
    return wav[..., : frames * codec.hop_samples]


def _checked(sound: torch.Tensor, sample_rate: int, what: str) -> torch.Tensor:
    wav = sound[None] if sound.dim() == 2 else sound
    if wav.dim() != 3 or not wav.is_floating_point():
        kind = f"{tuple(sound.shape)} {sound.dtype}"
        raise MicroMusicGenError(f"{what} has the axes [B, C, L] or [C, L] and is float; got {kind}")
    if wav.shape[1] not in (1, 2):
        raise MicroMusicGenError(f"{what} has 1 or 2 channels, got {wav.shape[1]} (axes are [B, C, L])")
    if not wav.shape[0] or not wav.shape[2]:
        raise MicroMusicGenError(f"{what} is empty: {tuple(sound.shape)}; give audio, or generate without a prompt")
    if not sample_rate > 0:
        raise MicroMusicGenError(f"{what}: sample rate {sample_rate} must be above 0 Hz")
    if not wav.isfinite().all():
        raise MicroMusicGenError(f"{what} holds NaN or infinite samples; give clean audio")
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
