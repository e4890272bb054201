"""Cold boot: from the start of a process to the end of it, with a clip of 10 s on disk in between."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

import hf
from common import Row, Sample, make_row, say
from plan import PEERS
from pool import BENCH, Variant, WorkerFailure, run_process

MODELS = ("nano", "nano_nanocodec")
DURATION_S = 10.0
NOTE = f"one clip of {DURATION_S:g} s"
AIMS = {"nano": "ratio >= 3"}


def row_name(model: str) -> str:
    """Gives the name of our row."""
    return f"cold_boot_{model}_s"


def wanted(only: str | None, *, quick: bool) -> list[str]:
    """Gives the models of which a row matches the regular expression `only`; with `quick` and without it, the first."""
    if only is None:
        return list(MODELS[:1] if quick else MODELS)
    return [model for model in MODELS if re.search(only, row_name(model))]


def command(variant: Variant, folder: Path, out: Path, device: str) -> list[str]:
    """Gives the command line of the same job in one engine. Ours is what a user types."""
    if variant.engine != "ours":
        started = [sys.executable, str(BENCH / "cold.py")]
        return [*started, variant.engine, str(folder), str(out), f"{DURATION_S:g}", device]
    installed = Path(sys.executable).with_name("micro-musicgen")
    script = "from micro_musicgen.cli import run; run()"
    start = [str(installed)] if installed.is_file() else [sys.executable, "-c", script]
    job = ["generate", str(folder / "micro"), "-n", "1", "--duration", f"{DURATION_S:g}", "--seed", "0"]
    return [*start, *job, "--out", str(out), "--device", device, "--overwrite"]


def rows(model: str, folder: Path, device: str, *, repeats: int) -> list[Row]:
    """Gives the rows of one model: ours and transformers, each against audiocraft. Nothing is left on disk."""
    variants = [Variant("ours", "auto"), *PEERS]
    values: dict[Variant, list[float]] = {v: [] for v in variants}
    failures: dict[Variant, str] = {} if hf.is_installed() else {PEERS[1]: "not installed"}
    for path in folder.glob("*/*"):  # so that nobody pays for the disk
        if path.is_file():
            path.read_bytes()
    for turn in range(repeats):
        for variant in [v for v in variants if v not in failures]:
            out = Path(tempfile.mkdtemp(prefix="micro_musicgen_bench_"))
            try:
                seconds = run_process(command(variant, folder, out, device))
                if not list(out.glob("*.wav")):
                    failures[variant] = "wrote no clip"
                else:
                    values[variant].append(seconds)
            except WorkerFailure as failure:
                failures[variant] = str(failure)
            finally:
                shutil.rmtree(out, ignore_errors=True)
        say(f"cold boot {model}: round {turn + 1} of {repeats}")
    samples = {v: Sample(tuple(values[v]), failures.get(v, "")) for v in variants}
    theirs = samples[PEERS[0]]
    name = row_name(model)
    return [
        make_row(name, samples[variants[0]], "s", peer="audiocraft", theirs=theirs, aim=AIMS.get(model), note=NOTE),
        make_row(f"{name}_transformers", samples[PEERS[1]], "s", peer="audiocraft", theirs=theirs),
    ]
