"""Muon against AdamW at equal tokens: the same model, codes, order of crops, schedule and number of steps.

    python bench/optimizers.py [--quick] [--json FILE] [--cache DIR] [--scale nano] [--seeds 3] [--steps 500] [--jobs 1]

Codes are those of synthesised breaks under the codec that `quality.py` trains (`--prepare` makes both). For each
optimiser every rate of RATES is tried with the first seed, the best is run again with the other seeds, and the
cross-entropy of held-out codes at the end is compared. A finished run is kept in the cache and not repeated, so the
bench can be stopped at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import common
import models
from common import Row, Sample, make_row, say
from models import NUM_CODEBOOKS, SAMPLE_RATE, cache_root

RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
OPTIMIZERS = ("adamw", "muon")
SEEDS = 3
STEPS = 500
QUICK_STEPS = 150
BATCH, FRAMES = 4, 200
SOUND_MINUTES = 30.0
VALID_CROPS = 48
DATASET = "optimizers"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run by all that decides its result, and the threads that it takes (0 for all cores)."""

    optimizer: str
    lr: float
    seed: int
    steps: int
    scale: str
    device: str
    threads: int = 0

    @property
    def key(self) -> str:
        """Gives 12 hex digits of all but the threads."""
        facts = {**asdict(self), "batch": BATCH, "frames": FRAMES}
        del facts["threads"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def prepare(cache: Path, minutes: float) -> None:
    """Makes the codec, the breaks and their codes below `cache`, where they are not there yet."""
    import quality

    quality.prepare(cache, minutes)
    os.environ["MICRO_MUSICGEN_HOME"] = str(quality.folder_of(cache) / "home")
    from micro_musicgen import paths
    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.data.prepare import prepare as prepare_sounds

    sounds = cache / DATASET / "sounds"
    if not sounds.is_dir():
        say(f"synthesising {SOUND_MINUTES:g} minutes of breaks")
        write_breaks(sounds, seed=1, minutes=SOUND_MINUTES)
    if not (paths.manifests_dir(DATASET) / "train").is_dir():
        prepare_sounds(sounds, DATASET, seed=0, valid_fraction=0.15)
    for split in ("train", "valid"):
        open_codes(split, seed=0)


def open_codes(split: str, *, seed: int) -> Any:
    """Gives the crops of a split's codes, encoded where they are not yet."""
    from micro_musicgen import paths, references
    from micro_musicgen.codec.resolve import load_codec
    from micro_musicgen.data.code_crops import CodeCrops
    from micro_musicgen.data.encode import build_token_store
    from micro_musicgen.data.manifest import read_manifest
    from micro_musicgen.data.tokens import TokenSettings, store_folder, store_key

    run = references.newest_run("bench", solver="compression")
    assert run is not None, "no codec in the cache; make it with --prepare"
    codec = load_codec(str(run))
    tracks = read_manifest(paths.manifests_dir(DATASET) / split)
    segment_s = FRAMES / codec.frame_rate
    folder = store_folder(DATASET, split, store_key(codec.content_hash, tracks, TokenSettings(segment_s=segment_s)))
    store = build_token_store(folder, tracks, codec, segment_s=segment_s)
    return CodeCrops(store, segment_frames=FRAMES, seed=seed), codec.cardinality


def run(trial: Trial, cache: Path) -> dict[str, float]:
    """Gives held-out cross-entropy in nats, median seconds of a step, and those of the optimiser in it."""
    kept = cache / DATASET / "runs" / f"{trial.key}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    found = train(trial)
    say(
        f"{trial.optimizer} lr {trial.lr:g} seed {trial.seed}: {found['ce']:.4f} nat, {1 / found['step_s']:.2f} steps/s"
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    scratch = kept.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps({**found, "trial": asdict(trial)}) + "\n", encoding="utf-8")
    os.replace(scratch, kept)
    return found


def run_all(trials: list[Trial], cache: Path, jobs: int) -> list[dict[str, float]]:
    """Gives what `run` gives for each, `jobs` at a time in processes of their own, each with its share of the cores."""
    if jobs == 1:
        return [run(trial, cache) for trial in trials]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(run, [replace(trial, threads=threads) for trial in trials], [cache] * len(trials)))


def train(trial: Trial) -> dict[str, float]:
    """See `run`."""
    import torch

    from micro_musicgen.lm.builder import build_lm, lm_config
    from micro_musicgen.lm.losses import code_losses
    from micro_musicgen.solvers.machine import settle
    from micro_musicgen.solvers.optimise.optim import build_optimizer, set_learning_rate
    from micro_musicgen.solvers.optimise.schedule import Plan, cosine

    crops, card = open_codes("train", seed=trial.seed)
    argv = [
        "solver=musicgen/micro_32khz",
        f"model/lm/model_scale={trial.scale}",
        "conditioner=none",
        f"transformer_lm.card={card}",
        f"transformer_lm.n_q={NUM_CODEBOOKS}",
        f"optim.optimizer={trial.optimizer}",
        f"optim.lr={trial.lr}",
        f"device={trial.device}",
        f"num_threads={trial.threads}",
    ]
    cfg = settle(models._compose(argv))
    torch.set_num_threads(cfg.num_threads)
    torch.manual_seed(trial.seed)
    model = build_lm(lm_config(cfg), window_s=FRAMES * 640 / SAMPLE_RATE, device=trial.device).train()
    optimizer = build_optimizer(model, cfg.optim)
    factor = cosine(Plan(trial.steps, [trial.steps]), warmup=0.1, lr_min_ratio=0.0, cycle_length=1.0)
    precision = torch.autocast(cfg.device.split(":")[0], dtype=getattr(torch, cfg.autocast_dtype), enabled=cfg.autocast)
    step_s, optimizer_s = [], []
    for step in range(trial.steps):
        began = _now(trial.device)
        set_learning_rate(optimizer, factor(step))
        optimizer.zero_grad(set_to_none=True)
        with precision:
            loss = code_losses(model, crops.batch(step, BATCH).to(trial.device)).mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.max_norm)
        before = _now(trial.device)
        optimizer.step()
        ended = _now(trial.device)
        step_s.append(ended - began)
        optimizer_s.append(ended - before)
    held_out, _ = open_codes("valid", seed=0)
    total, count = 0.0, 0
    with torch.no_grad():
        for codes in held_out.valid_batches(16, VALID_CROPS):
            total += float(code_losses(model.eval(), codes.to(trial.device)).mean()) * len(codes)
            count += len(codes)
    return {"ce": total / count, "step_s": statistics.median(step_s), "optimizer_s": statistics.median(optimizer_s)}


def _now(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def rows(cache: Path, *, scale: str, seeds: int, steps: int, device: str, jobs: int) -> list[Row]:
    """Gives the comparison, after whatever runs are missing."""

    def trial(name: str, lr: float, seed: int) -> Trial:
        return Trial(optimizer=name, lr=lr, seed=seed, steps=steps, scale=scale, device=device)

    tried = [(name, lr) for lr in RATES for name in OPTIMIZERS]
    found = run_all([trial(name, lr, 0) for name, lr in tried], cache, jobs)
    searched: dict[str, dict[float, float]] = {name: {} for name in OPTIMIZERS}
    for (name, lr), result in zip(tried, found, strict=True):
        searched[name][lr] = result["ce"]
    rates = {name: min(searched[name], key=lambda lr, name=name: searched[name][lr]) for name in OPTIMIZERS}
    repeated = [(name, seed) for seed in range(seeds) for name in OPTIMIZERS]
    found = run_all([trial(name, rates[name], seed) for name, seed in repeated], cache, jobs)
    best: dict[str, list[dict[str, float]]] = {name: [] for name in OPTIMIZERS}
    for (name, _), result in zip(repeated, found, strict=True):
        best[name].append(result)
    notes = "; ".join(
        f"{name}: " + ", ".join(f"{lr:g} {ce:.4f}" for lr, ce in found.items()) for name, found in searched.items()
    )
    codes = steps * BATCH * FRAMES * NUM_CODEBOOKS
    told = f"{steps} steps of {BATCH} x {FRAMES} frames, {codes:,} codes; rates tried with seed 0: {notes}"

    def sample(name: str, field: str, invert: bool = False) -> Sample:
        return Sample(tuple(1 / r[field] if invert else r[field] for r in best[name]))

    def row(title: str, field: str, unit: str, note: str = "", invert: bool = False) -> Row:
        ours, theirs = sample("muon", field, invert), sample("adamw", field, invert)
        return make_row(f"{title}_{scale}", ours, unit, peer="adamw", theirs=theirs, note=note)

    return [
        row("muon_held_out_ce", "ce", "nat", told),
        row("muon_steps_per_s", "step_s", "steps/s", invert=True),
        row("muon_optimizer_s", "optimizer_s", "s", "of one step"),
    ]


def main() -> int:
    """Gives the exit code."""
    parser = common.bench_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", default="nano", help="size of the LM (default: nano)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs at the best rate")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)")
    given = parser.parse_args()
    cache = cache_root(given.cache)
    prepare(cache, minutes=5.0)
    if given.prepare:
        return 0
    seeds, steps = (1, QUICK_STEPS) if given.quick else (given.seeds, given.steps)
    found = rows(cache, scale=given.scale, seeds=seeds, steps=steps, device=given.device, jobs=given.jobs)
    facts = common.machine()
    common.print_table(found, facts)
    if given.json:
        common.write_report(found, facts, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
