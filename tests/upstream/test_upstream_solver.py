"""audiocraft's own solvers, patched, from our config tree: train, valid, evaluate, generate, resume, export, play."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

SAMPLE_RATE = 32000
CLIP_S = 2.0

RUN = """
import json, sys
import micro_musicgen.upstream
from micro_musicgen.solvers.machine import settle
from micro_musicgen.train import main
from micro_musicgen.upstream.solvers import build_upstream_solver

kind, epochs, *argv = sys.argv[1:]
xp = main.get_xp(argv)
main.init_xp(xp)
with xp.enter():
    solver = build_upstream_solver(settle(xp.cfg), kind)
    solver.should_stop_training = lambda: solver.epoch > int(epochs)  # as if the machine had been switched off
    solver.run()
print(json.dumps(str(xp.folder)))
"""

EXPORT = """
import sys, torch
import micro_musicgen.upstream
from audiocraft.models import MusicGen
from audiocraft.utils import export

codec, lm, out = sys.argv[1:]
export.export_encodec(f"{codec}/checkpoint.th", f"{out}/compression_state_dict.bin")
export.export_lm(f"{lm}/checkpoint.th", f"{out}/state_dict.bin")
model = MusicGen.get_pretrained(out, device="cpu")
model.set_generation_params(duration=0.5)
torch.manual_seed(0)
torch.save(model.generate_unconditional(2), f"{out}/clips.pt")
"""

SMALL = ["device=cpu", "num_threads=1", "dset=audio/toy", "logging.log_updates=1"]
COMPRESSION = [*SMALL, "solver=compression/debug", "losses.mrstft=0", "generate.every=1", "evaluate.every=2"]
# The moving average on "cuda", a top_k above the codec's 64 codes, and one kept epoch: each one a patch.
MUSICGEN = [
    *SMALL,
    "solver=musicgen/debug",
    "schedule.lr_scheduler=cosine",
    "optim.ema.device=cuda",
    "generate.every=2",
    "generate.lm.top_k=250",
    "evaluate.every=never",
    "checkpoint.save_every=1",
    "checkpoint.keep_last=1",
]


def _python(code: str, *arguments: str, home: Path) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AUDIOCRAFT_")}
    env = {**kept, "MICRO_MUSICGEN_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _run(kind: str, argv: list[str], home: Path, epochs: int = 99) -> Path:
    return Path(json.loads(_python(RUN, kind, str(epochs), *argv, home=home).splitlines()[-1]))


def _history(folder: Path) -> list[dict[str, dict[str, float]]]:
    history: list[dict[str, dict[str, float]]] = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    return history


def _write_data_set(home: Path) -> None:
    splits = {"train": [110, 220, 330], "valid": [165]}
    for split, pitches_hz in splits.items():
        folder = home / "egs" / "toy" / split
        folder.mkdir(parents=True)
        rows = []
        for pitch_hz in pitches_hz:
            time_s = np.arange(int(CLIP_S * SAMPLE_RATE)) / SAMPLE_RATE
            wav = 0.3 * np.sin(2 * math.pi * pitch_hz * time_s) * (1 + np.sin(2 * math.pi * 3 * time_s)) / 2
            path = folder / f"{pitch_hz}.wav"
            soundfile.write(path, wav, SAMPLE_RATE)
            rows.append({"path": str(path), "duration": CLIP_S, "sample_rate": SAMPLE_RATE})
        with gzip.open(folder / "data.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    lines = ["# @package _global_", "datasource:", f"  max_sample_rate: {SAMPLE_RATE}", "  max_channels: 1"]
    for stage, split in (("train", "train"), ("valid", "valid"), ("evaluate", "valid"), ("generate", "valid")):
        lines.append(f"  {stage}: {home / 'egs' / 'toy' / split}")
    config = home / "dset" / "audio" / "toy.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_upstreams_solvers_go_the_whole_way(tmp_path: Path) -> None:
    home = tmp_path / "home"
    _write_data_set(home)

    codec = _run("compression", COMPRESSION, home)
    assert [set(stages) for stages in _history(codec)] == [
        {"train", "valid", "generate"},
        {"train", "valid", "generate", "evaluate"},
    ]

    argv = [*MUSICGEN, f"compression_model_checkpoint=//sig/{codec.name}"]
    lm = _run("musicgen", argv, home, epochs=1)
    first = _history(lm)
    assert [set(stages) for stages in first] == [{"train", "valid"}]
    assert _run("musicgen", argv, home) == lm
    history = _history(lm)
    assert history[0] == first[0], "resuming extends the history"
    assert [set(stages) for stages in history] == [{"train", "valid"}, {"train", "valid", "generate"}]
    assert all(math.isfinite(stages["valid"]["ce"]) for stages in history)
    assert {path.name for path in lm.glob("checkpoint*")} == {"checkpoint.th", "checkpoint_2.th"}
    assert list((lm / "samples" / "2").glob("*.wav"))

    _python(EXPORT, str(codec), str(lm), str(tmp_path), home=home)
    clips = torch.load(tmp_path / "clips.pt", weights_only=True)
    assert clips.shape == (2, 1, SAMPLE_RATE // 2) and clips.isfinite().all()
