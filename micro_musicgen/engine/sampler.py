"""Codes out of a language model: the one place that knows how a step is computed and drawn.

For now the steps are those of audiocraft's `LMModel.generate`, with the draw replaced by our own. What holds:
- A draw depends on the clip's own seed and on nothing else: no global random state is read or changed.
- The same seed gives the same codes, run after run, on the same machine with the same batch size.
- A clip does not depend on the others of its batch but for rounding: matrix products of another batch size differ in
  the last bits, which can move a draw, and with it the rest of the clip.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from micro_musicgen.contracts import GenerationParams
from micro_musicgen.errors import MicroMusicGenError

Progress = Callable[[int, int], None]
"""Hears (frames done, frames in all)."""


def clip_generators(seed: int, num_clips: int, *, first_clip: int = 0) -> list[torch.Generator]:
    """Gives one random generator per clip, on the CPU so that every device draws the same.

    Clip i of a seed is the same whichever batch it is made in; clips of different seeds have nothing in common.
    """
    generators = []
    for clip in range(first_clip, first_clip + num_clips):
        digest = hashlib.sha256(f"{seed} {clip}".encode()).digest()
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))
    return generators


def draw(logits: torch.Tensor, params: GenerationParams, uniform: torch.Tensor) -> torch.Tensor:
    """Gives one code for each row of `logits` [..., card], int64 [...], by inverting the cumulated probabilities.

    uniform [...] in [0, 1) decides; equal numbers give equal codes on every device. top_p wins over top_k; greedy
    over both.
    """
    if params.greedy:
        return logits.argmax(dim=-1)
    card = logits.shape[-1]
    keep = card if params.top_p > 0 or not params.top_k else min(params.top_k, card)
    scores, codes = (logits.float() / params.temperature).topk(keep, dim=-1)
    probabilities = scores.softmax(dim=-1)
    cumulated = probabilities.cumsum(dim=-1)
    if params.top_p > 0:
        # The likeliest codes until their mass reaches top_p, the one that crosses it included.
        probabilities = probabilities * (cumulated - probabilities < params.top_p)
        cumulated = probabilities.cumsum(dim=-1)
    level = uniform.to(cumulated)[..., None] * cumulated[..., -1:]
    place = (cumulated <= level).sum(dim=-1, keepdim=True)
    # Rounding may put the level at the very top of the sum: then the last code of any mass is meant.
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    return codes.gather(-1, torch.minimum(place, last.clamp(min=0)))[..., 0]


@torch.no_grad()
def generate_window(
    lm: Any,
    params: GenerationParams,
    generators: Sequence[torch.Generator],
    num_frames: int,
    *,
    prompt: torch.Tensor | None = None,
    conditions: Sequence[Any] = (),
    progress: Progress | None = None,
) -> torch.Tensor:
    """Gives int64 codes [B, K, num_frames] that begin with `prompt` [B, K, T], T < num_frames; B generators.

    num_frames: at most the window that the model was trained on. conditions: audiocraft's ConditioningAttributes, one
    per clip, or none. progress: hears of frames within this window, the prompt's not counted.

    Raises:
        MicroMusicGenError: the model's output is not finite.
    """
    prompt_frames = 0 if prompt is None else prompt.shape[-1]
    assert prompt_frames < num_frames, (prompt_frames, num_frames)
    new_frames = num_frames - prompt_frames

    def report(steps: int, _: int) -> None:
        if progress is not None:
            progress(min(steps, new_frames), new_frames)

    with _drawing(lm, params, generators) as is_finite:
        codes: torch.Tensor = lm.generate(
            prompt=prompt,
            conditions=list(conditions),
            num_samples=len(generators),
            max_gen_len=num_frames,
            two_step_cfg=False,
            callback=report,
        )
    if not is_finite():
        raise MicroMusicGenError("the model's output is not finite: its training diverged; take an earlier checkpoint")
    return codes


@contextlib.contextmanager
def _drawing(lm: Any, params: GenerationParams, generators: Sequence[torch.Generator]) -> Iterator[Callable[[], bool]]:
    """Has `lm.generate` draw from `generators` within the block; gives a question: was every output finite?"""
    finite = torch.ones((), dtype=torch.bool, device=next(lm.parameters()).device)

    def next_token(sequence: torch.Tensor, conditions: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        # With conditions, audiocraft has put the null conditions behind them: one batch for both branches.
        doubled = torch.cat([sequence, sequence]) if conditions else sequence
        logits = lm(doubled, conditions=[], condition_tensors=conditions)[:, :, -1]  # [B or 2B, K, card]
        if conditions:
            conditional, null = logits.chunk(2)
            logits = null + params.cfg_coef * (conditional - null)
        finite.logical_and_(logits.isfinite().all())
        uniform = torch.stack([torch.rand(logits.shape[1], generator=g) for g in generators])
        return draw(logits, params, uniform)[..., None]

    lm._sample_next_token = next_token  # shadows the method on this object only
    try:
        yield lambda: bool(finite)
    finally:
        del lm._sample_next_token
