"""bench/diffusion_lm.py: few codebooks against all of them at equal time. No model is made here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import diffusion_lm as lms  # noqa: E402

RATE = 32000


def test_language_models_are_compared_at_equal_time() -> None:
    assert lms.steps_for(1.0, 0.6, 1.0) == 20  # 20 steps take the 0.4 s that the full model takes longer
    assert lms.steps_for(0.8, 0.6, 1.0) == 10
    assert lms.steps_for(0.1, 0.6, 1.0) == lms.LEAST and lms.steps_for(9, 0.6, 1.0) == lms.MOST
    assert lms.steps_for(1.0, 0.6, 0.5) == lms.PROBED, "times that make no sense decide nothing"
    rng = np.random.default_rng(0)
    real, near, far = (rng.normal(size=(8, 4, 6)) * scale for scale in (1, 1.1, 3))
    few = lms.Made(near, [2.1, 2.1])
    found = {scale: lms.Contest(lms.Made(far, [2.0, 2.2]), few, 8, "note") for scale in ("nano", "tiny")}
    rows = {row.name: row for row in lms.rows(found, lms.Made(far, [1.0]), real)}
    assert rows["lm_frechet"].ratio > 1 and "ratio 95 %" in rows["lm_frechet"].note
    assert rows["lm_clip_s"].ratio == pytest.approx(1) and rows["lm_clip_s"].peer == "full LM, nano"
    assert rows["lm_frechet_tiny"].peer == "full LM, tiny" and rows["lm_clip_s_plain"].value == 1


class Machine:
    """Stands where a model does: gives silence of the right length."""

    device, sample_rate = torch.device("cpu"), RATE

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def set_generation_params(self, **given: Any) -> None:
        self.asked.append(given["seed"])

    def generate_unconditional(self, number: int) -> torch.Tensor:
        return torch.zeros(number, 1, RATE)


def test_models_take_turns_and_meet_the_same_seeds() -> None:
    first, second = Machine(), Machine()
    models_: Any = {"a": first, "b": second}
    taken = lms.single_s(models_, 3)
    assert [len(each) for each in taken.values()] == [3, 3] and first.asked == second.asked
    assert lms.clip_rows(models_["a"], 3).shape == (3, 1, 96)
