"""What does the diffusion decoder give, and at what cost? Beside the plain decoder, its twin, more steps, more codes.

    python bench/diffusion.py [--quick] [--prepare] [--json FILE] [--device D] [--only PART,PART] [--home DIR]

Codecs, decoders and language models are trained by the project's own trainer (`--prepare`), on procedural breaks and on
the recorded ones beside the checkout, where there are any. Held-out clips are compared with their originals.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import diffusion_home as homes
import diffusion_models as models
from common import Row, say
from models import cache_root
from pool import WorkerFailure

if TYPE_CHECKING:
    from diffusion_quality import Clips
    from diffusion_tuning import Play

    from micro_musicgen.contracts import Codec
    from micro_musicgen.engine.diffusion_codec import DiffusionCodec

PARTS = ("decoder", "steps", "lm", "speed", "memory")
TRAINED = ("decoder", "steps", "lm")
"""Parts that need trained models; the others take random ones, speed a trained decoder too where one is there."""
NUM_CLIPS, QUICK_CLIPS = 64, 8
QUICK_RESAMPLES = 20


@dataclass(frozen=True)
class Plans:
    """All that decides what is trained."""

    home: homes.HomePlan
    decoder: models.DecoderPlan
    lm: models.LMPlan


@dataclass(frozen=True)
class Trained:
    """References: decoders by way, language models by name."""

    decoders: dict[str, str]
    lms: dict[str, str]


def train(home: homes.Home, plans: Plans, wanted: tuple[str, ...]) -> Trained:
    """Gives the models that the wanted parts need, trained where they aren't there.

    Raises:
        WorkerFailure: one can't be made.
    """
    is_there = home.is_finished and models.are_decoders_trained(home, plans.decoder)
    if not set(wanted) & set(TRAINED) and not ("speed" in wanted and is_there):
        return Trained({}, {})
    say("data sets and codec")
    homes.prepare(home, plans.home)
    say("decoder and its regression twin")
    decoders = models.train_decoders(home, plans.decoder)
    lms: dict[str, str] = {}
    if "lm" in wanted:
        say(f"language models, {plans.lm.minutes:g} minutes each")
        lms = models.train_lms(home, plans.lm)
    return Trained(decoders, lms)


class Bench:
    """What the parts share: the home, the codec, the decoders as they play."""

    def __init__(self, given: Any, home: homes.Home, plans: Plans, trained: Trained) -> None:
        self.given, self.home, self.plans, self.trained = given, home, plans, trained
        self.device, self.quick = given.device, given.quick
        self._decoders: dict[str, DiffusionCodec] = {}

    @property
    def decoders(self) -> dict[str, DiffusionCodec]:
        """Gives the decoder and its twin, loaded once; none where none were trained."""
        if not self._decoders and self.trained.decoders:
            from diffusion_quality import OURS, open_decoder

            from micro_musicgen.codec.resolve import load_codec
            from micro_musicgen.engine.codec import playing

            codec = playing(load_codec(self.home.codec, self.device))
            found = self.trained.decoders.items()
            self._decoders = {way: open_decoder(codec, reference, self.device) for way, reference in found}
            play = self._play(self._decoders[OURS])
            self._decoders[OURS] = self._decoders[OURS].with_params(steps=play.steps, noise_scale=play.noise)
        return self._decoders

    def _play(self, decoder: DiffusionCodec) -> Play:
        """Gives how the decoder is played, chosen once a decoder on clips that no table is made of."""
        import diffusion_tuning as tuning

        reference = self.trained.decoders["diffusion"].removeprefix("//sig/")
        path = self.home.notes / f"play-{reference}{'-quick' if self.quick else ''}.json"
        if not path.is_file():
            say("choosing steps and noise")
            chosen_on, _ = self._clips(decoder.codec, homes.SYNTH)
            tuning.write_play(path, *tuning.tune(decoder, chosen_on, quick=self.quick))
        return tuning.read_play(path)

    def _clips(self, codec: Codec, name: str) -> tuple[Clips, Clips]:
        """Gives held-out clips of a data set to choose on and those to measure on, which of recorded breaks are all."""
        from diffusion_quality import halves, held_out

        number = QUICK_CLIPS if self.quick else NUM_CLIPS
        if name != homes.SYNTH:
            clips = held_out(codec, name, number)
            return clips, clips
        return halves(held_out(codec, name, 2 * number))

    def decoder(self) -> list[Row]:
        """Gives the table of ways from codes to sound, printed and drawn."""
        import diffusion_quality as quality

        ours = self.decoders[quality.OURS]
        rows, tables = [], {}
        for name in self.home.sets:
            _, clips = self._clips(ours.codec, name)
            tables[name] = quality.compare(ours.codec, self.decoders, clips)
            quality.print_table(name, tables[name])
            resamples = QUICK_RESAMPLES if self.quick else quality.NUM_RESAMPLES
            rows += quality.table_rows(tables[name], "" if name == homes.SYNTH else name, resamples)
        self._draw("draw_decoder", tables)
        return rows

    def steps(self) -> list[Row]:
        """Gives few against many steps."""
        import diffusion_steps as steps
        from diffusion_quality import OURS

        found, clips = steps.measure(self.decoders[OURS], self.home.sets, quick=self.quick)
        if found.curves:
            self._draw("draw_steps", found)
        return steps.rows(found, clips)

    def lm(self) -> list[Row]:
        """Gives few codebooks and the decoder against all codebooks."""
        import diffusion_lm
        from diffusion_quality import OURS

        trained, steps = self.trained, self.given.decoder_steps
        return diffusion_lm.measure(
            self.home,
            self.plans.lm,
            trained.lms,
            trained.decoders[OURS],
            noise=self.decoders[OURS].params.noise_scale,
            device=self.device,
            quick=self.quick,
            steps=steps,
        )

    def speed(self) -> list[Row]:
        """Gives calls, steps a second and realtime factors."""
        import diffusion_speed
        from diffusion_quality import OURS

        return diffusion_speed.rows(self.device, quick=self.quick, decoder=self.decoders.get(OURS))

    def memory(self) -> list[Row]:
        """Gives the memory of local attention, which is a CPU's here whatever the device."""
        import diffusion_memory

        say("memory of local attention")
        rows = diffusion_memory.rows(quick=self.quick)
        self._draw("draw_memory", rows)
        return rows

    def _draw(self, name: str, what: Any) -> None:
        import diffusion_plot

        if not self.quick:
            draw: Callable[[Any], Path] = getattr(diffusion_plot, name)
            say(f"drew {draw(what)}")


def plans_for(given: Any, cache: Path) -> tuple[homes.Home, Plans]:
    """Gives home and plans: the small ones for `--quick`, unless the full ones are made already."""
    recorded = homes.RECORDED.is_dir()
    if not recorded:
        say(f"no recorded breaks in {homes.RECORDED}: procedural ones alone")
    settings = {"threads": given.threads, "device": given.device}
    full = Plans(
        replace(homes.FULL, recorded=recorded, threads=given.threads),
        replace(models.DecoderPlan(), **settings),
        replace(models.LMPlan(), **settings),
    )
    home = homes.home_of(cache, full.home, given.home)
    if not given.quick or models.are_trained(home, full.decoder, full.lm):
        return home, full
    small = Plans(
        replace(homes.QUICK, recorded=recorded, threads=given.threads),
        replace(models.QUICK_DECODER, **settings),
        replace(models.QUICK_LM, **settings),
    )
    return homes.home_of(cache, small.home), small


def main() -> int:
    """Gives the exit code."""
    parser = common.bench_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--only", metavar="PARTS", help=f"of {', '.join(PARTS)}, with commas between")
    parser.add_argument("--home", type=Path, metavar="DIR", help="a data home whose data sets and runs are used")
    parser.add_argument("--threads", type=int, default=0, help="to train with (default: all cores)")
    parser.add_argument("--decoder-steps", type=int, help="of the decoder behind the LM (default: for equal time)")
    given = parser.parse_args()
    wanted = common.wanted_parts(given.only, PARTS)
    home, plans = plans_for(given, cache_root(given.cache))
    try:
        trained = train(home, plans, wanted)
        if given.prepare:
            return 0
        os.environ["MICRO_MUSICGEN_HOME"] = str(home.data)
        bench = Bench(given, home, plans, trained)
        rows = [row for part in wanted for row in getattr(bench, part)()]
    except WorkerFailure as failure:
        say(f"error: {failure}")
        return 1
    return common.finish(rows, given)


if __name__ == "__main__":
    sys.exit(main())
