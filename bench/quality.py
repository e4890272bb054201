"""The quality guard: what a precision costs in cross-entropy of held-out codes, on a model that was really trained.

`--prepare` makes breakbeats, trains a codec and an LM on them for some minutes, and keeps the release and the codes of
the held-out sounds. Rounded weights of a random model would prove nothing: only a trained one has something to lose.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from common import Row, Sample, make_row, say
from models import spec_of
from plan import DEFAULT_PRECISION, PRECISIONS
from pool import Variant, Worker, WorkerFailure, run_process

DATASET = "bench"
SCALE = "nano"
SOUND_MINUTES = 6.0
CROP_FRAMES = 400
"""Of each held-out stretch: the window of 8 s that training uses."""
MAX_CROPS = 16
COST_AIM = "ratio >= 0.995"
"""No more than 0.5 % of cross-entropy lost against fp32."""
EVERYWHERE = "int8_everywhere"
"""int8 in every matrix, also those that are too small to gain from it: what it would cost at the very worst."""
RELEASE, CODES = "micro", "codes.pt"


def folder_of(cache: Path) -> Path:
    """Gives where the scored model and its codes are kept."""
    return cache / f"quality-{SCALE}"


def prepare(cache: Path, minutes: float) -> None:
    """Makes the scored model in a process of its own, unless it is there.

    Raises:
        WorkerFailure: it can't be made.
    """
    folder = folder_of(cache)
    if (folder / CODES).is_file():
        return
    say(f"training the model whose precision is scored: about {minutes:g} minutes, once")
    timeout_s = 60 * (3 * minutes + 10)
    run_process([sys.executable, str(Path(__file__).resolve()), str(folder), str(minutes)], timeout_s=timeout_s)


def rows(cache: Path, device: str) -> list[Row]:
    """Gives the cross-entropy under each precision against fp32; notes where there is nothing to score."""
    folder = folder_of(cache)
    precisions = ("fp32", *(p for p in PRECISIONS if p != "fp32"), EVERYWHERE)
    if not (folder / CODES).is_file():
        failure = Sample(failure="no trained model here; make it with --prepare")
        return [make_row(_name(precision), failure, "nat") for precision in precisions]
    scores = {precision: _score(folder, precision, device) for precision in precisions}
    found = []
    for precision, score in scores.items():
        if precision == "fp32":
            note = f"a model that knows nothing has {math.log(_card(folder)):.3f} nat"
            found.append(make_row(_name(precision), score, "nat", note=note))
            continue
        reference = scores["fp32"].median
        value = score.median
        cost = "" if reference is None or value is None else f"costs {100 * (value / reference - 1):+.4f} %"
        found.append(
            make_row(
                _name(precision), score, "nat", peer="ours fp32", theirs=scores["fp32"], note=cost,
                aim=COST_AIM if precision == DEFAULT_PRECISION else None,
            )
        )  # fmt: skip
    return found


def _card(folder: Path) -> int:
    return spec_of(folder).card


def _name(precision: str) -> str:
    return "held_out_ce" if precision == DEFAULT_PRECISION else f"held_out_ce_{precision}"


def _score(folder: Path, precision: str, device: str) -> Sample:
    say(f"scoring held-out codes under {precision}")
    try:
        with Worker(Variant("ours", precision), folder, device) as worker:
            return Sample((worker.ask("score", codes_file=str(folder / CODES))["value"],))
    except WorkerFailure as failure:
        return Sample(failure=str(failure))


def make(folder: Path, minutes: float) -> None:
    """Fills `folder` with sounds, a data home, the release and the held-out codes [B, K, T]."""
    from micro_musicgen import paths, storage

    home = storage.ensure_writable(folder / "home")
    os.environ[paths.HOME_VARIABLE] = str(home)
    from micro_musicgen import training
    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.data.prepare import prepare as prepare_sounds
    from micro_musicgen.release.export import export

    sounds = folder / "sounds"
    if not sounds.is_dir():
        write_breaks(sounds, seed=0, minutes=SOUND_MINUTES)
    prepare_sounds(sounds, DATASET, seed=0, valid_fraction=0.2, overwrite=True)
    request = training.TrainingRequest(
        dataset=DATASET,
        minutes=minutes,
        scale=SCALE,
        seed=2036,
        overrides=("generate.every=never",),
    )
    run = training.train(request)
    export(run, folder / RELEASE, form="micro", name="bench", overwrite=True)
    _write_codes(folder)


def _write_codes(folder: Path) -> None:
    """Writes stretches of the codes of the held-out sounds, as training stored them."""
    import torch

    from micro_musicgen import paths
    from micro_musicgen.data.tokens import open_token_store

    crops = []
    for found in sorted(paths.tokens_dir().glob(f"{DATASET}-valid-*")):
        store = open_token_store(found)
        for index in range(len(store.tracks)):
            codes = torch.from_numpy(store.codes(index).astype("int64")).t()  # [K, T]
            crops += [codes[:, at : at + CROP_FRAMES] for at in range(0, codes.shape[1], CROP_FRAMES)]
    whole = [crop for crop in crops if crop.shape[1] == CROP_FRAMES]
    assert whole, "no held-out stretch is as long as the window"
    step = max(1, len(whole) // MAX_CROPS)
    torch.save(torch.stack(whole[::step][:MAX_CROPS]), folder / CODES)


if __name__ == "__main__":
    make(Path(sys.argv[1]), float(sys.argv[2]))
