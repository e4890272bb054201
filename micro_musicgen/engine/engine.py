"""audiocraft's API over the engine: a model to play, in the words that its users know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import torch

from micro_musicgen.engine.device import pick_device
from micro_musicgen.engine.inputs import check_count, checked_texts
from micro_musicgen.engine.loops import check_beats
from micro_musicgen.engine.player import Player
from micro_musicgen.engine.request import Wish, check_params
from micro_musicgen.engine.sounds import AudioPrompts, count_sounds, prompt_codes
from micro_musicgen.errors import MicroMusicGenError

Clips = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Audio [B, C, L], or audio and the codes [B, K, T] that it was decoded from."""


class MicroMusicGen(Player):
    """A model by audiocraft's names. What it is told (`descriptions`, `audio_prompts`) is the same in every call:

    descriptions: one text per clip; None, or an empty one, says nothing. audio_prompts: sounds that the clips are to be
    like, float [B, C, L] or a list of [C, L] or None, one per clip; one [1, C, L] or [C, L] is for all clips. At
    `audio_sr` Hz (the model's rate by default), of 1 or 2 channels; a model listens to the first seconds of them.
    cfg_coef, cfg_coef_audio: guidance of this call, instead of the parameters'. With both, and both text and sound
    said, the two are guided apart: u + cfg_coef_audio (a - u) + cfg_coef (at - a). A model that was trained with
    conditions and is told nothing plays as if it had none.
    """

    @classmethod
    def get_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device | None = None,
        precision: str = "auto",
        decoder: str | Path | None = None,
        mode: str = "auto",
        *,
        decoder_steps: int | None = None,
        decoder_guidance: float | None = None,
        decoder_noise: float | None = None,
    ) -> MicroMusicGen:
        """Gives the model that `name` refers to: a release folder (ours or audiocraft's), a run, or a Hub id.

        device: None takes the best there is. precision: auto, fp32 (the reference), bf16 or int8. mode: see `__init__`.
        decoder: how codes become sound: "plain" or None, the codec alone; "diffusion", the release's own diffusion
        decoder; or the run or release of another. decoder_steps, decoder_guidance: of that one's sampler, as it was
        made with by default. decoder_noise: what it starts from: 1 is as trained, less is nearer to the mean.

        Raises:
            MicroMusicGenError: it does not exist, is damaged or incomplete; an unknown device, precision or mode; or a
                decoder that there is not, or of other codes.
        """
        from micro_musicgen.engine.load import DecoderWish, load_player

        wish = DecoderWish(reference=decoder, steps=decoder_steps, guidance=decoder_guidance, noise_scale=decoder_noise)
        return load_player(cls, name, pick_device(device), precision=precision, mode=mode, decoder=wish)

    @overload
    def generate_unconditional(
        self, num_samples: int, progress: bool = ..., return_tokens: Literal[False] = ...
    ) -> torch.Tensor: ...

    @overload
    def generate_unconditional(
        self, num_samples: int, progress: bool = ..., *, return_tokens: Literal[True]
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def generate_unconditional(self, num_samples: int, progress: bool = False, return_tokens: bool = False) -> Clips:
        """Gives `num_samples` clips [B, C, L], and with `return_tokens` their codes [B, K, T] beside them.

        Raises:
            MicroMusicGenError: `num_samples` below 1.
        """
        return self._play(self.codes(check_count(num_samples), progress=progress), return_tokens)

    def generate(
        self,
        descriptions: Sequence[str | None] | None,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        audio_prompts: AudioPrompts | None = None,
        audio_sr: int | None = None,
        cfg_coef: float | None = None,
        cfg_coef_audio: float | None = None,
    ) -> Clips:
        """Gives one clip [C, L] per text, stacked as [B, C, L]; see the class for what can be said.

        Raises:
            MicroMusicGenError: nothing to count clips by, something for a model that was trained without, a sound that
                can't be used, or more or fewer of one than of the other.
        """
        codes = self.codes(
            _count(descriptions, audio_prompts),
            descriptions=descriptions,
            audio_prompts=audio_prompts,
            audio_sr=audio_sr,
            cfg_coef=cfg_coef,
            cfg_coef_audio=cfg_coef_audio,
            progress=progress,
        )
        return self._play(codes, return_tokens)

    def generate_with_audio_prompt(
        self,
        descriptions: Sequence[str | None] | None,
        prompt_wavs: AudioPrompts,
        prompt_sample_rate: int,
        progress: bool = False,
        return_tokens: bool = False,
    ) -> Clips:
        """Gives clips [B, C, L] that are like the sounds `prompt_wavs`, without beginning with them.

        descriptions: None for sounds alone.

        Raises:
            MicroMusicGenError: as `generate`.
        """
        return self.generate(
            descriptions, progress, return_tokens, audio_prompts=prompt_wavs, audio_sr=prompt_sample_rate
        )

    def generate_continuation(
        self,
        prompt: torch.Tensor,
        prompt_sample_rate: int,
        descriptions: Sequence[str | None] | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        *,
        audio_prompts: AudioPrompts | None = None,
        audio_sr: int | None = None,
        cfg_coef: float | None = None,
        cfg_coef_audio: float | None = None,
    ) -> Clips:
        """Gives clips [B, C, L] that begin with `prompt` [B, C, L'] or [C, L'] and go on; the duration counts both.

        Raises:
            MicroMusicGenError: a prompt that can't be used or is not shorter than the clip; a text too many or few.
        """
        codes = prompt_codes(prompt, prompt_sample_rate, self.hearing(), num_frames=self.num_frames)
        if descriptions is not None and len(descriptions) != len(codes):
            raise MicroMusicGenError(f"{len(descriptions)} texts for {len(codes)} prompts; give one each")
        made = self.codes(
            len(codes),
            prompt=codes,
            descriptions=descriptions,
            audio_prompts=audio_prompts,
            audio_sr=audio_sr,
            cfg_coef=cfg_coef,
            cfg_coef_audio=cfg_coef_audio,
            progress=progress,
        )
        return self._play(made, return_tokens)

    def stream(
        self,
        duration: float | None = None,
        prompt: torch.Tensor | None = None,
        prompt_sample_rate: int | None = None,
        chunk_s: float = 0.5,
        descriptions: Sequence[str | None] | None = None,
        *,
        audio_prompts: AudioPrompts | None = None,
        audio_sr: int | None = None,
        cfg_coef: float | None = None,
        cfg_coef_audio: float | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yields audio [B, C, L] while it is being made; concatenated, the chunks are what the other calls give.

        duration: seconds, as the parameters say by default. prompt: audio [B, C, L'] or [C, L'] to begin with, which
        is heard again first. chunk_s: new sound per chunk; a chunk comes when its codes are final, which is a few
        frames (the pattern's delay and what the codec has to know of the future) after its last moment.

        Raises:
            MicroMusicGenError: before the first chunk, what the other calls raise; a chunk that is not above 0 s.
        """
        if not chunk_s > 0:
            raise MicroMusicGenError(f"chunk of {chunk_s:g} s must be above 0")
        params = self.guided(cfg_coef, cfg_coef_audio)
        if duration is not None:
            params = params.updated(duration_s=duration, bars=None)
        codes = None
        if prompt is not None:
            rate = self.sample_rate if prompt_sample_rate is None else prompt_sample_rate
            codes = prompt_codes(prompt, rate, self.hearing(), num_frames=self.frames_of(params))
        said = descriptions is not None or audio_prompts is not None
        wish = Wish(
            params=params,
            num_clips=len(codes) if codes is not None else _count(descriptions, audio_prompts) if said else 1,
            prompt=codes,
            descriptions=descriptions,
            audio_prompts=audio_prompts,
            audio_sr=audio_sr,
        )
        return self.chunks(wish, chunk_s)

    def generate_loop(
        self,
        num_samples: int = 1,
        *,
        bars: int | None = None,
        bpm: float | None = None,
        descriptions: Sequence[str | None] | None = None,
        keep_pitch: bool = False,
        progress: bool = False,
        return_tokens: bool = False,
    ) -> Clips:
        """Gives loops [B, C, L] of whole bars: played again and again, the end of each flows into its start.

        bars: the window by default. bpm: as the model was trained by default; L is their length at it, to the sample.
        All other parameters are the present ones, which stay as they are.

        Raises:
            MicroMusicGenError: a model in clock time, or what `set_generation_params` and `generate` raise.
        """
        if self.beat_time is None:
            check_beats(None, self.params.updated(loop=True))
        kept = self.params
        assert self.beat_time is not None
        bars = max(1, self._window_frames // self.beat_time.frames_per_bar) if bars is None else bars
        wanted = kept.updated(bars=bars, bpm=kept.bpm if bpm is None else bpm, loop=True, keep_pitch=keep_pitch)
        check_params(self, wanted)
        self.params = wanted
        try:
            count = len(descriptions) if descriptions is not None else check_count(num_samples)
            return self._play(self.codes(count, descriptions=descriptions, progress=progress), return_tokens)
        finally:
            self.params = kept

    def _play(self, codes: torch.Tensor, return_tokens: bool) -> Clips:
        wav = self.decode(codes)
        return (wav, codes) if return_tokens else wav


def _count(descriptions: Sequence[str | None] | None, audio_prompts: AudioPrompts | None) -> int:
    """Gives how many clips are meant: as many as texts, or else as sounds."""
    if descriptions is not None:
        return len(checked_texts(descriptions))
    if audio_prompts is None:
        raise MicroMusicGenError("nothing was said to generate from; give descriptions, or use generate_unconditional")
    return count_sounds(audio_prompts)
