"""Few codebooks and a diffusion decoder against all codebooks, at equal generation time and equal training time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common import Row, Sample, make_row, say
from diffusion_home import BOTH, Home
from diffusion_models import LMPlan, steps_of
from diffusion_quality import CLIP_S, distance_row, embed, frechet_of, held_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from micro_musicgen.engine.engine import MicroMusicGen

FEW, BARE = "few", "few, plain decoder"
NUM_CLIPS, QUICK_CLIPS = 64, 8
NUM_REAL = 256
BATCH = 8
"""Clips made at once for the distances. Times are of one clip by itself."""
ROUNDS, QUICK_ROUNDS = 7, 3
SEED = 11
PROBED, LEAST, MOST = 20, 1, 100
"""Decoder steps at which the time of one is measured, and the fewest and most that are taken."""


@dataclass
class Made:
    """What one model made. rows: embedded clips, [N, R, W]. seconds: of single clips."""

    rows: np.ndarray
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Contest:
    """Few codebooks against one full model. steps: of the decoder."""

    full: Made
    few: Made
    steps: int
    note: str


def real_rows(home: Home) -> np.ndarray:
    """Gives embedded real sounds, held out and trained on."""
    import numpy as np

    from micro_musicgen.codec.resolve import load_codec

    codec = load_codec(home.codec)
    found = [held_out(codec, BOTH, NUM_REAL, CLIP_S, split) for split in ("valid", "train")]
    return np.concatenate([embed(each.wav, each.sample_rate) for each in found])


def steps_for(full_s: float, bare_s: float, few_s: float) -> int:
    """Gives the decoder steps with which `few` takes as long as `full`, as near as that goes. bare_s: without the
    decoder. few_s: with `PROBED` steps of it.
    """
    step_s = (few_s - bare_s) / PROBED
    if step_s <= 0:
        return PROBED
    return max(LEAST, min(MOST, round((full_s - bare_s) / step_s)))


def single_s(models: Mapping[str, MicroMusicGen], rounds: int) -> dict[str, list[float]]:
    """Gives the seconds of single clips of each model, taken in turns so that all meet the same machine."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(-1, rounds):
        for name, model in models.items():
            seconds = _made(model, 1, SEED + number)[1]
            if number >= 0:
                found[name].append(seconds)
    return found


def clip_rows(model: MicroMusicGen, number: int) -> np.ndarray:
    """Gives embedded clips of a model, [number, R, W]."""
    import numpy as np

    parts = range(0, number, BATCH)
    return np.concatenate([embed(_made(model, BATCH, SEED + first)[0], model.sample_rate) for first in parts])[:number]


def _open(
    reference: str, device: str, decoder: str | None = None, steps: int | None = None, noise: float | None = None
) -> MicroMusicGen:
    from micro_musicgen.engine.engine import MicroMusicGen

    return MicroMusicGen.get_pretrained(
        reference, device=device, decoder=decoder, decoder_steps=steps, decoder_noise=noise
    )


def _made(model: MicroMusicGen, number: int, seed: int) -> tuple[Any, float]:
    """Gives clips, [number, 1, L], and the seconds they took."""
    from peers import synchronise

    model.set_generation_params(duration=CLIP_S, seed=seed)
    device = str(model.device)
    synchronise(device)
    began = time.perf_counter()
    wav = model.generate_unconditional(number)
    synchronise(device)
    return wav.cpu(), time.perf_counter() - began


def measure(
    home: Home,
    plan: LMPlan,
    lms: Mapping[str, str],
    decoder: str,
    *,
    noise: float,
    device: str,
    quick: bool,
    steps: int | None,
) -> list[Row]:
    """Gives the rows. decoder: reference of its run, played with so much noise. steps: of it, None for equal time."""
    number, rounds = (QUICK_CLIPS, QUICK_ROUNDS) if quick else (NUM_CLIPS, ROUNDS)
    trained = {name: steps_of(home, reference) for name, reference in lms.items()}
    real, bare = real_rows(home), _open(lms[FEW], device)
    bare_rows, found = clip_rows(bare, number), {}
    for name in [name for name in lms if name != FEW]:
        full, chosen = _open(lms[name], device), steps
        if chosen is None:
            probed = single_s(
                {name: full, BARE: bare, FEW: _open(lms[FEW], device, decoder, PROBED, noise)}, QUICK_ROUNDS
            )
            chosen = steps_for(*(min(probed[which]) for which in (name, BARE, FEW)))
        say(f"language models: {number} clips of few codebooks and {chosen} decoder steps, and of {name}")
        few = _open(lms[FEW], device, decoder, chosen, noise)
        taken = single_s({name: full, FEW: few}, rounds)
        note = f"{plan.few} codebooks, {plan.few_scale}, {trained[FEW]} steps of training, {chosen} decoder steps; "
        note += f"{name}: {plan.codebooks} codebooks, {trained[name]} steps; {plan.minutes:g} minutes each"
        contest = (Made(clip_rows(full, number), taken[name]), Made(clip_rows(few, number), taken[FEW]))
        found[name.removeprefix("full_")] = Contest(*contest, chosen, note)
    return rows(found, Made(bare_rows, single_s({BARE: bare}, rounds)[BARE]), real)


def rows(found: Mapping[str, Contest], bare: Made, real: np.ndarray) -> list[Row]:
    """Gives the rows of all contests, against embedded real sounds [M, R, W]. bare: few codebooks, plain decoder."""
    made = []
    for scale, contest in found.items():
        few, full, peer = contest.few, contest.full, f"full LM, {scale}"
        end = "" if scale == next(iter(found)) else f"_{scale}"
        distances, count = [frechet_of(each.rows, real) for each in (few, full)], len(few.rows)
        note = f"{contest.note}; ratio 95 % {_interval(few.rows, full.rows, real)}"
        made.append(distance_row(f"lm_frechet{end}", *distances, peer, n=count, note=note))
        seconds = [Sample(tuple(each.seconds)) for each in (few, full)]
        note = f"of one clip of {CLIP_S:g} s by itself, {contest.steps} decoder steps"
        made.append(make_row(f"lm_clip_s{end}", seconds[0], "s", peer=peer, theirs=seconds[1], note=note))
    made.append(distance_row("lm_frechet_plain", frechet_of(bare.rows, real), None, "", n=len(bare.rows), note=BARE))
    made.append(make_row("lm_clip_s_plain", Sample(tuple(bare.seconds)), "s", note=BARE))
    return made


def _interval(few: np.ndarray, full: np.ndarray, real: np.ndarray, resamples: int = 200) -> str:
    """Gives the 95 % interval of full over few in Frechet distance, clips of each drawn again."""
    import numpy as np

    rng = np.random.default_rng(0)

    def drawn(rows: np.ndarray) -> float:
        return frechet_of(rows[rng.integers(len(rows), size=len(rows))], real)

    low, high = np.quantile([drawn(full) / drawn(few) for _ in range(resamples)], [0.025, 0.975])
    return f"{low:.2f} to {high:.2f}"
