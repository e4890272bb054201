"""How the decoder is to be played: steps and noise, chosen on held-out clips that no table is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from common import say
from diffusion_quality import MUST_WIN, Clips, Scores, decoded, score

if TYPE_CHECKING:
    from micro_musicgen.engine.diffusion_codec import DiffusionCodec

STEPS = (2, 4, 8, 20)
NOISES = (0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Play:
    """How a decoder is sampled. steps: of its own sampler. noise: that it starts from."""

    steps: int
    noise: float


Relative = tuple[float, float]
"""Mel and Frechet distance as shares of the plain decoder's, means over the numbers of codebooks that must win."""


def relative(ours: Mapping[int, Scores], plain: Mapping[int, Scores]) -> Relative:
    """Gives the distances of a way beside those of the plain decoder, by number of codebooks."""
    counts = len(ours)
    mel = sum(ours[number].mean_mel / plain[number].mean_mel for number in ours) / counts
    return mel, sum(ours[number].frechet / plain[number].frechet for number in ours) / counts


def best(found: Mapping[Play, Relative]) -> Play:
    """Gives the way whose worse share is the least: it has to be nearer in both."""
    return min(found, key=lambda play: (max(found[play]), sum(found[play]), play.steps))


def tune(decoder: DiffusionCodec, clips: Clips, *, quick: bool) -> tuple[Play, dict[Play, Relative]]:
    """Gives the best way over the clips, and what was found of each."""
    ways = [Play(*each) for each in product(STEPS[1:3] if quick else STEPS, NOISES[1::2] if quick else NOISES)]
    plain = {number: score(decoded(decoder.codec, clips, number), clips) for number in MUST_WIN}
    found = {}
    for play in ways:
        player = decoder.with_params(steps=play.steps, noise_scale=play.noise)
        ours = {number: score(decoded(player, clips, number), clips) for number in MUST_WIN}
        mel, frechet = found[play] = relative(ours, plain)
        say(f"{play.steps} steps, noise {play.noise:g}: mel x{mel:.3f}, Frechet x{frechet:.3f} of the plain decoder's")
    return best(found), found


def write_play(path: Path, play: Play, found: Mapping[Play, Relative]) -> None:
    """Keeps what was chosen, and from what."""
    from micro_musicgen import storage

    storage.write_json(path, {"play": asdict(play), "tried": [[asdict(way), *shares] for way, shares in found.items()]})


def read_play(path: Path) -> Play:
    """Gives what was chosen."""
    import json

    return Play(**json.loads(path.read_text(encoding="utf-8"))["play"])
