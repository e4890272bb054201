"""What does choosing among candidates by CLAP change: its own score, and what an independent judge hears?

    python bench/rerank.py [--quick] [--prepare] [--json FILE] [--device D]

The text model and the judge are those of bench/conditioning.py (`--prepare` makes them); the tiny CLAP is trained here
on labelled loops that neither of them has seen. Candidate 0 is the clip that one would get without candidates.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

import common
import conditioning_home as homes
import conditioning_models as lms
from common import Row, Sample, make_row, say
from models import cache_root
from pool import WorkerFailure

MODEL = "text_cross"
NUM_CANDIDATES = 4
GUIDANCE = (1.0, 3.0)
CLAP_SEED, CLAP_TRACKS, CLAP_MINUTES = 5, 256, 3.0
WORDS_SEED, BATCH = 11, 8


def make_clap(home: homes.Home, plan: homes.HomePlan, minutes: float) -> Path:
    """Gives the folder of the tiny CLAP, trained where it isn't there."""
    import torch
    from clap_training import train_tiny_clap

    from micro_musicgen.audio.labelled import synthesise_labelled
    from micro_musicgen.audio.labelled_words import describe

    folder, done = home.folder / "clap", home.folder / "clap_finished"
    if not done.is_file():
        say(f"training a tiny CLAP for {minutes:g} minutes")
        tracks = synthesise_labelled(CLAP_SEED, CLAP_TRACKS, 6.0, homes.SAMPLE_RATE, num_kits=plan.num_kits)
        clips = [(torch.from_numpy(track.wav), describe(track.attributes)) for track in tracks]
        train_tiny_clap(folder, clips, minutes, CLAP_SEED, sample_rate=homes.SAMPLE_RATE, say=say)
        done.write_text("yes\n", encoding="utf-8")
    return folder


def run(given: Any, home: homes.Home, plan: homes.HomePlan, recipe: lms.Recipe) -> list[Row]:
    """Gives the rows."""
    from conditioning_classifier import examined_judge

    from micro_musicgen.audio.labelled import combinations
    from micro_musicgen.audio.labelled_words import describe
    from micro_musicgen.codec.resolve import load_codec
    from micro_musicgen.engine.engine import MicroMusicGen
    from micro_musicgen.engine.rerank import generate_best
    from micro_musicgen.metrics.clap import load_clap

    reference = lms.train(home, plan, recipe, [MODEL])[MODEL]
    os.environ["MICRO_MUSICGEN_HOME"] = str(home.data)
    scorer = load_clap(str(make_clap(home, plan, CLAP_MINUTES if not given.quick else 0.5)))
    exam = examined_judge(home.folder, load_codec(home.codec), sample_rate=homes.SAMPLE_RATE, num_kits=plan.num_kits)
    model = MicroMusicGen.get_pretrained(reference, device=given.device)
    asked = list(combinations(plan.num_kits))
    texts = [describe(said) for said in asked]
    rows: list[Row] = []
    for guidance in GUIDANCE:
        say(f"asking {MODEL} with guidance {guidance:g}, {NUM_CANDIDATES} candidates each")
        model.set_generation_params(cfg_coef=guidance, duration=lms.CLIP_S, seed=WORDS_SEED)
        first_scores, best_scores, first_right, best_right = [], [], [], []
        for at in range(0, len(asked), BATCH):
            part, said = texts[at : at + BATCH], asked[at : at + BATCH]
            found = generate_best(model, part, num_candidates=NUM_CANDIDATES, scorer=scorer, first_clip=at)
            plain = model.decode(model.codes(len(part), descriptions=part, first_clip=at))
            first_scores += found.scores[:, 0].tolist()
            best_scores += found.scores.max(dim=1).values.tolist()
            first_right += _shares(exam.judge.judge(plain.cpu()), said)
            best_right += _shares(exam.judge.judge(found.wavs.cpu()), said)
        note = f"guidance {guidance:g}, {NUM_CANDIDATES} candidates, {len(asked)} texts; peer: candidate 0"
        end = f"_w{guidance:g}"
        rows.append(_row(f"clap_score_best{end}", best_scores, first_scores, note))
        rows.append(_row(f"attribute_accuracy_best{end}", best_right, first_right, note))
    return rows


def _shares(heard: list[dict[str, str]], asked: Any) -> list[float]:
    return [sum(found[k] == said[k] for k in said) / len(said) for found, said in zip(heard, asked, strict=True)]


def _row(name: str, values: list[float], firsts: list[float], note: str) -> Row:
    """Gives a row whose spread is the 95 % interval of the gain, by the bootstrap over clips."""
    from micro_musicgen.metrics.bootstrap import bootstrap

    gain = bootstrap([value - first for value, first in zip(values, firsts, strict=True)])
    told = f"{note}; gain {gain.value:.3f}, 95 % {gain.low:.3f} to {gain.high:.3f}"
    sample, peer = Sample((statistics.fmean(values),)), Sample((statistics.fmean(firsts),))
    return make_row(name, sample, "share", peer="candidate 0", theirs=peer, note=told)


def main() -> int:
    """Gives the exit code."""
    given = common.bench_parser((__doc__ or "").split("\n")[0]).parse_args()
    cache = cache_root(given.cache)
    plan, recipe = homes.FULL, lms.Recipe(device=given.device)
    try:
        home = homes.prepare(cache, plan)
        if given.prepare:
            lms.train(home, plan, recipe, [MODEL])
            make_clap(home, plan, CLAP_MINUTES)
            return 0
        rows = run(given, home, plan, recipe)
    except WorkerFailure as failure:
        say(f"error: {failure}")
        return 1
    return common.finish(rows, given)


if __name__ == "__main__":
    sys.exit(main())
