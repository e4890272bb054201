"""What a run plays: the engine around its weights, and the clips of its stage `generate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from micro_musicgen.lm.builder import lm_config

if TYPE_CHECKING:
    from micro_musicgen.engine.engine import MicroMusicGen
    from micro_musicgen.solvers.lm import LMSolver

NAME_LENGTH = 40


@dataclass(frozen=True)
class Sample:
    """One clip to make. label: part of its file's name, the same in every epoch."""

    label: str
    text: str | None = None
    sound: torch.Tensor | None = None


def make_player(solver: LMSolver, duration_s: float) -> MicroMusicGen:
    """Gives the engine around the weights in place, which samples as the section `generate` says."""
    from micro_musicgen.engine.codec import playing
    from micro_musicgen.engine.engine import MicroMusicGen
    from micro_musicgen.engine.inputs import OwnConditioner

    sampling = solver.cfg.generate.lm
    codec = playing(solver.codec)
    player = MicroMusicGen(
        lm_config(solver.cfg),
        solver.model.state_dict(),
        codec,
        window_s=float(solver.cfg.dataset.segment_duration),
        device=solver.device,
        conditioner=None if solver.conditions is None else OwnConditioner(solver.conditions.provider),
        beat_time=None if solver.time is None else solver.time.beat_time(codec.hop_samples),
    )
    if player.beat_time is not None:  # nominal seconds to those at the usual tempo
        duration_s *= player.codec.frame_rate / player.frame_rate
    player.set_generation_params(
        use_sampling=sampling.use_sampling,
        temperature=sampling.temp,
        top_k=min(sampling.top_k, solver.spec.card),
        top_p=sampling.top_p,
        duration=duration_s,
        seed=solver.cfg.seed,
    )
    return player


def samples(solver: LMSolver) -> list[Sample]:
    """Gives the clips of an epoch: one for each of `generate.prompts` where the model listens to text, sounds of the
    validation tracks where it listens to sounds, `generate.num_samples` unprompted ones where to neither.
    """
    section, conditions = solver.cfg.generate, solver.conditions
    if conditions is None:
        return [Sample(str(index)) for index in range(section.num_samples)]
    found = []
    if conditions.provider.names("text"):
        found += [Sample(f"{index}_{file_label(text)}", text=str(text)) for index, text in enumerate(section.prompts)]
    if conditions.provider.names("audio"):
        batches = solver.crops["valid"].valid_crops(
            section.num_samples, section.num_samples, prompt_frames=conditions.prompt_frames
        )
        sounds = [sound for crops in batches for sound in crops.prompts if sound is not None]
        found += [Sample(f"like_valid_{index}", sound=sound) for index, sound in enumerate(sounds)]
    return found or [Sample(str(index)) for index in range(section.num_samples)]


def play(player: MicroMusicGen, wanted: Sequence[Sample]) -> torch.Tensor:
    """Gives one clip [C, L] per sample, stacked as [B, C, L]."""
    return player.decode(make_codes(player, [(sample.text, sample.sound) for sample in wanted]))


def make_codes(player: MicroMusicGen, said: Sequence[tuple[str | None, torch.Tensor | None]]) -> torch.Tensor:
    """Gives codes [B, K, T] of clips about which (text, codes of a sound) is said, each possibly None."""
    texts, sounds = [text for text, _ in said], [sound for _, sound in said]
    return player.codes(len(said), descriptions=texts, audio_prompts=sounds)


def file_label(text: str) -> str:
    """Gives a text as part of a file's name: letters of any language stay, the rest becomes `_`."""
    return re.sub(r"[^\w-]+", "_", str(text).lower()).strip("_")[:NAME_LENGTH].strip("_") or "text"
