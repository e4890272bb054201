"""audiocraft's own solver by its name in our tree, on a codec that our solver left behind."""

import json
from pathlib import Path

import pytest

from micro_musicgen.train import run_xp

ARGV = [
    "solver=musicgen/upstream_32khz",
    "dset=audio/toy",
    "compression_model_checkpoint=//sig/c0dec000",
    "transformer_lm.dim=16",
    "transformer_lm.num_heads=2",
    "transformer_lm.num_layers=1",
    "transformer_lm.card=64",
    "dataset.batch_size=2",
    "dataset.segment_duration=1",
    "dataset.valid.num_samples=2",
    "optim.epochs=1",
    "optim.updates_per_epoch=2",
    "num_threads=1",
]


@pytest.mark.slow
def test_upstreams_solver_trains_on_our_codec(toy_home: Path) -> None:
    folder = run_xp(ARGV)
    (epoch,) = json.loads((folder / "history.json").read_text())
    assert {"train", "valid"} <= set(epoch) and epoch["valid"]["ce"] > 0
    assert (folder / "checkpoint.th").is_file() and (folder / "codec" / "compression_state_dict.bin").is_file()
