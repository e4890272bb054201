"""How fast: our engine, audiocraft 1.3.0's own MusicGen and transformers' MusicGen with equal weights, interleaved.

    python bench/speed.py [--quick] [--prepare] [--json FILE] [--device D] [--only REGEX] [--plots]

Every engine holds each model in a process of its own and they take turns, one run at a time, so that whatever else the
machine does hits all alike. The first run of a case is not counted (how long it took is printed). A row's ratio says
how many times better it is than audiocraft in this very run. Without transformers its rows say "not installed".
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import cold_boot
import common
import hf
import quality
from common import Row, Sample, make_row, say
from limits import fastest
from models import MODELS, cache_root
from plan import DEFAULT_PRECISION, FULL, PEERS, QUICK, Budget, Case, plan, variants_of, wanted
from pool import Variant, Worker, WorkerFailure, run_process, workers
from shares import share_rows

Samples = dict[tuple[str, Variant], Sample]
LEFT_OUT = Sample(failure="left out: the time of --quick was up")


class Clock:
    """Says when the bench's time is up. total_s: None for never."""

    def __init__(self, total_s: float | None) -> None:
        self._end = None if total_s is None else time.monotonic() + total_s

    @property
    def is_up(self) -> bool:
        """Says whether nothing further should be begun."""
        return self._end is not None and time.monotonic() > self._end


def prepare_models(names: list[str], cache: Path) -> dict[str, Path]:
    """Gives the folder of each model, made in a process of its own where it isn't there.

    Raises:
        WorkerFailure: a model can't be made.
    """
    from models import cached

    folders = {name: cached(MODELS[name], cache) for name in names}
    forms = ("micro", "audiocraft", *(("transformers",) if hf.is_installed() else ()))
    missing = [name for name, folder in folders.items() if not all((folder / form).is_dir() for form in forms)]
    if missing:
        say(f"making {', '.join(missing)} (once)")
        script = Path(__file__).resolve().parent / "models.py"
        run_process([sys.executable, str(script), str(cache), *missing], timeout_s=1800)
    return folders


def measure_model(
    cases: list[Case], folder: Path, device: str, budget: Budget, clock: Clock
) -> tuple[Samples, Samples]:
    """Gives the samples of all cases of one model, and load seconds and peak memory under the names "load", "peak"."""
    needed = list(dict.fromkeys(variant for case in cases for variant in variants_of(case)))
    samples: Samples = {}
    about: Samples = {}
    if clock.is_up:
        return {(case.name, v): LEFT_OUT for case in cases for v in variants_of(case)}, about
    runnable = [v for v in needed if v.engine != "transformers" or hf.is_installed()]
    with workers(runnable, folder, device) as started:
        started = {v: started.get(v, "not installed") for v in needed}
        for variant, worker in started.items():
            loaded = Sample(failure=worker) if isinstance(worker, str) else Sample((worker.loaded["load_s"],))
            about["load", variant] = loaded
        for case in cases:
            held = {v: started[v] for v in variants_of(case)}
            samples.update(measure_case(case, held, device, budget, clock, about))
    return samples, about


def measure_case(
    case: Case, held: dict[Variant, Worker | str], device: str, budget: Budget, clock: Clock, about: Samples
) -> Samples:
    """Gives one case's samples: a warm-up each, then rounds in which the engines take turns."""
    failures = {v: worker for v, worker in held.items() if isinstance(worker, str)}
    running = {v: worker for v, worker in held.items() if not isinstance(worker, str)}
    values: dict[Variant, list[float]] = {v: [] for v in running}
    if clock.is_up:
        return {(case.name, v): LEFT_OUT for v in held}
    warm: list[str] = []

    def turn(variant: Variant, given: dict[str, Any]) -> float | None:
        try:
            answer = running[variant].ask(case.do, **given)
        except WorkerFailure as failure:
            failures[variant] = str(failure)
            del running[variant]
            return None
        if answer["peak_mb"] is not None:
            about["peak", variant] = Sample((answer["peak_mb"],))
        return float(answer["seconds"])

    for variant in list(running):
        seconds = turn(variant, case.warm_up(device))
        warm.append(f"{variant.label} {'failed' if seconds is None else f'{seconds:.2f} s'}")
    say(f"{case.name}: warm-up {', '.join(warm)}")
    began = time.monotonic()
    for _ in range(budget.repeats):
        for variant in list(running):
            seconds = turn(variant, case.given)
            if seconds is not None:
                values[variant].append(case.value(seconds))
        if time.monotonic() - began > budget.case_s or clock.is_up:
            break
    return {(case.name, v): Sample(tuple(values.get(v, ())), failures.get(v, "")) for v in held}


def case_rows(case: Case, samples: Samples, clip_s: float) -> list[Row]:
    """Gives the rows of a case: ours by precision against audiocraft, then transformers against audiocraft.

    clip_s: what a clip usually lasts; a case with another length says so.
    """
    own_s = case.given["duration_s"]
    note = "" if own_s == clip_s else f"clips of {own_s:g} s"
    theirs = samples[case.name, PEERS[0]]
    rows = []
    for variant in variants_of(case):
        if variant == PEERS[0]:
            continue
        aim = case.aims.get(variant.label) if variant.engine == "ours" else None
        own = samples[case.name, variant]
        name = case.row_name(variant)
        rows.append(make_row(name, own, case.unit, peer="audiocraft", theirs=theirs, aim=aim, note=note))
    return rows


def about_rows(model: str, about: Samples) -> list[Row]:
    """Gives load time (the library's import but for torch, and the weights) and peak memory in every engine."""
    rows = []
    for key, stem, unit in (("load", f"load_{model}_s", "s"), ("peak", f"peak_rss_{model}_mb", "MB")):
        theirs = about.get((key, PEERS[0]), Sample())
        for variant in [v for k, v in about if k == key and v != PEERS[0]]:
            name = stem if variant.label == DEFAULT_PRECISION else f"{stem}_{variant.label}"
            aim = "ratio >= 1" if key == "peak" and variant == Variant("ours", "fp32") else None
            rows.append(make_row(name, about[key, variant], unit, peer="audiocraft", theirs=theirs, aim=aim))
    return rows


def measure_rates(device: str) -> dict[str, Any]:
    """Gives the machine's own rates, measured now; empty when that fails."""
    say("measuring the machine")
    try:
        with Worker(Variant("machine"), "", device) as worker:
            return worker.ask("rates")
    except WorkerFailure as failure:
        say(f"no limits: {failure}")
        return {}


def run(given: Any, cases: list[Case], cache: Path) -> tuple[list[Row], dict[str, Any]]:
    """Gives all rows and the machine's facts."""
    budget = QUICK if given.quick else FULL
    names = list(dict.fromkeys(case.model for case in cases))
    boots = cold_boot.wanted(given.only, quick=given.quick)
    folders = prepare_models([*names, *(n for n in boots if n not in names)], cache)
    clock = Clock(budget.total_s)
    rates = measure_rates(given.device)
    measured: list[tuple[Case, list[Row]]] = []
    rows: list[Row] = []
    finished = False
    try:
        for name in boots:
            rows += cold_boot.rows(name, folders[name], given.device, repeats=1 if given.quick else 3)
        for name in names:
            mine = [case for case in cases if case.model == name]
            samples, about = measure_model(mine, folders[name], given.device, budget, clock)
            for case in mine:
                measured.append((case, case_rows(case, samples, budget.clip_s)))
                rows += measured[-1][1]
            if given.only is None:
                rows += about_rows(name, about)
        if given.only is None or "held_out" in given.only:
            rows += quality.rows(cache, given.device)
        again = measure_rates(given.device)
        rates = fastest(rates, again) if rates and again else rates
        finished = True
    except KeyboardInterrupt:
        say("interrupted; what was measured so far follows")
    for case, made in measured:
        rows += share_rows(case, made, rates, folders[case.model])
    about_run = {"device": given.device, "quick": given.quick, "clip_s": budget.clip_s, "finished": finished}
    return rows, common.machine(gpu=rates.get("gpu"), rates=rates, **about_run)


def main() -> int:
    """Gives the exit code."""
    parser = common.bench_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--only", metavar="REGEX", help="measure cases of which a row's name matches")
    parser.add_argument("--minutes", type=float, default=6.0, help="with --prepare: training time of the scored model")
    parser.add_argument("--plots", action="store_true", help="draw docs/img; with --json FILE that exists, from it")
    given = parser.parse_args()
    cache = cache_root(given.cache)
    if given.plots and given.json and given.json.is_file():
        import plots

        say(", ".join(str(path) for path in plots.draw_speed(*common.read_rows(given.json))))
        return 0
    cases = wanted(plan(quick=given.quick, device=given.device), given.only)
    try:
        if given.prepare:
            prepare_models(list(dict.fromkeys(case.model for case in cases)), cache)
            quality.prepare(cache, given.minutes)
            return 0
        rows, facts = run(given, cases, cache)
    except WorkerFailure as failure:
        say(f"error: {failure}")
        return 1
    except KeyboardInterrupt:
        return 130
    common.print_table(rows, facts)
    if given.json:
        common.write_report(rows, facts, given.json)
    if given.plots:
        import plots

        say(", ".join(str(path) for path in plots.draw_speed(rows, facts)))
    return 0 if facts["finished"] else 130


if __name__ == "__main__":
    sys.exit(main())
