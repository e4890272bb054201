"""bench/beat_backbone.py: runs that differ by their backbone alone, and rows of what came of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fixtures_models import write_codec_run

from micro_musicgen import paths
from micro_musicgen.lm.builder import build_lm, lm_config, lm_spec
from micro_musicgen.train import main

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import beat_backbone as bench  # noqa: E402

SMALL = ("dataset.segment_duration=1", "dataset.valid.num_samples=4", "codebooks_pattern.modeling=delay")


def plan_of(home: Path, **changes: object) -> bench.BackbonePlan:
    return bench.BackbonePlan(**{"home": home, "dataset": "toy", "codec": "//sig/c0dec000", "threads": 1, **changes})


def test_runs_differ_by_their_backbone_alone(home: Path) -> None:
    text = "# @package _global_\ndatasource:\n  max_sample_rate: 32000\n  max_channels: 1\n"
    text += "".join(f"  {key}: /nowhere/{key}\n" for key in ("train", "valid", "evaluate", "generate"))
    (paths.dset_dir() / "audio").mkdir(parents=True)
    (paths.dset_dir() / "audio" / "toy.yaml").write_text(text)
    plan = plan_of(home, scale="tiny")
    argvs = {name: bench.backbone_argv(plan, name, 256, 2) for name in plan.names}
    alike = set.intersection(*map(set, argvs.values()))
    assert [sorted(set(argv) - alike) for argv in argvs.values()] == [
        [], ["model=lm/llama_lm"], ["model=lm/llama_lm", "transformer_lm.num_kv_heads=4"]
    ]  # fmt: skip
    weights = []
    for argv in argvs.values():
        config = lm_config(main.experiment(argv).cfg)
        weights.append(sum(p.numel() for p in build_lm(config, window_s=8.0).parameters()))
        assert lm_spec(config).num_parameters == weights[-1]
    assert max(weights) < 1.01 * min(weights)
    assert "optim.minutes=8" in alike and "label=equal-time-8" in alike
    steps = bench.backbone_argv(plan_of(home, steps=500), "llama", 256, 2)
    assert "optim.updates_per_epoch=50" in steps and not any("minutes" in each for each in steps)
    assert len({bench._note(plan_of(home, threads=n), "llama") for n in (1, 2)}) == 1
    assert bench._note(plan, "llama") != bench._note(plan, "llama_grouped")


def test_rows_are_against_upstreams(tmp_path: Path) -> None:
    upstream = bench.Trained("", 1000, 50, 5.0, (3.0, 2.0, 4.0), [100.0, 110.0])
    llama = bench.Trained("", 1004, 40, 4.0, (2.0, 1.0, 3.0), [80.0, 90.0])
    rows = {row.name: row for row in bench.rows(plan_of(tmp_path), {"transformer": upstream, "llama": llama})}
    assert (
        rows["backbone_nano_llama_ce"].ratio == 1.5
        and "1,004 parameters, 40 steps" in rows["backbone_nano_llama_ce"].note
    )
    assert rows["backbone_nano_llama_ce_q2"].value == 3 and rows["backbone_nano_llama_ce_q2"].peer_value == 4
    assert rows["backbone_nano_llama_train_speed"].ratio == 0.8
    assert rows["backbone_nano_llama_engine_speed"].spread == (80, 90)


@pytest.mark.slow
def test_it_runs(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.data.prepare import prepare

    write_breaks(tmp_path / "sounds", seed=0, minutes=0.4)
    prepare(tmp_path / "sounds", "toy", valid_fraction=0.3)
    write_codec_run()
    plan = plan_of(home, steps=10, batch_size=2, more=SMALL, names=("transformer", "llama_grouped"))
    rows = {row.name: row for row in bench.measure(plan, quick=True)}
    found = rows["backbone_nano_llama_grouped_ce"]
    assert found.value and found.peer_value and 1 < found.value < 6
    assert rows["backbone_nano_llama_grouped_train_steps"].value == 10
    assert rows["backbone_nano_llama_grouped_engine_speed"].n == bench.QUICK_ROUNDS
    notes = [json.loads(path.read_text())["signature"] for path in (home / "notes").iterdir()]
    assert len(notes) == 2
    again = {row.name: row.value for row in bench.measure(plan, quick=True)}
    assert again["backbone_nano_llama_grouped_ce"] == found.value, "nothing is trained again"
