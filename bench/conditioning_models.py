"""The models of the conditioning bench: one a conditioner, alike in all else, trained by the project's own trainer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from conditioning_home import DATASET, Home, HomePlan
from pool import run_process

CONDITIONERS = ("text_cross", "text_audio", "text_prefix")
CLIP_S = 2.4
"""How long clips and audio prompts are; the judge listens to as much."""
WINDOW_S = 0.6
"""What models learn at once. Only the beginning of a crop has to be guessed from what is said, the rest goes on from
there: equally many frames in short crops hold more beginnings. Of 32 clips each, 0.6 s after 240 steps did 0.82 of what
was asked, 2.4 s after 300 steps 0.78; the difference is within what chance gives.
"""
MAX_TOKENS = 48
EPOCHS = 3
DROPOUT = 0.1
SOUND_DROPOUT = 0.3
"""Share of crops told in words alone. A sound tells all that words do, so that with 0.1 few crops teach words."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how every model is trained. threads: 0 for all; decides no result."""

    steps: int = 800
    batch_size: int = 48
    lr: float = 4e-3
    scale: str = "nano"
    seed: int = 2036
    device: str = "cpu"
    threads: int = 0


QUICK = Recipe(steps=240)


def overrides(conditioner: str, home: Home, plan: HomePlan, recipe: Recipe) -> list[str]:
    """Gives the overrides of a model's run, as they would be typed after `dora run`."""
    each = list(range(plan.num_codebooks))
    argv = [
        "solver=musicgen/micro_32khz",
        f"dset=audio/{DATASET}",
        f"model/lm/model_scale={recipe.scale}",
        f"conditioner={conditioner}",
        f"compression_model_checkpoint={home.codec}",
        f"transformer_lm.card={plan.bins}",
        f"transformer_lm.n_q={plan.num_codebooks}",
        f"codebooks_pattern.delay.delays={each}",
        f"codebooks_pattern.unroll.flattening={each}",
        f"codebooks_pattern.unroll.delays={[0] * plan.num_codebooks}",
        f"dataset.segment_duration={WINDOW_S}",
        f"dataset.batch_size={recipe.batch_size}",
        "dataset.valid.num_samples=48",
        "optim.optimizer=muon",
        f"optim.lr={recipe.lr}",
        f"optim.epochs={EPOCHS}",
        f"optim.updates_per_epoch={recipe.steps // EPOCHS}",
        "generate.every=never",
        f"seed={recipe.seed}",
        f"device={recipe.device}",
        f"num_threads={recipe.threads}",
        f"transformer_lm.dropout={DROPOUT}",
        "transformer_lm.attention_dropout=0.0",  # torch's fast attention has none on a CPU
    ]
    if "text" in conditioner:
        argv += [f"conditioners.description.text.encoder={home.encoder}"]
        argv += [f"conditioners.description.text.max_length={MAX_TOKENS}"]
    if "audio" in conditioner:
        argv += [f"attribute_dropout.wav.audio_prompt={SOUND_DROPOUT}"]
        argv += [f"conditioners.audio_prompt.audio_prompt.duration_s={CLIP_S}"]
    return [argument.replace(", ", ",") for argument in argv]


def train(home: Home, plan: HomePlan, recipe: Recipe, wanted: Sequence[str] = CONDITIONERS) -> dict[str, str]:
    """Gives references of the trained models by conditioner; what is trained already is not trained again.

    Raises:
        WorkerFailure: one can't be trained.
    """
    found = {}
    for conditioner in wanted:
        said = home.folder / f"{conditioner}.json"
        told = json.dumps([str(home.folder), asdict(plan), asdict(recipe), conditioner])
        run_process([sys.executable, str(Path(__file__).resolve()), told], timeout_s=7200)
        found[conditioner] = f"//sig/{json.loads(said.read_text(encoding='utf-8'))['signature']}"
    return found


def main() -> None:
    """Trains one model: [folder of the home, its plan, the recipe, the conditioner] as JSON."""
    folder, plan, recipe, conditioner = json.loads(sys.argv[1])
    home = Home(Path(folder))
    from micro_musicgen import paths, storage

    os.environ[paths.HOME_VARIABLE] = str(home.data)
    from micro_musicgen.train import run_xp

    run = run_xp(overrides(conditioner, home, HomePlan(**plan), Recipe(**recipe)))
    storage.write_json(home.folder / f"{conditioner}.json", {"signature": run.name})


if __name__ == "__main__":
    main()
