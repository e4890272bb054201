"""`micro-musicgen train NAME --decoder`: what it trains, what it refuses, and what it would take."""

from __future__ import annotations

from pathlib import Path

import pytest

from micro_musicgen import decoder_training, storage
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.training import TrainingRequest

CODEC = "//sig/c0dec000"
SMALL = ("num_threads=1", "dataset.segment_duration=0.8", "dataset.valid.num_samples=2", "optim.epochs=1",
         "optim.updates_per_epoch=2", "denoiser.dit.dim=16", "denoiser.dit.depth=1", "denoiser.dit.mlp_dim=32",
         "generate.every_minutes=null")  # fmt: skip


def test_a_decoder_is_trained_for_the_codec_that_is_named(toy_home: Path) -> None:
    request = TrainingRequest(dataset="toy", minutes=None, codec=CODEC, seed=5, overrides=SMALL)
    argv = decoder_training.decoder_overrides(request)
    assert argv[0] == "solver=diffusion_decoder/codes" and "seed=5" in argv
    folder = decoder_training.train_decoder(request)
    summary = storage.read_json(folder / "summary.json")
    assert summary["solver"] == "diffusion_decoder" and summary["codec"] == CODEC and summary["updates_done"] == 2


def test_a_dry_run_says_what_it_takes(toy_home: Path) -> None:
    request = TrainingRequest(dataset="toy", minutes=1.0, codec=CODEC, overrides=SMALL)
    plan = decoder_training.dry_run(request)["decoder"]
    assert plan["num_parameters"] > 1000 and plan["steps"] >= 1 and plan["memory_mb"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": None}, "no codec was trained on toy yet; run micro-musicgen train toy first"),
        ({"conditioner": "text_cross"}, "--decoder trains no language model"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, str | None], message: str, toy_home: Path) -> None:
    with pytest.raises(MicroMusicGenError) as caught:
        decoder_training.decoder_overrides(TrainingRequest(dataset="toy", **{"codec": CODEC, **changes}))  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)
