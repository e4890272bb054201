"""From what a call asks for to what is computed: everything checked, nothing begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from micro_musicgen.conditioners.base import ConditionTensors
from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.conditions import Heard, fused_rows, guided_rows
from micro_musicgen.engine.inputs import check_count, checked_texts, no_sounds
from micro_musicgen.engine.loops import check_beats, told_bars
from micro_musicgen.engine.memory import check_memory
from micro_musicgen.engine.sampler import clip_generators, fresh_seed
from micro_musicgen.engine.sounds import AudioPrompts, sound_codes
from micro_musicgen.engine.state import LMState
from micro_musicgen.engine.windows import CodeRequest, Windows
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    from micro_musicgen.engine.player import Player

CondTensors = tuple[ConditionTensors, ConditionTensors]
"""Of the clips, and of clips that nothing is said about."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What one call asks for. prompt: codes [B, K, T] to begin with. descriptions, audio_prompts (at `audio_sr` Hz, the
    model's by default): what the clips are to be like; or, instead of both, conditions that are embedded already.
    """

    params: GenerationParams
    num_clips: int
    prompt: torch.Tensor | None = None
    descriptions: Sequence[str | None] | None = None
    audio_prompts: AudioPrompts | None = None
    audio_sr: int | None = None
    conditions: CondTensors | None = None
    first_clip: int = 0


def check_params(model: Player, params: GenerationParams) -> None:
    """Refuses parameters that mean nothing to this model.

    Raises:
        MicroMusicGenError: naming the value.
    """
    check_beats(model.beat_time, params)
    card = model.runner.network.arch.card
    if params.top_k > card:
        raise MicroMusicGenError(
            f"top_k {params.top_k} is more than the {card} codes that there are; give 0 for all of them"
        )
    if params.cfg_coef_audio is not None and not model.conditioner.audio:
        raise MicroMusicGenError(
            f"cfg_coef_audio {params.cfg_coef_audio:g} means nothing to a model without audio prompts; leave it out"
        )


def make_request(model: Player, wish: Wish) -> CodeRequest:
    """Gives what to compute; what is said is encoded and embedded here, once. Sets the model's `last_seed`.

    Raises:
        MicroMusicGenError: something can't be had or used, or there is too little memory.
    """
    params, network = wish.params, model.runner.network
    check_count(wish.num_clips)
    check_params(model, params)
    num_frames = model.frames_of(params)
    if wish.prompt is not None and wish.prompt.shape[-1] >= num_frames:
        raise MicroMusicGenError(
            f"the prompt of {wish.prompt.shape[-1]} frames leaves nothing to add to a clip of {num_frames}; "
            "raise the duration or cut the prompt"
        )
    rows = guided_rows(_heard(model, wish), params.cfg_coef, params.cfg_coef_audio)
    fused = fused_rows(network.arch, rows, device=model.device, dtype=network.dtype)
    rolls = network.arch.is_shift_invariant and not fused.prefix_length and network.arch.past_context is None
    if fused.added is not None and model.beat_time is not None:
        rolls = False  # what is said of a clip's start is true of windows that start on bars
    shape = model.windows(params.extend_stride_s, can_roll=rolls)
    _check_memory(model, num_frames, wish.num_clips * (1 + len(rows.coefs)), shape, fused)
    model.last_seed = fresh_seed() if params.seed is None else params.seed
    return CodeRequest(
        params=params.updated(bars=None, bpm=None, loop=False, keep_pitch=False),  # those are no matter of sampling
        generators=clip_generators(model.last_seed, wish.num_clips, first_clip=wish.first_clip),
        num_frames=num_frames,
        shape=shape,
        prompt=None if wish.prompt is None else wish.prompt.to(model.device),
        conditions=fused,
        coefs=rows.coefs,
    )


def _heard(model: Player, wish: Wish) -> Heard:
    if wish.conditions is not None:
        conditional, null = wish.conditions
        return Heard(conditional=conditional, null=null, audio=model.conditioner.audio)
    texts = checked_texts(wish.descriptions, wish.num_clips)
    sounds: list[torch.Tensor | None] = [None] * wish.num_clips
    if wish.audio_prompts is not None and not model.conditioner.audio:
        if any(sound is not None for sound in wish.audio_prompts):
            raise no_sounds()
    elif wish.audio_prompts is not None:
        rate = model.sample_rate if wish.audio_sr is None else wish.audio_sr
        most = model.conditioner.sound_frames
        sounds = sound_codes(wish.audio_prompts, rate, model.hearing(), num_clips=wish.num_clips, max_frames=most)
    return model.conditioner.heard(texts, sounds, told_bars(model.beat_time, wish.params))


def _check_memory(model: Player, num_frames: int, rows: int, shape: Windows, conditions: Fused) -> None:
    steps = model.runner.plan(min(num_frames, shape.window)).num_steps + conditions.prefix_length
    if shape.rolls and num_frames > shape.window:
        steps *= 2
    crossed = 0 if conditions.cross is None else conditions.cross.shape[1]
    needed = LMState.num_bytes(model.runner.network, rows, steps, crossed)
    check_memory(needed, f"what {rows} rows of {steps} steps have heard", model.device)
