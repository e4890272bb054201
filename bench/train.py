"""How fast training is: our solvers' own steps against audiocraft 1.3.0's own, same model, data and batch, in turns.

    python bench/train.py [--quick] [--prepare] [--json FILE] [--device D] [--only REGEX]

Every solver trains in a process of its own and they take turns, a step at a time. A step is all that the solver does
for one: data (ours: stored codes; audiocraft's: audio through the codec), gradients, optimiser, average of the weights.
The first step of each is not counted, but for audiocraft's in bf16 on a CPU without units for it, which takes minutes.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import train_home
from common import Row, Sample, make_row, say
from models import cache_root
from pool import WorkerFailure
from train_cases import (
    BF16,
    CE_AIMS,
    CODEC_AIM,
    CODEC_PHASES,
    FP32,
    FP32_AIM,
    FULL,
    LM_MODELS,
    OURS,
    QUICK,
    SPEED_AIMS,
    Size,
    codec_overrides,
    lm_overrides,
    product_shapes,
)
from train_worker import TrainWorker

LIKE = {FP32: "audiocraft fp32", BF16: "audiocraft bf16"}
CE_MARGIN = 0.01
"""How much above the lowest cross-entropy counts as having come there."""


class Clock:
    """Says when the bench's time is up. total_s: None for never."""

    def __init__(self, total_s: float | None) -> None:
        self._end = math.inf if total_s is None else time.monotonic() + total_s

    @property
    def is_up(self) -> bool:
        """Says whether nothing further should be begun."""
        return time.monotonic() > self._end


def take_turns(
    workers: dict[str, TrainWorker], rounds: int, clock: Clock, once: Sequence[str] = ()
) -> dict[str, Sample]:
    """Gives seconds per step of every worker, in turns after one to warm up. once: who does one step only."""
    values: dict[str, list[float]] = {name: [] for name in workers}
    failures: dict[str, str] = {}

    def step(name: str) -> float | None:
        try:
            return float(workers[name].ask("steps", count=1)["seconds"])
        except WorkerFailure as failure:
            failures[name] = str(failure)
            return None

    for name in workers:
        seconds = step(name)
        say(f"  {name}: first step {'failed' if seconds is None else f'{seconds:.2f} s'}")
        if name in once and seconds is not None:
            values[name].append(seconds)
    for turn in range(rounds):
        if turn and clock.is_up:
            break
        for name in [name for name in workers if name not in once and name not in failures]:
            seconds = step(name)
            if seconds is not None:
                values[name].append(seconds)
        say("  " + ", ".join(f"{name} {values[name][-1]:.2f} s" for name in workers if values[name]))
    return {name: Sample(tuple(values[name]), failures.get(name, "")) for name in workers}


def per_second(seconds: Sample) -> Sample:
    """Gives steps per second of seconds per step."""
    return Sample(tuple(1 / value for value in seconds.values), seconds.failure)


def lm_rows(model: str, size: Size, home: Path, device: str, clock: Clock, wanted: Callable[[str], bool]) -> list[Row]:
    """Gives the rows of one language model: speed against either precision, share of the limit, time to a loss."""
    name, ce_name, rows = f"lm_steps_per_s_{model}", f"time_to_ce_{model}", []
    plain = [name, f"{name}_vs_fp32", f"{name}_same_precision", f"lm_flop_share_{model}"]
    sides = [OURS, *([FP32] if any(map(wanted, plain)) else []), *([BF16] if wanted(f"{name}_vs_bf16") else [])]
    if len(sides) > 1:
        with ExitStack() as stack:
            workers = {side: stack.enter_context(start(model, side, size, home, device)) for side in sides}
            once = [BF16] if device == "cpu" else []
            taken = take_turns(workers, size.rounds, clock, once)
            rows += speed_rows(model, size, taken, workers[OURS], device)
    if wanted(ce_name):
        smaller = replace(size, batch=size.ce_batch)
        with start(model, OURS, smaller, home, device) as ours, start(model, FP32, smaller, home, device) as theirs:
            say(f"{model}: {size.ce_s:g} s of audiocraft's training, then ours to the same loss")
            rows.append(time_to_ce(ce_name, ours, theirs, smaller, CE_AIMS[model]))
    return rows


def start(model: str, side: str, size: Size, home: Path, device: str) -> TrainWorker:
    """Gives a worker of that side, to be entered."""
    say(f"{model}: starting {side}, {size.batch} x {size.segment_s:g} s")
    return TrainWorker(side, home, lm_overrides(model, side, size, home, device))


def speed_rows(model: str, size: Size, taken: dict[str, Sample], ours: TrainWorker, device: str) -> list[Row]:
    """Gives steps per second against audiocraft at its best and at each precision, and the share of the limit."""
    name, steps = f"lm_steps_per_s_{model}", {side: per_second(seconds) for side, seconds in taken.items()}
    best = max((side for side in (FP32, BF16) if side in steps), key=lambda side: steps[side].median or 0.0)
    note = f"batch {size.batch} x {size.segment_s:g} s"
    mine = steps[OURS]
    rows = []
    if FP32 in steps:
        aim = SPEED_AIMS[model]
        rows.append(make_row(name, mine, "steps/s", peer=LIKE[best], theirs=steps[best], aim=aim, note=note))
    for side, suffix, aim in ((FP32, "vs_fp32", FP32_AIM), (BF16, "vs_bf16", SPEED_AIMS[model])):
        if side in steps:
            row = make_row(f"{name}_{suffix}", mine, "steps/s", peer=LIKE[side], theirs=steps[side], aim=aim, note=note)
            rows.append(row)
    same = BF16 if device.startswith("cuda") else FP32
    if same in steps:
        rows.append(make_row(f"{name}_same_precision", mine, "steps/s", peer=LIKE[same], theirs=steps[same]))
    try:
        limit = ours.ask("limit", shapes=product_shapes(model, size))
    except WorkerFailure as failure:
        return [*rows, make_row(f"lm_flop_share_{model}", Sample(failure=str(failure)), "%")]
    share = Sample(tuple(100 * limit["seconds"] / seconds for seconds in taken[OURS].values), taken[OURS].failure)
    gflop, theirs = limit["operations"] / 1e9, taken[best].median
    at_most = (
        "" if theirs is None else f"; a step of nothing else would be {theirs / limit['seconds']:.2f}x audiocraft's"
    )
    note = (
        f"products with weights: {gflop:.0f} GFLOP a step, {limit['seconds']:.2f} s by torch.mm "
        f"({gflop / limit['seconds']:.0f} GFLOP/s){at_most}"
    )
    return [*rows, make_row(f"lm_flop_share_{model}", share, "%", note=note)]


def time_to_ce(name: str, ours: TrainWorker, theirs: TrainWorker, size: Size, aim: str) -> Row:
    """Gives the seconds of training after which either side's validation cross-entropy is first as low as the goal:
    the lowest that audiocraft came to in its time, and `CE_MARGIN` more, so that noise on a plateau decides nothing.

    Both begin with the same weights; our solver's validation, on its own crops, judges both sides' weights as trained.
    Seconds are those of training steps: validation is left out on both sides.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "weights.pt")
            ours.ask("save", path=path)
            theirs.ask("load", path=path)
            begin = ours.ask("valid")["ce"]

            def judged() -> float:
                theirs.ask("save", path=path)
                return float(ours.ask("valid", path=path)["ce"])

            upstream = _curve(theirs, judged, lambda seconds, _: seconds < size.ce_s)
            goal = (1 + CE_MARGIN) * min(ce for _, _, ce in upstream)
            mine = _curve(ours, lambda: float(ours.ask("valid")["ce"]), lambda s, ce: ce > goal and s < size.ce_s)
    except WorkerFailure as failure:
        return make_row(name, Sample(failure=str(failure)), "s", aim=aim)
    count, seconds, _ = next(point for point in upstream if point[2] <= goal)
    done, taken, reached = mine[-1]
    note = (
        f"batch {size.batch} x {size.segment_s:g} s, from {begin:.3f} to {goal:.3f} nat: {count} of audiocraft's "
        f"steps, {done} of ours"
    )
    if reached > goal:
        return make_row(name, Sample(failure=f"not reached ({reached:.3f}): {note}"), "s", aim=aim)
    return make_row(name, Sample((taken,)), "s", peer=LIKE[FP32], theirs=Sample((seconds,)), aim=aim, note=note)


def _curve(
    side: TrainWorker, valid: Callable[[], float], goes_on: Callable[[float, float], bool]
) -> list[tuple[int, float, float]]:
    """Gives (steps, seconds of training, validation cross-entropy) after every step, later after every few."""
    points: list[tuple[int, float, float]] = []
    count, seconds, ce = 0, 0.0, math.inf
    while goes_on(seconds, ce):
        chunk = max(1, count // 8)
        seconds, count = seconds + side.ask("steps", count=chunk)["seconds"], count + chunk
        ce = valid()
        points.append((count, seconds, ce))
    return points


def codec_rows(size: Size, home: Path, device: str, clock: Clock) -> list[Row]:
    """Gives steps per second of codec training: of ours, phases in their shares of a run."""
    rounds = 4 * size.rounds
    with ExitStack() as stack:
        say("codec: starting both")
        made = {
            side: stack.enter_context(TrainWorker(side, home, codec_overrides(side, device))) for side in (OURS, FP32)
        }
        phases: dict[str, dict[str, Sample]] = {}
        for name, place, _ in CODEC_PHASES:
            made[OURS].ask("seek", share=place)
            phases[name] = take_turns(made, rounds, clock)
    shares = {name: share for name, _, share in CODEC_PHASES}
    columns = zip(*(phases[name][OURS].values for name in shares), strict=False)
    mixed = Sample(tuple(sum(s * v for s, v in zip(shares.values(), column, strict=True)) for column in columns))
    theirs = Sample(tuple(value for taken in phases.values() for value in taken[FP32].values))
    rates = ", ".join(f"{name} {per_second(taken[OURS]).median or 0:.2f}" for name, taken in phases.items())
    note = f"nano_32khz, default batch; our phases, steps/s: {rates}; fitting codebooks, once a run, not counted"
    peer = LIKE[FP32]
    return [
        make_row("codec_steps_per_s", per_second(mixed), "steps/s", peer=peer, theirs=per_second(theirs), aim=CODEC_AIM,
                 note=note)
    ]  # fmt: skip


def run(given: Any, cache: Path) -> list[Row]:
    """Gives all rows that are wanted; what fails is a row with its reason."""
    size = QUICK if given.quick else FULL
    pattern = re.compile(given.only or "")
    home = train_home.prepare(cache)
    clock = Clock(size.total_s)
    rows: list[Row] = []

    def wanted(name: str) -> bool:
        return bool(pattern.search(name)) and not clock.is_up

    try:
        for model in LM_MODELS:
            rows += lm_rows(model, size, home, given.device, clock, wanted)
        if wanted("codec_steps_per_s"):
            rows += codec_rows(size, home, given.device, clock)
    except WorkerFailure as failure:
        say(f"error: {failure}")
        rows.append(make_row("failed", Sample(failure=str(failure)), "s"))
    except KeyboardInterrupt:
        say("interrupted; what was measured so far follows")
    return rows


def main() -> int:
    """Gives the exit code."""
    parser = common.bench_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--only", metavar="REGEX", help="measure rows whose name matches")
    given = parser.parse_args()
    cache = cache_root(given.cache)
    if given.prepare:
        try:
            home = train_home.prepare(cache)
            with start(LM_MODELS[0], OURS, QUICK, home, given.device):
                pass  # codes are stored for whoever comes next
        except WorkerFailure as failure:
            say(f"error: {failure}")
            return 1
        return 0
    rows = run(given, cache)
    facts = common.machine(device=given.device, quick=given.quick)
    common.print_table(rows, facts)
    if given.json:
        common.write_report(rows, facts, given.json)
    return 1 if not rows or rows[-1].name == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
