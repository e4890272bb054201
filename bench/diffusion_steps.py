"""How few steps of a sampler do: 20 of DPM-Solver++ against 800 of the ancestral one, and the way there."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from common import Row, say
from diffusion_quality import Clips, Scores, distance_row, frechet_of, held_out, score

if TYPE_CHECKING:
    import torch

    from micro_musicgen.contracts import Codec
    from micro_musicgen.engine.diffusion_codec import DiffusionCodec

FEW, MANY = ("dpm_sde", 20), ("ancestral", 800)
SAMPLERS = ("ddim", "dpm", "dpm_sde")
SWEEP = (2, 4, 8, 12, 20, 50)
NUM_CLIPS, QUICK_CLIPS = 64, 8
CODEBOOKS = 1
"""Of those that a clip is told: with one, most is left to the sampler."""
BATCH = 16
SEEDS = (0, 1, 2)
WITHIN = "ratio >= 0.952"
"""Less than 5 % farther than the peer."""

Curve = Mapping[int, tuple[float, float]]
"""Steps -> (Frechet, mel) distance."""


@dataclass(frozen=True)
class Found:
    """few: scores of `FEW`, one a seed. many: of `MANY`. curves: by sampler."""

    few: tuple[Scores, ...]
    many: Scores
    curves: Mapping[str, Curve]


def clips_for(codec: Codec, sets: Sequence[str], number: int, length_s: float) -> Clips:
    """Gives exactly `number` clips: held out where there are as many, and training clips behind them."""
    import torch

    wanted = [(name, "valid") for name in sets] + [(sets[0], "train")]
    found: list[Clips] = []
    for name, split in wanted:
        left = number - sum(len(each.wav) for each in found)
        if left > 0:
            found.append(held_out(codec, name, left, length_s, split))
    parts = {key: torch.cat([getattr(each, key) for each in found]) for key in ("wav", "codes", "latents")}
    trained = sum(len(each.wav) for each, (_, split) in zip(found, wanted, strict=False) if split == "train")
    name = f"{number - trained} held-out clips" + (f" and {trained} of training" if trained else "")
    return Clips(name, sample_rate=codec.sample_rate, **parts)


def sampled(decoder: DiffusionCodec, codes: torch.Tensor, sampler: str, steps: int, seed: int) -> torch.Tensor:
    """Gives audio [N, 1, L] of codes [N, k, T], sampled in one window, with noise of its own for each clip."""
    import torch

    from micro_musicgen.diffusion.code_condition import code_condition
    from micro_musicgen.diffusion.denoiser import Told
    from micro_musicgen.diffusion.sampling import FrameNoise, sample

    model = decoder.model
    device = model.normaliser.mean.device
    params = replace(decoder.params, sampler=sampler, steps=steps, guidance=1.0, noise_scale=1.0, spacing=None)
    frames = codes.shape[-1]
    wavs = []
    for first in range(0, len(codes), BATCH):
        some = codes[first : first + BATCH]
        sources = [FrameNoise(1000 * seed + first + index, model.channels) for index in range(len(some))]

        def noise(step: int, sources: Sequence[FrameNoise] = sources) -> torch.Tensor:
            return torch.stack([source.at(0, frames, step) for source in sources])

        with torch.inference_mode():
            told = Told(code_condition(decoder.codec, some, [some.shape[1]] * len(some), decoder.counts).to(device))
            made = sample(model, told, num_frames=frames, params=params, noise=noise)
            wavs.append(decoder.decode_latents(made).cpu())
    return torch.cat(wavs)


def measure(decoder: DiffusionCodec, sets: Sequence[str], *, quick: bool) -> tuple[Found, Clips]:
    """Gives the scores of few and of many steps, and the curves; says before how long the many will take."""
    number = QUICK_CLIPS if quick else NUM_CLIPS
    frames = decoder.window_frames
    clips = clips_for(decoder.codec, sets, number, frames / decoder.frame_rate)
    codes = clips.codes[:, :CODEBOOKS, :frames]

    def scored(sampler: str, steps: int, seed: int = 0) -> Scores:
        return score(sampled(decoder, codes, sampler, steps, seed), clips)

    scored(*FEW)
    began = time.perf_counter()
    few = tuple(scored(*FEW, seed) for seed in (SEEDS[:1] if quick else SEEDS))
    call_s = (time.perf_counter() - began) / len(few) / FEW[1]
    calls = MANY[1] + (0 if quick else len(SAMPLERS) * sum(SWEEP))
    say(f"{MANY[1]} steps and the sweep over {number} clips: about {calls * call_s / 60:.1f} minutes")
    many = scored(*MANY)
    curves: dict[str, Curve] = {}
    for sampler in () if quick else SAMPLERS:
        found = {steps: scored(sampler, steps) for steps in SWEEP}
        curves[sampler] = {steps: (each.frechet, each.mean_mel) for steps, each in found.items()}
    return Found(few, many, curves), clips


def rows(found: Found, clips: Clips) -> list[Row]:
    """Gives the rows; spread is that of the seeds."""
    peer = f"{MANY[0]}, {MANY[1]} steps"
    apart = frechet_of(found.few[0].rows, found.many.rows)
    among = [frechet_of(a.rows, b.rows) for a, b in zip(found.few, found.few[1:], strict=False)]
    note = f"{clips.name} of {clips.wav.shape[-1] / clips.sample_rate:g} s, {CODEBOOKS} codebook, {FEW[0]}; "
    note += f"from each other {apart:.3g}" + (f", two seeds {statistics.fmean(among):.3g}" if among else "")
    rows = []
    for name, of in (("steps20_vs_800", "frechet"), ("steps20_vs_800_mel", "mean_mel")):
        values: list[float] = [getattr(each, of) for each in found.few]
        spread = (min(values), max(values)) if len(values) > 1 else None
        many: float = getattr(found.many, of)
        row = distance_row(name, statistics.median(values), many, peer, aim=WITHIN, spread=spread, n=len(clips.wav))
        rows.append(replace(row, note=note))
    for sampler, curve in found.curves.items():
        for steps, (frechet, _) in curve.items():
            rows.append(distance_row(f"frechet_{sampler}_{steps}", frechet, found.many.frechet, peer, n=len(clips.wav)))
    assert all(math.isfinite(row.value or 0) for row in rows)
    return rows


def as_any(found: Found) -> dict[str, Any]:
    """Gives what the plot needs: the curves and where many steps end."""
    return {"curves": found.curves, "many": (found.many.frechet, found.many.mean_mel)}
