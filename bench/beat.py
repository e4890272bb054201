"""Beat time: how true it keeps sound, whether tempos are found, whether loops close, which backbone, at what rate.

    python bench/beat.py [--quick] [--prepare] [--json FILE] [--device D] [--only PART,PART] [--home DIR]

Models are trained in beat time by the project's own trainer (`--prepare`), on procedural breaks.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import beat_home as homes
import common
from common import Row, say
from diffusion_home import Home
from models import cache_root
from pool import WorkerFailure

PARTS = ("audio", "tempo", "loops", "backbone", "rate")
TRAINED = ("loops", "backbone", "rate")
"""Parts that need trained models."""
BACKBONE_MINUTES, QUICK_BACKBONE_MINUTES = 6.0, 0.2
NUM_LOOPS, QUICK_LOOPS = 8, 2


@dataclass(frozen=True)
class Bench:
    """What the parts share."""

    given: argparse.Namespace
    home: Home
    plan: homes.BeatPlan
    models: homes.Models

    @property
    def quick(self) -> bool:
        """Says whether a rough answer does."""
        return bool(self.given.quick)

    def audio(self) -> list[Row]:
        """Gives `round_trip_snr_db` and `drift_snr_db_10`."""
        import beat_audio

        say("ways to beat time and back")
        return beat_audio.round_trip_rows(quick=self.quick)

    def tempo(self) -> list[Row]:
        """Gives `tempo_accuracy`."""
        import beat_audio

        say("tempos, names hidden")
        return beat_audio.tempo_rows(quick=self.quick)

    def loops(self) -> list[Row]:
        """Gives `loop_tempo_error` and `seam_ratio`, by tempo and of all."""
        import beat_loops

        say(f"loops at {', '.join(f'{bpm:g}' for bpm in beat_loops.BPMS)} BPM")
        number = QUICK_LOOPS if self.quick else NUM_LOOPS
        made = beat_loops.make_loops(self.models.lms[homes.LOOPS], num_loops=number, device=self.given.device)
        if not self.quick:
            say(f"drew {beat_loops.draw_repeats(made)}")
        return beat_loops.loop_rows(beat_loops.measure(each) for each in made)

    def backbone(self) -> list[Row]:
        """Gives the table of backbones at equal parameters and equal time, in beat time on the codes of the loops."""
        import beat_backbone

        plan = beat_backbone.BackbonePlan(
            home=self.home.data,
            dataset=homes.DATA,
            codec=self.models.codecs[homes.ENCODEC],
            minutes=QUICK_BACKBONE_MINUTES if self.quick else BACKBONE_MINUTES,
            device=self.given.device,
            threads=self.plan.threads,
            more=("dset.time=beats", f"dataset.segment_bars={self.plan.segment_bars}"),
        )
        return beat_backbone.measure(plan, quick=self.quick)

    def rate(self) -> list[Row]:
        """Gives distance over rate, from one token a beat up to the EnCodec's codebooks."""
        import beat_rate

        from micro_musicgen import paths
        from micro_musicgen.codec.resolve import load_codec
        from micro_musicgen.data.beat_tempos import Tempos
        from micro_musicgen.data.manifest import read_manifest

        say("rate against quality")
        tracks = Tempos.of(read_manifest(paths.manifests_dir(homes.DATA) / "valid")).tracks
        clips = beat_rate.beat_clips(tracks, most=6 if self.quick else beat_rate.MAX_CLIPS)
        codecs = {name: load_codec(reference, self.given.device) for name, reference in self.models.codecs.items()}
        points = beat_rate.compare(codecs, clips)
        if not self.quick:
            say(f"drew {beat_rate.draw_rate(points, title=f'{len(clips)} held-out clips of procedural breaks')}")
        print(beat_rate.rate_table(points))
        return beat_rate.rate_rows(points)


def train(home: Home, plan: homes.BeatPlan, wanted: tuple[str, ...]) -> homes.Models:
    """Gives the models that the wanted parts need, trained where they aren't there.

    Raises:
        WorkerFailure: one can't be made.
    """
    if not set(wanted) & set(TRAINED):
        return homes.Models({}, {})
    say("data set and codecs")
    homes.prepare(home, plan)
    codecs = homes.train_codecs(home, plan, beats="rate" in wanted)
    lms = {}
    if "loops" in wanted:
        say("language models")
        lms = homes.train_lms(home, plan, codecs)
    return homes.Models(codecs, lms)


def main() -> int:
    """Gives the exit code."""
    parser = common.bench_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--only", metavar="PARTS", help=f"of {', '.join(PARTS)}, with commas between")
    parser.add_argument("--home", type=Path, metavar="DIR", help="a data home whose data sets and runs are used")
    parser.add_argument("--threads", type=int, default=0, help="to train with (default: all cores)")
    given = parser.parse_args()
    wanted = common.wanted_parts(given.only, PARTS)
    plan = replace(homes.QUICK if given.quick else homes.FULL, threads=given.threads, device=given.device)
    home = homes.home_of(cache_root(given.cache), plan, given.home)
    try:
        os.environ["MICRO_MUSICGEN_HOME"] = str(home.data)
        bench = Bench(given, home, plan, train(home, plan, wanted))
        if given.prepare:
            return 0
        rows = [row for part in wanted for row in getattr(bench, part)()]
    except WorkerFailure as failure:
        say(f"error: {failure}")
        return 1
    return common.finish(rows, given)


if __name__ == "__main__":
    sys.exit(main())
