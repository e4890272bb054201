"""Asking a trained model for attributes, in words or by example, and having the judge say what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conditioning_models import CLIP_S

if TYPE_CHECKING:
    import torch
    from conditioning_classifier import Judge

    from micro_musicgen.engine.engine import MicroMusicGen

Said = Mapping[str, str]
BATCH = 32
TOLD_BY_SOUND = ("kit", "tempo")
"""What an audio prompt is asked to carry over."""


@dataclass(frozen=True)
class Answers:
    """What clips were asked to be and what the judge hears in them, clip by clip."""

    asked: tuple[Said, ...]
    heard: tuple[Said, ...]

    def hits(self, attribute: str) -> list[bool]:
        """Gives of each clip that was asked for the attribute whether it has it."""
        pairs = zip(self.asked, self.heard, strict=True)
        return [asked[attribute] == heard[attribute] for asked, heard in pairs if attribute in asked]

    @property
    def shares(self) -> list[float]:
        """Gives of each clip the share of the asked attributes that it has."""
        pairs = zip(self.asked, self.heard, strict=True)
        return [sum(asked[name] == heard[name] for name in asked) / len(asked) for asked, heard in pairs]

    @property
    def accuracy(self) -> float:
        """Gives the mean of `shares`."""
        return sum(self.shares) / len(self.shares)


@dataclass(frozen=True)
class Example:
    """A held-out sound [1, L] and what it is."""

    wav: torch.Tensor
    attributes: Said


def opposite(said: Said, others: Sequence[Said]) -> Said:
    """Gives of `others` one that differs from `said` in every attribute."""
    return next(each for each in others if all(each[name] != value for name, value in said.items()))


def ask(
    model: MicroMusicGen,
    judge: Judge,
    asked: Sequence[Said],
    *,
    guidance: float,
    texts: Sequence[str | None] | None = None,
    sounds: Sequence[torch.Tensor | None] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Answers:
    """Gives what comes out when clip n is told texts[n] and sounds[n], to be compared with asked[n].

    Nothing said at all gives unconditional clips. Equal seeds draw alike whatever is said.
    """
    heard: list[Said] = []
    for first in range(0, len(asked), BATCH):
        rows = slice(first, first + BATCH)
        size = len(asked[rows])
        model.set_generation_params(cfg_coef=guidance, duration=CLIP_S, seed=seed + first)
        if texts is None and sounds is None:
            wavs = model.generate_unconditional(size)
        else:
            told = list(texts[rows]) if texts is not None else [None] * size
            prompts = None if sounds is None else list(sounds[rows])
            wavs = model.generate(told, audio_prompts=prompts, audio_sr=None if prompts is None else judge.sample_rate)
        heard += judge.judge(wavs.cpu())
        if progress is not None:
            progress(len(heard))
    return Answers(tuple(asked), tuple(heard))


def examples(seed: int, num_tracks: int, *, length_s: float, sample_rate: int, num_kits: int) -> list[Example]:
    """Gives sounds of tracks that no model and no judge has heard."""
    import numpy as np
    import torch

    from micro_musicgen.audio.labelled import synthesise_labelled

    rng = np.random.default_rng(seed)
    found = []
    for track in synthesise_labelled(seed, num_tracks, 2 * length_s, sample_rate, num_kits=num_kits):
        length = round(length_s * sample_rate)
        start = int(rng.integers(max(1, len(track.wav) - length)))
        sound = torch.from_numpy(track.wav[start : start + length])[None]
        found.append(Example(sound, track.attributes))
    return found
