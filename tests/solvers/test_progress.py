"""What a run shows of itself: the line of figures, the bar, plain lines, the plot, the peak of memory."""

import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from micro_musicgen.console import RichReporter
from micro_musicgen.solvers.reporting import plot
from micro_musicgen.solvers.reporting.plot import plot_history
from micro_musicgen.solvers.reporting.progress import (
    LineReporter,
    LogReporter,
    Meter,
    QuietReporter,
    Reporter,
    clock,
    describe,
)
from micro_musicgen.solvers.running.memory import peak_memory_mb

METRICS = {"ce": math.log(100), "ce_q1": 4.0, "ce_q2": 5.25, "grad_norm": 0.5, "skipped": 0.0, "peak_memory_mb": 1234.0}


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_has_loss_perplexity_codebooks_speed_tokens_and_memory() -> None:
    parts = describe(METRICS, updates_per_s=2.5, tokens_per_update=6400)
    assert parts == ["ce 4.605 (4 5.25)", "ppl 100", "grad_norm 0.5", "2.50 it/s", "16k tok/s", "1.23 GB"]


def test_skipped_steps_show_once_there_are_some() -> None:
    assert "3 skipped (not finite)" in describe({**METRICS, "skipped": 3.0}, 1.0)
    assert describe({}, 0.0) == []


def test_nan_and_huge_losses_can_be_shown() -> None:
    assert describe({"ce": math.nan}, 0.0)[0] == "ce nan"
    assert describe({"ce": 1e6}, 0.0)[0] == "ce 1e+06"


def test_meter_leaves_pauses_out_of_the_speed_and_not_of_the_time_left() -> None:
    time = Clock()
    meter = Meter(100, 0, time)
    assert meter.updates_per_s == 0 and clock(meter.left_s) == "-:--"
    for done in range(1, 11):
        time.now += 0.5
        meter.step(done)
    assert meter.updates_per_s == pytest.approx(2) and meter.left_s == pytest.approx(45)
    meter.pause()
    time.now += 5.5
    for done in (11, 12):
        meter.step(done)
        time.now += 0.5
    assert meter.updates_per_s == pytest.approx(2)
    assert meter.left_s == pytest.approx(88 * 11 / 12)


def test_a_resumed_run_does_not_count_what_was_done_before() -> None:
    time = Clock()
    meter = Meter(100, 90, time)
    time.now = 10
    meter.step(95)
    assert meter.updates_per_s == pytest.approx(0.5) and meter.left_s == pytest.approx(10)


def tell(reporter: Reporter) -> None:
    reporter.stage("preparing")
    reporter.start("musicgen c0ffee00", 4, 0, tokens_per_update=6400)
    for done in range(1, 5):
        reporter.step(done, METRICS if done % 2 else {})
        if done == 2:
            reporter.stage("valid")
    reporter.message("[2 clips] in samples")
    reporter.stop()


def test_lines_come_at_their_interval_and_at_the_end() -> None:
    lines: list[str] = []
    tell(LineReporter(lines.append, every_updates=2))
    assert [line.split(" | ")[0] for line in lines] == [
        "musicgen c0ffee00: step 0 of 4",
        "2/4",
        "4/4",
        "[2 clips] in samples",
    ]
    assert "ce 4.605 (4 5.25)" in lines[1] and lines[2].endswith("0:00 left")


def test_log_and_quiet_reporters_hear_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="micro_musicgen.train"):
        tell(QuietReporter())
        assert not caplog.messages
        tell(LogReporter(4, 2))
    assert len(caplog.messages) == 4


def test_without_a_terminal_there_are_plain_lines() -> None:
    out = io.StringIO()
    tell(RichReporter(Console(file=out, width=40)))
    lines = out.getvalue().splitlines()
    assert lines[0] == "musicgen c0ffee00: step 0 of 4" and lines[-1] == "[2 clips] in samples"
    assert lines[1].startswith("4/4 | ce 4.605 (4 5.25) | ppl 100") and len(lines) == 3
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_there_is_a_bar_with_figures_below_and_stages_beside() -> None:
    out = io.StringIO()
    reporter = RichReporter(Console(file=out, width=120, force_terminal=True, color_system=None))
    reporter.stage("preparing")
    bar = reporter._reporter._bar  # type: ignore[attr-defined]
    assert bar.live.is_started and bar.tasks[0].total is None, "it moves before the number of steps is known"
    reporter.start("musicgen c0ffee00", 4, 1, tokens_per_update=6400)
    assert (bar.tasks[0].completed, bar.tasks[0].total) == (1, 4)
    reporter.step(2, METRICS)
    reporter.stage("valid")
    assert bar.tasks[0].description == "musicgen c0ffee00: valid"
    reporter.step(3, {})
    assert bar.tasks[0].description == "musicgen c0ffee00"
    reporter.stop()
    assert not bar.live.is_started
    text = out.getvalue()
    assert "ppl 100" in text and "ETA" in text and "2/4" in text or "3/4" in text
    tell(reporter)  # the same one serves a second run
    assert "4/4" in out.getvalue()


HISTORY = [
    {
        "train": {
            "ce": 5.0,
            "ce_q1": 4.0,
            "lr": 1e-3,
            "grad_norm": math.nan,
            "steps_per_s": 3.0,
            "peak_memory_mb": 900.0,
        },
        "valid": {"ce": math.inf, "ce_q1": 4.5, "ce_q2": 5.0, "ce_q10": 5.5},
    },
    {"train": {"ce": 4.0, "grad_norm": None, "note": "text"}, "valid": {"ce": 4.5, "ce_q1": 4.0}, "generate": {}},
    {"train": None, "valid": {}},
]


def test_panels_hold_what_is_finite_and_leave_out_what_never_occurs() -> None:
    panels = plot._panels(HISTORY, ("ce", "ce_q1", "mel"))  # type: ignore[arg-type]
    assert list(panels) == ["ce", "ce per codebook", "lr", "steps_per_s", "peak_memory_mb"]
    assert panels["ce"] == {"train": [(1, 5.0), (2, 4.0)], "valid": [(2, 4.5)]}
    assert list(panels["ce per codebook"]) == ["valid q1", "valid q2", "valid q10"]
    assert panels["lr"] == {"train": [(1, 1e-3)]}


def test_the_plot_is_a_png_that_grows_with_its_panels(tmp_path: Path) -> None:
    plot_history(HISTORY, ("ce", "ce_q1"), tmp_path / "loss.png")  # type: ignore[arg-type]
    with Image.open(tmp_path / "loss.png") as image:
        assert image.format == "PNG" and image.size == (1500, 700)


@pytest.mark.parametrize("history", [[], [{}], [{"train": {"ce": math.nan}}]])
def test_without_a_point_there_is_no_plot(history: list, tmp_path: Path) -> None:
    plot_history(history, ("ce",), tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_peak_memory_grows_with_what_was_held_and_never_shrinks() -> None:
    before = peak_memory_mb("cpu")
    held = torch.ones(64, 1024, 1024, dtype=torch.uint8) * 2
    after = peak_memory_mb(torch.device("cpu"))
    del held
    assert 20 < before <= after and after < 1e5
    assert peak_memory_mb("cpu") >= after


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what Linux hands to children")
def test_peak_memory_is_this_process_own_and_not_that_of_the_one_that_started_it() -> None:
    held = torch.ones(400, 1024, 1024, dtype=torch.uint8)
    script = "from micro_musicgen.solvers.running.memory import _peak_resident_bytes as p; print(p())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 0.9 * peak_memory_mb("cpu") * 1e6
    assert held[0, 0, 0] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_peak_memory_of_a_gpu_is_what_tensors_took() -> None:
    torch.cuda.reset_peak_memory_stats()
    before = peak_memory_mb("cuda")
    held = torch.ones(100_000_000, dtype=torch.uint8, device="cuda")
    assert peak_memory_mb("cuda") - before >= 99
    del held
