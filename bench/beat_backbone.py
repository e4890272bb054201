"""audiocraft's transformer against a llama of equal weight on the same codes: loss by codebook, speed of both uses.

    python bench/beat_backbone.py --home DIR --dataset NAME --codec REFERENCE --minutes 20 [--more dset.time=beats]

Each is trained by the project's own trainer in a process of its own, for equal time or (`--steps`) equally long. The
loss is that of held-out crops at the best epoch, by the averaged weights; it is the same function of the same codes for
both. A run that the home's notes know is not trained again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import Row, Sample, bench_parser, finish, make_row, say
from pool import run_process

UPSTREAM = "transformer"
BACKBONES: dict[str, tuple[str, ...]] = {
    UPSTREAM: (),
    "llama": ("model=lm/llama_lm",),
    "llama_grouped": ("model=lm/llama_lm", "transformer_lm.num_kv_heads={shared}"),
}
"""Overrides that make each. {shared}: half of the scale's heads."""
IGNORED = ("device=", "num_threads=")
"""Overrides that decide no result."""
QUICK_MINUTES = 0.2
EPOCHS = 10
ENGINE_STEPS, ENGINE_ROUNDS, QUICK_ROUNDS = 150, 9, 3


@dataclass(frozen=True, kw_only=True)
class BackbonePlan:
    """How the backbones are trained, alike. home: a data home with `dataset` in it. codec: reference of its codec.

    minutes: of training, each; steps: so many instead. scale: of config/model/lm/model_scale. more: further overrides
    of all, such as those of beat time. names: which of `BACKBONES`, UPSTREAM among them. threads: 0 for all.
    """

    home: Path
    dataset: str
    codec: str
    scale: str = "nano"
    minutes: float = 8.0
    steps: int | None = None
    batch_size: int = 8
    lr: str = "2e-3"
    optimizer: str = "muon"
    dropout: float = 0.1
    seed: int = 2036
    device: str = "cpu"
    threads: int = 0
    more: tuple[str, ...] = ()
    names: tuple[str, ...] = tuple(BACKBONES)


@dataclass(frozen=True)
class Trained:
    """What came of one run. losses: held out, the mean's first, then each codebook's, in nats.

    steps_per_s: of training. engine: steps a second of single clips, of each round.
    """

    reference: str
    num_parameters: int
    steps: int
    steps_per_s: float
    losses: tuple[float, ...]
    engine: list[float] = field(default_factory=list)


def backbone_argv(plan: BackbonePlan, name: str, card: int, num_codebooks: int) -> list[str]:
    """Gives the overrides of a run, as they would be typed after `dora run`. name: one of `BACKBONES`."""
    from micro_musicgen.lm.scales import spec

    shared = max(1, spec(plan.scale).num_heads // 2)
    books = range(num_codebooks)
    if plan.steps is None:
        # Minutes are no part of a signature.
        length = [f"optim.minutes={plan.minutes:g}", f"label=equal-time-{plan.minutes:g}"]
    else:
        length = [f"optim.epochs={EPOCHS}", f"optim.updates_per_epoch={max(1, plan.steps // EPOCHS)}"]
    return [
        "solver=musicgen/micro_32khz",
        f"dset=audio/{plan.dataset}",
        f"model/lm/model_scale={plan.scale}",
        *(override.format(shared=shared) for override in BACKBONES[name]),
        f"compression_model_checkpoint={plan.codec}",
        f"transformer_lm.card={card}",
        f"transformer_lm.n_q={num_codebooks}",
        f"codebooks_pattern.delay.delays=[{','.join(map(str, books))}]",
        f"dataset.batch_size={plan.batch_size}",
        f"transformer_lm.dropout={plan.dropout:g}",
        "transformer_lm.attention_dropout=0.0",  # torch's fast attention has none on a CPU
        f"optim.optimizer={plan.optimizer}",
        f"optim.lr={plan.lr}",
        *length,
        "generate.every=never",
        "evaluate.every=never",
        f"seed={plan.seed}",
        *plan.more,
        f"device={plan.device}",
        f"num_threads={plan.threads}",
    ]


def train_backbones(plan: BackbonePlan) -> dict[str, Trained]:
    """Gives what came of each of the plan's backbones, one trained after the other.

    Raises:
        WorkerFailure: one can't be trained.
    """
    found = {}
    for name in plan.names:
        length = f"{plan.minutes:g} minutes" if plan.steps is None else f"{plan.steps} steps"
        say(f"training {name} at {plan.scale} for {length}")
        found[name] = _trained(plan.home, _run(plan, name))
    return found


def _run(plan: BackbonePlan, name: str) -> str:
    """Gives the signature of a run, trained unless a note says that it is."""
    note = _note(plan, name)
    if not note.is_file():
        told = {"home": str(plan.home), "note": str(note), "name": name, "plan": _plain(plan)}
        run_process([sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(told)], timeout_s=6 * 3600)
    return str(json.loads(note.read_text(encoding="utf-8"))["signature"])


def _plain(plan: BackbonePlan) -> dict[str, Any]:
    return {**plan.__dict__, "home": str(plan.home)}


def _note(plan: BackbonePlan, name: str) -> Path:
    argv = backbone_argv(plan, name, 0, 0)
    decisive = [argument for argument in argv if not argument.startswith(IGNORED)]
    return plan.home / "notes" / f"run-{hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]}.json"


def _trained(home: Path, signature: str) -> Trained:
    from micro_musicgen.checkpoints import load

    folder = home / "xps" / signature
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    best = min((epoch["valid"] for epoch in history), key=lambda valid: valid["ce"])
    levels = sorted(int(key.removeprefix("ce_q")) for key in best if key.startswith("ce_q"))
    weights = load(folder / "checkpoint.th", lazily=True)["best"]["model"]
    seconds = sum(epoch["train"]["duration"] for epoch in history)
    return Trained(
        reference=str(folder),
        num_parameters=sum(weight.numel() for weight in weights.values()),
        steps=int(summary["updates_done"]),
        steps_per_s=summary["updates_done"] / seconds,
        losses=(best["ce"], *(best[f"ce_q{level}"] for level in levels)),
    )


def time_engines(found: Mapping[str, Trained], *, device: str, rounds: int = ENGINE_ROUNDS) -> None:
    """Adds the engine's speed to each: single clips in fp32, in turns so that all meet the same machine."""
    from micro_musicgen.contracts import GenerationParams
    from micro_musicgen.engine.engine import MicroMusicGen
    from micro_musicgen.engine.sampler import chances, clip_generators

    models = {
        name: MicroMusicGen.get_pretrained(each.reference, device=device, precision="fp32")
        for name, each in found.items()
    }
    params = GenerationParams(top_k=0)
    for number in range(-1, rounds):
        for name, model in models.items():
            chance = chances(clip_generators(0, 1), model.runner.network.arch.num_codebooks, ENGINE_STEPS)
            began = time.perf_counter()
            steps = sum(1 for _ in model.runner.run(params, ENGINE_STEPS, chance))
            seconds = time.perf_counter() - began
            if number >= 0:
                found[name].engine.append(steps / seconds)


def rows(plan: BackbonePlan, found: Mapping[str, Trained]) -> list[Row]:
    """Gives the rows of every backbone but upstream's against upstream's."""
    made = []
    theirs = found[UPSTREAM]
    for name, ours in found.items():
        if name != UPSTREAM:
            made += _rows(f"backbone_{plan.scale}_{name}", plan, ours, theirs)
    return made


def _rows(name: str, plan: BackbonePlan, ours: Trained, theirs: Trained) -> list[Row]:
    length = f"{plan.minutes:g} min" if plan.steps is None else f"{plan.steps} steps"
    note = (
        f"{ours.num_parameters:,} parameters, {ours.steps} steps; peer {theirs.num_parameters:,}, {theirs.steps}; "
        f"{length} each, {plan.optimizer}, batch {plan.batch_size}, data {plan.dataset}"
    )

    def row(what: str, unit: str, ours: Sequence[float], theirs: Sequence[float], note: str = "") -> Row:
        sides = [Sample(tuple(values)) for values in (ours, theirs)]
        return make_row(f"{name}_{what}", sides[0], unit, peer="upstream backbone", theirs=sides[1], note=note)

    made = [row("ce", "nat", ours.losses[:1], theirs.losses[:1], note)]
    for level, (our_loss, their_loss) in enumerate(zip(ours.losses[1:], theirs.losses[1:], strict=True), 1):
        made.append(row(f"ce_q{level}", "nat", [our_loss], [their_loss]))
    made.append(row("train_steps", "steps", [float(ours.steps)], [float(theirs.steps)]))
    made.append(row("train_speed", "steps/s", [ours.steps_per_s], [theirs.steps_per_s]))
    if ours.engine and theirs.engine:
        made.append(row("engine_speed", "steps/s", ours.engine, theirs.engine, "one clip at a time, fp32"))
    return made


def measure(plan: BackbonePlan, *, quick: bool = False) -> list[Row]:
    """Trains, times and gives the rows.

    Raises:
        WorkerFailure: a backbone can't be trained.
    """
    from micro_musicgen import paths

    kept = os.environ.get(paths.HOME_VARIABLE)
    os.environ[paths.HOME_VARIABLE] = str(plan.home)
    try:
        found = train_backbones(plan)
        time_engines(found, device=plan.device, rounds=QUICK_ROUNDS if quick else ENGINE_ROUNDS)
    finally:
        if kept is None:
            del os.environ[paths.HOME_VARIABLE]
        else:
            os.environ[paths.HOME_VARIABLE] = kept
    return rows(plan, found)


def work(told: Mapping[str, Any]) -> None:
    """Trains one backbone and leaves the note."""
    from micro_musicgen import paths, storage

    os.environ[paths.HOME_VARIABLE] = told["home"]
    from micro_musicgen.codec.resolve import load_codec
    from micro_musicgen.train import run_xp

    plain = told["plan"]
    listed = {key: tuple(plain[key]) for key in ("more", "names")}
    plan = BackbonePlan(**{**plain, **listed, "home": Path(plain["home"])})
    codec = load_codec(plan.codec)
    argv = backbone_argv(plan, told["name"], codec.cardinality, codec.num_codebooks)
    folder = run_xp(argv)
    storage.write_json(Path(told["note"]), {"signature": folder.name, "argv": argv})


def main() -> int:
    """Runs the bench; or, as a worker, trains one backbone."""
    if sys.argv[1:2] == ["--worker"]:
        work(json.loads(sys.argv[2]))
        return 0
    parser = bench_parser(__doc__)
    parser.add_argument("--home", type=Path, required=True, help="data home that holds the data set and the codec")
    parser.add_argument("--dataset", required=True, help="its name there")
    parser.add_argument("--codec", required=True, help="reference of the codec whose codes are modelled")
    parser.add_argument("--scale", default=BackbonePlan.scale, help="of config/model/lm/model_scale")
    parser.add_argument("--minutes", type=float, default=BackbonePlan.minutes, help="of training, each")
    parser.add_argument("--steps", type=int, help="equally many steps instead")
    parser.add_argument("--batch-size", type=int, default=BackbonePlan.batch_size)
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    parser.add_argument("--more", nargs="*", default=[], help="further overrides of all runs")
    given = parser.parse_args()
    plan = BackbonePlan(
        home=given.home.resolve(),
        dataset=given.dataset,
        codec=given.codec,
        scale=given.scale,
        minutes=QUICK_MINUTES if given.quick else given.minutes,
        steps=given.steps,
        batch_size=given.batch_size,
        threads=given.threads,
        more=tuple(given.more),
        device=given.device,
    )
    if given.prepare:
        train_backbones(plan)
        return 0
    return finish(measure(plan, quick=given.quick), given)


if __name__ == "__main__":
    sys.exit(main())
