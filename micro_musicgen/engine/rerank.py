"""The best of several: candidates of every clip in one batch, and a scorer that chooses by what was asked for."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from micro_musicgen.engine.inputs import check_count, checked_texts
from micro_musicgen.engine.player import Player
from micro_musicgen.engine.request import Wish, make_request
from micro_musicgen.engine.sampler import Progress, clip_generators
from micro_musicgen.engine.sounds import AudioPrompts, sound_codes
from micro_musicgen.engine.windows import generate_codes
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.scorer import Scorer

logger = logging.getLogger(__name__)

MAX_CANDIDATES = 1000


@dataclass(frozen=True, kw_only=True)
class Reranked:
    """The best candidate of each clip. wavs: [B, C, L] on the CPU. codes: [B, K, T]. scores: float64 [B, N] of all
    candidates, NaN where there is none. chosen: int64 [B], which of them it is. fault: why the scorer gave up, if so.
    """

    wavs: torch.Tensor
    codes: torch.Tensor
    scores: torch.Tensor
    chosen: torch.Tensor
    fault: str | None = None


def check_candidates(num_candidates: int) -> int:
    """Gives `num_candidates` when it is a usable number of candidates for each clip.

    Raises:
        MicroMusicGenError: it is below 1, or so large that it must be a mistake.
    """
    if not 1 <= num_candidates <= MAX_CANDIDATES:
        raise MicroMusicGenError(f"{num_candidates} candidates for a clip; ask for 1 to {MAX_CANDIDATES}, such as 4")
    return num_candidates


def generate_best(
    model: Player,
    descriptions: Sequence[str],
    *,
    num_candidates: int,
    scorer: Scorer,
    audio_prompts: AudioPrompts | None = None,
    audio_sr: int | None = None,
    prompt: torch.Tensor | None = None,
    first_clip: int = 0,
    progress: bool | Progress = False,
) -> Reranked:
    """Gives the best of `num_candidates` candidates of each of B clips; see `MicroMusicGen.generate` for what is said.

    Candidate 0 is the clip that the model gives without candidates. Of equal scores the first wins, NaN loses. When
    the scorer fails, a warning is logged and candidate 0 is chosen: what was generated is never lost. prompt: codes
    [B, K, T'] for the clips to begin with. All B x N candidates are made at once, then heard clip by clip.

    Raises:
        MicroMusicGenError: a clip without text, a number of candidates that is none, or what `Player.codes` raises.
    """
    count = check_candidates(num_candidates)
    texts = _all_said(descriptions)
    codes = _candidates(
        model,
        Wish(
            params=model.params,
            num_clips=len(texts),
            prompt=prompt,
            descriptions=texts,
            audio_prompts=audio_prompts,
            audio_sr=audio_sr,
            first_clip=first_clip,
        ),
        count,
        progress,
    )
    fault: str | None = None
    best, scores, chosen = [], torch.full((len(texts), count), math.nan, dtype=torch.float64), []
    for clip, text in enumerate(texts):
        wavs = torch.cat([model.decode(codes[clip, i : i + 1]).cpu() for i in range(count)])
        try:
            scores[clip] = _scored(scorer, wavs, model.sample_rate, text)
        except Exception as error:  # a scorer is anybody's code, and the clips took longer to make than it knows
            fault = " ".join(str(error).split()) or type(error).__name__
            logger.warning("clip %d: scorer %s failed, its first candidate is kept: %s", clip, scorer.name, fault)
        chosen.append(pick(scores[clip]))
        best.append(wavs[chosen[-1]].clone())
    place = torch.tensor(chosen)
    kept = codes[torch.arange(len(codes)), place.to(codes.device)]
    return Reranked(wavs=torch.stack(best), codes=kept, scores=scores, chosen=place, fault=fault)


def pick(scores: torch.Tensor) -> int:
    """Gives which of scores [N] is the highest: the first of equal ones, NaN after all numbers."""
    values = scores.tolist()
    return max(
        range(len(values)), key=lambda i: (not math.isnan(values[i]), 0.0 if math.isnan(values[i]) else values[i])
    )


def candidate_generators(
    seed: int, num_clips: int, num_candidates: int, *, first_clip: int = 0
) -> list[torch.Generator]:
    """Gives a generator for each candidate of each clip, clip after clip: a function of seed, clip and candidate."""
    generators = []
    for clip in range(first_clip, first_clip + num_clips):
        generators += clip_generators(seed, 1, first_clip=clip)
        for candidate in range(1, num_candidates):
            digest = hashlib.sha256(f"{seed} {clip} candidate {candidate}".encode()).digest()
            generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))
    return generators


def _all_said(descriptions: Sequence[str]) -> list[str]:
    said = checked_texts(descriptions)
    check_count(len(said))
    texts = [text for text in said if text is not None]
    if len(texts) < len(said):
        raise MicroMusicGenError(
            f"clip {said.index(None)} has no text, and candidates are chosen by their text; describe it, or ask for one"
        )
    return texts


def _candidates(model: Player, wish: Wish, count: int, progress: bool | Progress) -> torch.Tensor:
    """Gives codes [B, N, K, T]. What is said about a clip is said about each of its candidates."""
    clips, sounds = wish.num_clips, wish.audio_prompts
    if sounds is not None and model.conditioner.audio:
        rate = model.sample_rate if wish.audio_sr is None else wish.audio_sr
        most = model.conditioner.sound_frames
        heard = sound_codes(sounds, rate, model.codec, num_clips=clips, max_frames=most)
        sounds = [codes for codes in heard for _ in range(count)]
    wider = replace(
        wish,
        num_clips=clips * count,
        prompt=None if wish.prompt is None else wish.prompt.repeat_interleave(count, dim=0),
        descriptions=[text for text in wish.descriptions or () for _ in range(count)],
        audio_prompts=sounds,
    )
    request = make_request(model, wider)
    assert model.last_seed is not None
    generators = candidate_generators(model.last_seed, clips, count, first_clip=wish.first_clip)
    with model._reporting(progress) as report:
        codes = generate_codes(model.runner, replace(request, generators=generators), progress=report)
    return codes.reshape(clips, count, *codes.shape[1:])


def _scored(scorer: Scorer, wavs: torch.Tensor, sample_rate: int, text: str) -> torch.Tensor:
    """Gives scores float64 [N] of a clip's candidates.

    Raises:
        ValueError: the scorer gave something else.
    """
    found = torch.as_tensor(scorer.score(wavs, sample_rate, [text] * len(wavs)))
    if found.shape != (len(wavs),):
        raise ValueError(f"it gave scores of shape {tuple(found.shape)} for {len(wavs)} candidates")
    return found.detach().double().cpu()
