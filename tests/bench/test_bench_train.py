"""bench/train.py's parts: both sides start alike, take steps, rows come out. What they say is not judged here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import train  # noqa: E402
import train_cases  # noqa: E402
import train_home  # noqa: E402
from common import Sample, aim_met  # noqa: E402
from train_cases import BF16, FP32, OURS, QUICK  # noqa: E402
from train_worker import limit_seconds  # noqa: E402

from micro_musicgen import paths  # noqa: E402

TOY = replace(QUICK, batch=2, segment_s=1.0, rounds=1, ce_batch=1, ce_s=0.5)


def test_the_two_sides_differ_in_solver_and_precision_only() -> None:
    sides = [set(train_cases.lm_overrides("tiny", side, QUICK, Path("home"), "cpu")) for side in (OURS, FP32, BF16)]
    changed = {override.partition("=")[0] for first in sides for second in sides for override in first - second}
    assert changed == {"solver", "autocast", "autocast_dtype"}


def test_a_limit_counts_forward_and_both_backward_products() -> None:
    shapes = train_cases.product_shapes("tiny", QUICK)
    weights = sum(count * width_in * width_out for count, _, width_in, width_out in shapes)
    assert weights == 6 * 12 * 256**2 + 4 * 2048 * 256
    found = limit_seconds([[2, 8, 16, 32]], "cpu", repeats=1)
    assert found["operations"] == 3 * 2 * 2 * 8 * 16 * 32 and found["seconds"] > 0


def test_speed_is_held_against_the_better_precision_of_the_peer() -> None:
    class Machine:
        def ask(self, do: str, **given: object) -> dict[str, float]:
            return {"seconds": 0.5, "operations": 1e9}

    taken = {OURS: Sample((1.0, 1.0)), FP32: Sample((4.0, 5.0, 6.0)), BF16: Sample((20.0,))}
    rows = {row.name: row for row in train.speed_rows("tiny", QUICK, taken, Machine(), "cpu")}  # type: ignore[arg-type]
    assert rows["lm_steps_per_s_tiny"].ratio == rows["lm_steps_per_s_tiny_vs_fp32"].ratio == 5
    assert rows["lm_steps_per_s_tiny_vs_bf16"].ratio == 20
    assert aim_met(rows["lm_steps_per_s_tiny"]) is False and aim_met(rows["lm_steps_per_s_tiny_vs_fp32"]) is True
    assert rows["lm_flop_share_tiny"].value == 50


def test_help_is_there_and_loads_no_torch() -> None:
    code = f"import sys, runpy; sys.argv = ['train.py', '--help']; sys.path.insert(0, {str(BENCH)!r})\n"
    code += f"try: runpy.run_path({str(BENCH / 'train.py')!r}, run_name='__main__')\n"
    code += "except SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert all(option in found.stdout for option in ("--quick", "--prepare", "--json", "--device", "--only"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_sides_train_and_reach_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_home, "CODEC", "nano_32khz")
    monkeypatch.setattr(train_home, "SOUND_MINUTES", 0.4)
    home = train_home.home_of(tmp_path)
    monkeypatch.setitem(os.environ, paths.HOME_VARIABLE, str(home))
    train_home.make(home)
    assert train_home.prepare(tmp_path) == home
    small = ["transformer_lm.dim=32", "transformer_lm.num_heads=2", "transformer_lm.num_layers=2"]
    plain = train_cases.lm_overrides

    def overrides(model: str, *given: object) -> list[str]:
        return [*plain(model, *given), *small, "transformer_lm.card=256", "optim.lr=3e-3"]  # type: ignore[arg-type]

    monkeypatch.setattr(train, "lm_overrides", overrides)
    clock = train.Clock(None)
    rows = train.lm_rows("tiny", TOY, home, "cpu", clock, lambda name: True)
    assert {row.name for row in rows} == {
        "lm_steps_per_s_tiny", "lm_steps_per_s_tiny_vs_fp32", "lm_steps_per_s_tiny_vs_bf16",
        "lm_steps_per_s_tiny_same_precision", "lm_flop_share_tiny", "time_to_ce_tiny",
    }  # fmt: skip
    assert all(row.value for row in rows), [row.note for row in rows]
    (codec,) = train.codec_rows(replace(TOY, rounds=0), home, "cpu", clock)
    assert codec.name == "codec_steps_per_s"
