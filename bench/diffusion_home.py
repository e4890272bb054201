"""The data home of the diffusion bench: procedural breaks, recorded ones, both as one data set, and a codec for them.

The codec was trained with quantiser dropout, so that its plain decoder knows codes of fewer codebooks, too: a decoder
that had never met them would be no peer. Made once and kept by a hash of the code that makes the sounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from conditioning_home import code_hash
from diffusion_collages import write_collages
from pool import run_process

SYNTH, BREAKS, COLLAGES, BOTH = "synth", "breaks", "collages", "both"
SEED = 0
SAMPLE_RATE = 32000
RECORDED = Path(__file__).resolve().parents[2] / "shared" / "audio" / "breaks"
"""Where recorded breaks lie, if anywhere: beside the checkout."""


@dataclass(frozen=True, kw_only=True)
class HomePlan:
    """What decides the home. minutes: of procedural breaks. recorded: whether recorded ones are there, too.

    collage_minutes: of collages of the recorded ones that are trained on, which are half a minute. refit_epochs: of a
    second run of the codec, which leaves its encoder alone and teaches its decoder the codes as they are by then, of
    any number of codebooks; 0 for none. threads: to train with, 0 for all; decides no result.
    """

    minutes: float = 48.0
    valid_fraction: float = 0.2
    recorded: bool = True
    recorded_fraction: float = 0.3
    collage_minutes: float = 12.0
    codec_epochs: int = 24
    codec_updates: int = 250
    refit_epochs: int = 6
    threads: int = 0

    @property
    def key(self) -> str:
        """Gives 12 hex digits of the plan without its threads and of the code that makes sounds."""
        import diffusion_collages

        from micro_musicgen.audio import synth, voices

        facts = {**asdict(self)}
        del facts["threads"]
        return code_hash(json.dumps(facts, sort_keys=True), synth, voices, diffusion_collages)


FULL = HomePlan()
QUICK = HomePlan(minutes=2.0, valid_fraction=0.3, collage_minutes=0.5, codec_epochs=2, codec_updates=60, refit_epochs=1)


@dataclass(frozen=True)
class Home:
    """Where the parts of a home lie; it need not be there. data: what MICRO_MUSICGEN_HOME is set to."""

    data: Path

    @property
    def notes(self) -> Path:
        """Gives the folder of what the bench remembers about this home."""
        return self.data / "bench"

    @property
    def codec(self) -> str:
        """Gives the codec's reference inside the data home."""
        return "//sig/" + (self.notes / "codec").read_text(encoding="utf-8").strip()

    @property
    def sets(self) -> tuple[str, ...]:
        """Gives the data sets whose held-out sounds are looked at."""
        there = (self.data / "dset" / "audio" / f"{BREAKS}.yaml").is_file()
        return (SYNTH, BREAKS) if there else (SYNTH,)

    @property
    def is_finished(self) -> bool:
        """Says whether all of it is there."""
        return (self.notes / "codec").is_file()


def home_of(cache: Path, plan: HomePlan, given: Path | None = None) -> Home:
    """Gives the home of a plan, made or not. given: a data home to use instead, with data sets and runs in it."""
    return Home(given.expanduser().resolve() if given else cache / f"diffusion-{plan.key}")


def prepare(home: Home, plan: HomePlan) -> None:
    """Makes what isn't there of `home`, in a process of its own; a stopped one is taken up again.

    Raises:
        WorkerFailure: it can't be made.
    """
    if not home.is_finished:
        argv = [sys.executable, str(Path(__file__).resolve()), str(home.data), json.dumps(asdict(plan))]
        run_process(argv, timeout_s=4 * 3600)


def make(home: Home, plan: HomePlan) -> None:
    """Fills `home`. Data sets that are there are taken as they are, and so is the codec where its run is finished."""
    from micro_musicgen import paths, storage

    storage.ensure_writable(home.data)
    os.environ[paths.HOME_VARIABLE] = str(home.data)
    from micro_musicgen.train import run_xp

    if not (paths.dset_dir() / "audio" / f"{BOTH}.yaml").is_file():
        _make_data_sets(home, plan)
    run = run_xp(codec_argv(plan))
    if plan.refit_epochs:
        run = run_xp(refit_argv(plan, run.name))
    storage.write_text(home.notes / "codec", f"{run.name}\n")


def _make_data_sets(home: Home, plan: HomePlan) -> None:
    """Makes the sets and their union, whose splits are the unions of theirs; of collages there is only training."""
    from micro_musicgen import paths
    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.data.manifest import read_manifest, write_manifest
    from micro_musicgen.data.prepare import prepare as prepare_sounds

    sounds = home.data / "sounds"
    shutil.rmtree(sounds, ignore_errors=True)
    write_breaks(sounds / SYNTH, seed=SEED, minutes=plan.minutes)
    fractions = {SYNTH: plan.valid_fraction}
    if plan.recorded:
        shutil.copytree(RECORDED, sounds / BREAKS)
        fractions[BREAKS] = plan.recorded_fraction
    for name, fraction in fractions.items():
        prepare_sounds(sounds / name, name, seed=SEED, valid_fraction=fraction, overwrite=True)
    joined = {
        split: [track for name in fractions for track in read_manifest(paths.manifests_dir(name) / split)]
        for split in ("train", "valid")
    }
    if plan.recorded:
        sources = [Path(track.path) for track in read_manifest(paths.manifests_dir(BREAKS) / "train")]
        folder = sounds / COLLAGES
        write_collages(folder, sources, minutes=plan.collage_minutes, sample_rate=SAMPLE_RATE, seed=SEED)
        prepare_sounds(folder, COLLAGES, seed=SEED, valid_fraction=0.1, overwrite=True)
        joined["train"] += read_manifest(paths.manifests_dir(COLLAGES) / "train")
    prepare_sounds(sounds, BOTH, seed=SEED, valid_fraction=0.1, overwrite=True)
    for split, tracks in joined.items():
        write_manifest(paths.manifests_dir(BOTH) / split, tracks)


def codec_argv(plan: HomePlan) -> list[str]:
    """Gives the overrides of the codec's run, as they would be typed after `dora run`."""
    own = ["quantiser.warmup=0.6", "quantiser.refit=0.4", f"optim.epochs={plan.codec_epochs}", "optim.lr=8e-4"]
    return [*_shared_argv(plan), *own]


def refit_argv(plan: HomePlan, first: str) -> list[str]:
    """Gives the overrides of the codec's second run, which goes on from the signature `first`."""
    own = ["quantiser.warmup=0", "quantiser.refit=1", f"optim.epochs={plan.refit_epochs}", "optim.lr=5e-4"]
    return [*_shared_argv(plan), f"continue_from=//sig/{first}", *own]


def _shared_argv(plan: HomePlan) -> list[str]:
    return [
        "solver=compression/micro_32khz",
        "model=encodec/nano_32khz",
        f"dset=audio/{BOTH}",
        "rvq.q_dropout=true",
        f"optim.updates_per_epoch={plan.codec_updates}",
        f"num_threads={plan.threads}",
        "device=cpu",
    ]


def main() -> None:
    """Makes the home of a plan: its folder, then the plan as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("plan", type=json.loads, help="fields of HomePlan as JSON")
    given = parser.parse_args()
    make(Home(given.data), HomePlan(**given.plan))


if __name__ == "__main__":
    main()
