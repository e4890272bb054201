"""The data home of the beat bench: procedural and recorded breaks whose tempos are known, and the models of them.

Everything is trained by the project's own trainer, in beat time. Made once and kept by a hash of the code that makes
the sounds; a run that is there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from conditioning_home import code_hash
from diffusion_home import Home
from diffusion_models import train
from pool import run_process

DATA = "synth"
SEED = 0
ENCODEC = "encodec"
BEAT_CODECS = {"beat VQ-VAE": "residual"}
"""Beat VQ-VAEs, by what they are called in tables; of config/model/beat_vqvae."""
LOOPS, BEAT_LM = "loops", "beats"
"""Language models: of bars over the EnCodec's codes, and of one token a beat, the beat VQ-VAE's first."""


@dataclass(frozen=True, kw_only=True)
class BeatPlan:
    """All that decides the models. minutes: of procedural breaks. lm_minutes, beat_lm_minutes: of training. scale: of
    the model that makes loops. segment_bars: that it hears at once. threads: 0 for all; decides no result.
    """

    minutes: float = 40.0
    valid_fraction: float = 0.12
    codec_epochs: int = 16
    codec_updates: int = 250
    beat_epochs: int = 8
    beat_updates: int = 200
    lm_minutes: float = 8.0
    beat_lm_minutes: float = 1.0
    scale: str = "tiny"
    segment_bars: int = 4
    threads: int = 0
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Gives 12 hex digits of what decides the data and of the code that makes sounds."""
        from micro_musicgen.audio import synth, voices

        facts = {"minutes": self.minutes, "valid_fraction": self.valid_fraction}
        return code_hash(json.dumps(facts, sort_keys=True), synth, voices)


FULL = BeatPlan()
QUICK = BeatPlan(
    minutes=2.0,
    valid_fraction=0.3,
    codec_epochs=1,
    codec_updates=60,
    beat_epochs=1,
    beat_updates=20,
    lm_minutes=0.2,
    beat_lm_minutes=0.1,
    scale="nano",
    segment_bars=2,
)


@dataclass(frozen=True)
class Models:
    """References of what was trained. codecs: by what they are called in tables. lms: `LOOPS` and `BEAT_LM`."""

    codecs: Mapping[str, str]
    lms: Mapping[str, str]


def home_of(cache: Path, plan: BeatPlan, given: Path | None = None) -> Home:
    """Gives the home of a plan, made or not. given: a data home to use instead."""
    return Home(given.expanduser().resolve() if given else cache / f"beat-{plan.key}")


def prepare(home: Home, plan: BeatPlan) -> None:
    """Makes the data set where it isn't there, in a process of its own.

    Raises:
        WorkerFailure: it can't be made.
    """
    if not (home.data / "dset" / "audio" / f"{DATA}.yaml").is_file():
        argv = [sys.executable, str(Path(__file__).resolve()), str(home.data), json.dumps(asdict(plan))]
        run_process(argv, timeout_s=3600)


def make_data(home: Home, plan: BeatPlan) -> None:
    """Fills the home with sounds whose tempos are known."""
    from micro_musicgen import paths, storage
    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.data.prepare import prepare as prepare_sounds

    storage.ensure_writable(home.data)
    os.environ[paths.HOME_VARIABLE] = str(home.data)
    write_breaks(home.data / "sounds" / DATA, seed=SEED, minutes=plan.minutes)
    fraction = plan.valid_fraction
    prepare_sounds(home.data / "sounds" / DATA, DATA, seed=SEED, valid_fraction=fraction, overwrite=True, in_beats=True)


def codec_argv(plan: BeatPlan) -> list[str]:
    """Gives the overrides of the EnCodec's run, as they would be typed after `dora run`."""
    return [
        "solver=compression/micro_32khz",
        "model=encodec/nano_32khz",
        "rvq.q_dropout=true",
        "quantiser.warmup=0.6",
        "quantiser.refit=0.4",
        f"optim.epochs={plan.codec_epochs}",
        f"optim.updates_per_epoch={plan.codec_updates}",
        "optim.lr=8e-4",
        *_shared_argv(plan),
    ]


def beat_codec_argv(plan: BeatPlan, model: str) -> list[str]:
    """Gives the overrides of a beat VQ-VAE's run. model: of config/model/beat_vqvae."""
    return [
        "solver=compression/beat_vqvae",
        f"model=beat_vqvae/{model}",
        f"optim.epochs={plan.beat_epochs}",
        f"optim.updates_per_epoch={plan.beat_updates}",
        *_shared_argv(plan),
    ]


def lm_argv(plan: BeatPlan, codec: str, *, minutes: float, card: int, num_codebooks: int, bars: int) -> list[str]:
    """Gives the overrides of a language model's run over a codec's codes, told the bars."""
    each = ",".join(str(book) for book in range(num_codebooks))
    zeros = ",".join("0" * num_codebooks)
    return [
        "solver=musicgen/micro_32khz",
        f"model/lm/model_scale={plan.scale}",
        "conditioner=bars",
        f"compression_model_checkpoint={codec}",
        f"transformer_lm.card={card}",
        f"transformer_lm.n_q={num_codebooks}",
        f"codebooks_pattern.delay.delays=[{each}]",
        f"codebooks_pattern.unroll.flattening=[{each}]",
        f"codebooks_pattern.unroll.delays=[{zeros}]",
        "transformer_lm.dropout=0.1",
        "transformer_lm.attention_dropout=0.0",  # torch's fast attention has none on a CPU
        f"dataset.segment_bars={bars}",
        "dataset.batch_size=8",
        "optim.optimizer=muon",
        "optim.lr=2e-3",
        f"optim.minutes={minutes:g}",
        f"label=minutes-{minutes:g}",  # minutes are no part of a signature
        "generate.every=never",
        *_shared_argv(plan),
    ]


def _shared_argv(plan: BeatPlan) -> list[str]:
    own = [f"dset=audio/{DATA}", "dset.time=beats", f"device={plan.device}", f"num_threads={plan.threads}"]
    return [*own, "generate.every_minutes=null"]


def train_codecs(home: Home, plan: BeatPlan, *, beats: bool) -> dict[str, str]:
    """Gives references of the codecs by name, with the beat VQ-VAEs or without; what is trained already is not trained
    again.

    Raises:
        WorkerFailure: one can't be trained.
    """
    found = {ENCODEC: train(home, codec_argv(plan))}
    return found | {name: train(home, beat_codec_argv(plan, model)) for name, model in BEAT_CODECS.items() if beats}


def train_lms(home: Home, plan: BeatPlan, codecs: Mapping[str, str]) -> dict[str, str]:
    """Gives references of the language models, likewise.

    Raises:
        WorkerFailure: one can't be trained.
    """
    loops = lm_argv(plan, codecs[ENCODEC], minutes=plan.lm_minutes, card=256, num_codebooks=4, bars=plan.segment_bars)
    found = {LOOPS: train(home, loops)}
    if "beat VQ-VAE" in codecs:
        small, minutes, bars = replace(plan, scale="nano"), plan.beat_lm_minutes, 4 * plan.segment_bars
        one = f"{codecs['beat VQ-VAE']}:1"  # a few thousand beats say nothing of its finer codebooks
        beats = lm_argv(small, one, minutes=minutes, card=256, num_codebooks=1, bars=bars)
        found[BEAT_LM] = train(home, beats)
    return found


def main() -> None:
    """Makes the data of a plan: its folder, then the plan as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("plan", type=json.loads, help="fields of BeatPlan as JSON")
    given = parser.parse_args()
    make_data(Home(given.data), BeatPlan(**given.plan))


if __name__ == "__main__":
    main()
