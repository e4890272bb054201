"""bench/token_crops.py against a codec of known reach."""

import sys
from pathlib import Path

import numpy as np
import pytest
from token_oracle import HOP, BlockCodec, level_steps

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def token_crops(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import token_crops

    yield token_crops
    sys.modules.pop("token_crops", None)


def test_codes_differ_as_far_as_the_codec_reaches_and_no_further(token_crops, capsys):
    wavs = [np.concatenate([level_steps(500, seed), level_steps(500, seed + 10)]) for seed in range(2)]
    for reach in (0, 3):
        equal, frames = token_crops.agreement(BlockCodec(reach), wavs, 6)
        assert equal.shape == (6, 2, frames) and frames == 400
        inner = slice(reach, frames - reach)
        assert equal[:, :, inner].mean() > 0.99  # rounding at a quantiser's border
        assert reach == 0 or equal[:, :, [0, 1, 2, -3, -2, -1]].mean() < 0.2
    found = {row.name: row for row in token_crops.rows(equal, 50.0)}
    assert found["equal_start_000"].value < 20 < 95 < found["equal_start_004"].value
    assert found["equal_end_001_q2"].value < 20 and found["equal_end_128"].note.endswith("2560 ms on")
    assert found["equal"].n == 6 and found["equal"].unit == "%" and set(found) >= {"equal_q1", "equal_q2"}
    token_crops.print_shares(list(found.values()), 2)
    assert capsys.readouterr().out.splitlines()[0].split()[-3:] == ["all", "q1", "q2"]


def test_crops_begin_at_whole_frames_within_the_track(token_crops):
    seen = []

    class Noting(BlockCodec):
        def encode(self, wav):
            seen.append(wav.shape[-1])
            return super().encode(wav)

    token_crops.agreement(Noting(), [np.resize(level_steps(900, 0), 550 * HOP)], 5)
    assert seen[-5:] == [400 * HOP] * 5
