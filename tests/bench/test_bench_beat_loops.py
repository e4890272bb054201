"""bench/beat_loops.py: loops of a tiny model become rows and a plot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent / "bench"), str(TESTS / "engine")]

import beat_loops  # noqa: E402
from beat_models import write_beat_runs  # noqa: E402
from common import aim_met  # noqa: E402


@pytest.fixture
def loops(home: Path) -> list[beat_loops.Loops]:
    run = write_beat_runs()
    return beat_loops.make_loops(run.name, bpms=(140.0, 200.0), bars=2, num_loops=2, device="cpu")


def test_loops_are_measured_at_every_tempo(loops: list[beat_loops.Loops], tmp_path: Path) -> None:
    for part in loops:
        length = round(8 * 60 / part.bpm * 32000)
        assert part.beats == 8 and all(len(wav) == length for wav in (*part.closed, *part.plain))
    rows = beat_loops.loop_rows(map(beat_loops.measure, loops))
    assert [row.name for row in rows] == [
        *("loop_tempo_error", "seam_ratio"),
        *(f"{name} at {bpm} BPM" for bpm in (140, 200) for name in ("loop_tempo_error", "seam_ratio")),
    ]
    for row in rows:
        assert row.value is not None and aim_met(row) is not None
        assert "by length alone" in row.note or "decoded once" in row.note
    path = beat_loops.draw_repeats(loops, tmp_path / "plot.png")
    assert path.stat().st_size > 10_000
