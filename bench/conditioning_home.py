"""The data home of the conditioning bench: labelled loops, a codec trained on them, and a tiny T5 for their words.

Made once and kept by a hash of the code that makes them. Of the loops, the LM sees those of `TRAIN_SEED` only; the
judge learns from `JUDGE_SEED`, is examined on `EXAM_SEED`, and audio prompts are cut from `PROMPT_SEED`.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from common import say
from pool import run_process

DATASET = "labelled"
TRAIN_SEED, JUDGE_SEED, EXAM_SEED, PROMPT_SEED = 0, 1, 4, 3
SAMPLE_RATE = 32000
TEXTS_PER_TRACK = 8


def code_hash(facts: str, *modules: ModuleType) -> str:
    """Gives 12 hex digits of `facts` and of what modules do: neither comments nor docstrings nor line breaks count."""
    digest = hashlib.sha256(facts.encode())
    for module in modules:
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [part for part in body if not _is_docstring(part)]  # type: ignore[attr-defined]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]


def _is_docstring(part: ast.AST) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)


@dataclass(frozen=True, kw_only=True)
class HomePlan:
    """What decides the home. bins: of each of `num_codebooks`. threads: to train with, 0 for all; decides no result."""

    num_tracks: int = 256
    track_s: float = 12.0
    num_kits: int = 2
    num_codebooks: int = 2
    bins: int = 512
    codec_steps: int = 2000
    t5_steps: int = 600
    threads: int = 0

    @property
    def key(self) -> str:
        """Gives 12 hex digits of the plan without its threads and of the code that makes sounds and words."""
        import tiny_t5

        from micro_musicgen.audio import labelled, labelled_words, synth, voices

        facts = {**asdict(self)}
        del facts["threads"]
        return code_hash(json.dumps(facts, sort_keys=True), labelled, labelled_words, synth, voices, tiny_t5)


FULL = HomePlan()
QUICK = HomePlan(num_tracks=64, codec_steps=400, t5_steps=200)


@dataclass(frozen=True)
class Home:
    """Where the parts of a prepared home lie. It need not be there."""

    folder: Path

    @property
    def data(self) -> Path:
        """Gives what MICRO_MUSICGEN_HOME is set to."""
        return self.folder / "home"

    @property
    def sounds(self) -> Path:
        """Gives the folder of the loops that models train on."""
        return self.folder / "sounds"

    @property
    def encoder(self) -> Path:
        """Gives the folder of the tiny T5."""
        return self.folder / "t5"

    @property
    def codec(self) -> str:
        """Gives the codec's reference inside the data home."""
        return "//sig/" + (self.folder / "codec").read_text(encoding="utf-8").strip()

    @property
    def is_finished(self) -> bool:
        """Says whether all of it is there."""
        return (self.folder / "finished").is_file()


def home_of(cache: Path, plan: HomePlan) -> Home:
    """Gives the home of a plan, made or not."""
    return Home(cache / f"conditioning-{plan.key}")


def prepare(cache: Path, plan: HomePlan) -> Home:
    """Gives the home, made in a process of its own where it isn't there; a stopped one is taken up again.

    Raises:
        WorkerFailure: it can't be made.
    """
    home = home_of(cache, plan)
    if not home.is_finished:
        argv = [sys.executable, str(Path(__file__).resolve()), str(cache), json.dumps(asdict(plan))]
        run_process(argv, timeout_s=3600)
    return home


def make(home: Home, plan: HomePlan) -> None:
    """Fills `home`."""
    from micro_musicgen import paths, storage

    storage.ensure_writable(home.data)
    os.environ[paths.HOME_VARIABLE] = str(home.data)
    import tiny_t5
    import torch

    from micro_musicgen.audio.labelled import write_labelled
    from micro_musicgen.data.prepare import prepare as prepare_sounds
    from micro_musicgen.train import run_xp

    if not (paths.dset_dir() / "audio" / f"{DATASET}.yaml").is_file():
        write_labelled(home.sounds, TRAIN_SEED, plan.num_tracks, plan.track_s, SAMPLE_RATE, num_kits=plan.num_kits)
        prepare_sounds(home.sounds, DATASET, seed=0, valid_fraction=0.1, overwrite=True)
    run = run_xp(codec_argv(plan))
    if not (home.encoder / "config.json").is_file():
        torch.set_num_threads(1)  # its products are so small that more threads only wait for each other
        share = tiny_t5.make(home.encoder, texts_of(DATASET), steps=plan.t5_steps)
        say(f"the tiny T5 writes {100 * share:.0f} % of cut-out tokens back")
    storage.write_text(home.folder / "codec", f"{run.name}\n")
    storage.write_text(home.folder / "finished", "yes\n")


def texts_of(dataset: str) -> list[str]:
    """Gives texts as training would show them: of each track several variants of what is known about it."""
    from micro_musicgen import paths
    from micro_musicgen.data.descriptions import Descriptions
    from micro_musicgen.data.manifest import read_manifest

    tracks = read_manifest(paths.manifests_dir(dataset) / "train")
    said = Descriptions(tracks, seed=0)
    texts = [said.text(index, place) for place in range(TEXTS_PER_TRACK) for index in range(len(tracks))]
    return [text for text in texts if text]


def codec_argv(plan: HomePlan) -> list[str]:
    """Gives the overrides of the codec's run, as they would be typed after `dora run`."""
    return [
        "solver=compression/micro_32khz",
        "model=encodec/nano_32khz",
        f"dset=audio/{DATASET}",
        f"rvq.n_q={plan.num_codebooks}",
        f"rvq.bins={plan.bins}",
        "optim.epochs=2",
        f"optim.updates_per_epoch={plan.codec_steps // 2}",
        "dataset.valid.num_samples=8",
        f"num_threads={plan.threads}",
        "device=cpu",
        "generate.every=never",
    ]


def main() -> None:
    """Makes the home of a plan: CACHE, then the plan as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("plan", type=json.loads, help="fields of HomePlan as JSON")
    given = parser.parse_args()
    plan = HomePlan(**given.plan)
    make(home_of(given.cache, plan), plan)


if __name__ == "__main__":
    main()
