"""Does a model do what it is told? Words and example sounds against what a judge hears in the clips.

    python bench/conditioning.py [--quick] [--prepare] [--json FILE] [--device D] [--models NAME,NAME]

Tiny models are trained on labelled loops for some minutes (`--prepare`), then asked for every combination of
attributes. The judge has learned from real loops only. Beside each answer stand its controls: without guidance, with
the opposite said, with nothing said. Audio prompts are cut from tracks that no model has heard.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import common
import conditioning_home as homes
import conditioning_models as lms
from common import Row, Sample, make_row, say
from models import cache_root
from pool import WorkerFailure

if TYPE_CHECKING:
    from conditioning_ask import Answers, Example, Said
    from conditioning_classifier import Examined

AIM = "value >= 0.85"
GUIDANCE = 3.0
SWEEP = (0.0, 1.0, 2.0, 3.0, 5.0)
ASKED_AGAIN, ASKED_AGAIN_QUICK = 4, 1
"""How often every combination is asked for in words, each time in other words."""
EXAMPLES, EXAMPLES_QUICK = 128, 32
QUICK_MODELS = ("text_cross", "text_audio")
WORDS_SEED = 7

Table = dict[str, "Answers"]
"""What was said -> what came out."""


class Bench:
    """All that questions are asked with: the judge, taught where it isn't yet, and what is asked."""

    def __init__(self, home: homes.Home, plan: homes.HomePlan, *, quick: bool) -> None:
        import numpy as np
        from conditioning_ask import examples
        from conditioning_classifier import examined_judge

        from micro_musicgen.audio.labelled import combinations
        from micro_musicgen.audio.labelled_words import describe
        from micro_musicgen.codec.resolve import load_codec

        codec = load_codec(home.codec)
        self.exam: Examined = examined_judge(home.folder, codec, sample_rate=homes.SAMPLE_RATE, num_kits=plan.num_kits)
        rng = np.random.default_rng(WORDS_SEED)
        self.known: list[Said] = list(combinations(plan.num_kits))
        self.asked: list[Said] = self.known * (ASKED_AGAIN_QUICK if quick else ASKED_AGAIN)
        self.texts = [describe(said, rng) for said in self.asked]
        self.examples: list[Example] = examples(
            homes.PROMPT_SEED,
            EXAMPLES_QUICK if quick else EXAMPLES,
            length_s=lms.CLIP_S,
            sample_rate=homes.SAMPLE_RATE,
            num_kits=plan.num_kits,
        )

    def words(self, model: Any, sweep: Sequence[float]) -> Table:
        """Gives what comes out for words, under each guidance of `sweep`, and for the controls."""
        from conditioning_ask import ask, opposite

        words_of = dict(zip(map(_frozen, self.asked), self.texts, strict=True))
        wrong = [words_of[_frozen(opposite(said, self.known))] for said in self.asked]
        judge, found = self.exam.judge, {}
        for guidance in sorted({1.0, GUIDANCE, *sweep}):
            found[f"w={guidance:g}"] = ask(model, judge, self.asked, guidance=guidance, texts=self.texts)
        found["wrong"] = ask(model, judge, self.asked, guidance=GUIDANCE, texts=wrong)
        found["nothing"] = ask(model, judge, self.asked, guidance=1.0)
        return found

    def sounds(self, model: Any, sweep: Sequence[float]) -> Table:
        """Gives what comes out for example sounds, of which kit and tempo are asked; and for the controls.

        `text`: beside the sound, words that tell everything else.
        """
        from conditioning_ask import TOLD_BY_SOUND, ask, opposite

        from micro_musicgen.audio.labelled_words import describe

        asked = [{name: each.attributes[name] for name in TOLD_BY_SOUND} for each in self.examples]
        sounds = [each.wav for each in self.examples]
        by_kind = {_frozen(said): sound for said, sound in zip(asked, sounds, strict=True)}
        wrong = [by_kind[_frozen(opposite(said, asked))] for said in asked]
        others = [{k: v for k, v in said.items() if k not in TOLD_BY_SOUND} for said in self.asked]
        others = [others[index * 5 % len(others)] for index in range(len(asked))]
        judge, found = self.exam.judge, {}
        for guidance in sorted({1.0, GUIDANCE, *sweep}):
            found[f"w={guidance:g}"] = ask(model, judge, asked, guidance=guidance, sounds=sounds)
        found["wrong"] = ask(model, judge, asked, guidance=GUIDANCE, sounds=wrong)
        found["nothing"] = ask(model, judge, asked, guidance=1.0)
        both = [{**said, **other} for said, other in zip(asked, others, strict=True)]
        texts = [describe(other) for other in others]
        found["text"] = ask(model, judge, both, guidance=GUIDANCE, sounds=sounds, texts=texts)
        return found


def _frozen(said: Said) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(said.items()))


def word_rows(name: str, found: Table) -> list[Row]:
    """Gives the rows of one model about words. name: of the model, empty for the one that the bench is about."""
    end = f"_{name}" if name else ""
    controls = f"controls: opposite words {found['wrong'].accuracy:.3f}, nothing said {found['nothing'].accuracy:.3f}"
    return [
        _row(f"attribute_accuracy{end}", found[f"w={GUIDANCE:g}"], aim=AIM, note=f"guidance {GUIDANCE:g}; {controls}"),
        _row(f"attribute_accuracy_unguided{end}", found["w=1"]),
        _row(f"attribute_accuracy_wrong{end}", found["wrong"], note="told the opposite in every attribute"),
        _row(f"attribute_accuracy_untold{end}", found["nothing"], note="told nothing: chance"),
    ]


def sound_rows(found: Table) -> list[Row]:
    """Gives the rows about audio prompts."""
    matched = _row("prompt_match", found[f"w={GUIDANCE:g}"], note=f"kit and tempo of held-out prompts, w {GUIDANCE:g}")
    wrong, none = found["wrong"], found["nothing"]
    matched = replace(matched, peer="wrong prompt", peer_value=wrong.accuracy)
    return [
        matched,
        _row("prompt_match_unguided", found["w=1"]),
        _row("prompt_match_wrong", wrong, note="prompts of the other kit and tempo"),
        _row("prompt_match_none", none, note="no prompt: chance"),
        _row("prompt_match_with_text", found["text"], note="all attributes: kit, tempo by sound, the rest by words"),
    ]


def _row(name: str, found: Answers, *, aim: str | None = None, note: str = "") -> Row:
    """Gives a row whose spread is the 95 % interval by the bootstrap over clips."""
    from micro_musicgen.metrics.bootstrap import bootstrap

    interval = bootstrap(found.shares)
    row = make_row(name, Sample((interval.value,)), "share", aim=aim, note=note)
    spread = None if interval.low is None or interval.high is None else (interval.low, interval.high)
    return replace(row, spread=spread, n=interval.n)


def print_attributes(title: str, found: Mapping[str, Answers], exam: Examined) -> None:
    """Prints a line an attribute: guided with its 95 % interval, unguided, controls, and how good the judge is."""
    from micro_musicgen.metrics.bootstrap import proportion

    print(f"\n{title}: share of clips that have what was asked")
    print(
        f"{'attribute':10} {'w=3':>5} {'95 %':>12} {'w=1':>6} {'wrong':>6} {'nothing':>8} {'judge':>6} {'coded':>6}  n"
    )
    for name in found[f"w={GUIDANCE:g}"].asked[0]:
        hits = {told: answers.hits(name) for told, answers in found.items()}
        guided = hits[f"w={GUIDANCE:g}"]
        share = proportion(guided)
        shares = {told: statistics.fmean(each) for told, each in hits.items() if each}
        exams = f"{exam.real[name]:6.3f} {exam.coded[name]:6.3f}"
        print(
            f"{name:10} {shares[f'w={GUIDANCE:g}']:5.2f} {share.low:5.2f}..{share.high:4.2f} {shares['w=1']:7.2f} "
            f"{shares['wrong']:6.2f} {shares['nothing']:8.2f} {exams}  {len(guided)}"
        )


def run(given: Any, home: homes.Home, plan: homes.HomePlan, recipe: lms.Recipe) -> list[Row]:
    """Gives all rows, after printing the tables of attributes and drawing the sweep."""
    from conditioning_plot import draw_sweep

    from micro_musicgen.engine.engine import MicroMusicGen

    wanted = _wanted(given)
    trained = lms.train(home, plan, recipe, wanted)
    os.environ["MICRO_MUSICGEN_HOME"] = str(home.data)
    bench = Bench(home, plan, quick=given.quick)
    sweep = () if given.quick else SWEEP
    rows: list[Row] = [
        _exam_row("judge_accuracy", bench.exam.real),
        _exam_row("judge_accuracy_coded", bench.exam.coded),
    ]
    curves: dict[str, Table] = {}
    main_model = wanted[0]
    for name in wanted:
        say(f"asking {name} in words")
        model = MicroMusicGen.get_pretrained(trained[name], device=given.device)
        found = curves[f"words, {name}"] = bench.words(model, sweep)
        rows += word_rows("" if name == main_model else name, found)
        print_attributes(f"{name}, in words", found, bench.exam)
        if "audio" in name:
            say(f"asking {name} by example")
            found = curves[f"prompts, {name}"] = bench.sounds(model, sweep)
            rows += sound_rows(found)
            print_attributes(f"{name}, by example", found, bench.exam)
    if sweep:
        say(f"drew {draw_sweep(curves, SWEEP)}")
    return rows


def _exam_row(name: str, found: Mapping[str, float]) -> Row:
    note = ", ".join(f"{attribute} {share:.3f}" for attribute, share in found.items())
    return make_row(name, Sample((min(found.values()),)), "share", note=f"on held-out loops: {note}")


def _wanted(given: Any) -> tuple[str, ...]:
    if given.models:
        return tuple(given.models.split(","))
    return QUICK_MODELS if given.quick else lms.CONDITIONERS


def main() -> int:
    """Gives the exit code."""
    parser = common.bench_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--models", metavar="NAMES", help=f"of {', '.join(lms.CONDITIONERS)}, with commas between")
    parser.add_argument("--threads", type=int, default=0, help="to train with (default: all cores)")
    given = parser.parse_args()
    cache = cache_root(given.cache)
    is_small = given.quick and not homes.home_of(cache, homes.FULL).is_finished
    plan = replace(homes.QUICK if is_small else homes.FULL, threads=given.threads)
    recipe = replace(lms.QUICK if is_small else lms.Recipe(), device=given.device, threads=given.threads)
    try:
        home = homes.prepare(cache, plan)
        if given.prepare:
            lms.train(home, plan, recipe, _wanted(given))
            os.environ["MICRO_MUSICGEN_HOME"] = str(home.data)
            Bench(home, plan, quick=given.quick)
            return 0
        rows = run(given, home, plan, recipe)
    except WorkerFailure as failure:
        say(f"error: {failure}")
        return 1
    return common.finish(rows, given)


if __name__ == "__main__":
    sys.exit(main())
