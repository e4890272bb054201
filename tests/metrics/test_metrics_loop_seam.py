"""How loops are measured: those that close, those that click, those that are cut or of another tempo."""

from __future__ import annotations

import numpy as np
import pytest

from micro_musicgen.audio.synth import SynthTrack, synthesise
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.loop_seam import LoopReport, measure_loop

RATE = 32_000


@pytest.fixture(scope="module")
def breaks() -> list[SynthTrack]:
    return [track for track in synthesise(3, minutes=1.0) if len(track.wav) > 4 * RATE][:6]


def beats_of(track: SynthTrack) -> int:
    return round(len(track.wav) / track.sample_rate * track.bpm / 60)


def report(track: SynthTrack, wav: np.ndarray | None = None, **changes: float) -> LoopReport:
    facts = {"bpm": track.bpm, "beats": beats_of(track), **changes}
    return measure_loop(track.wav if wav is None else wav, track.sample_rate, **facts)


def test_loops_that_close_are_no_worse_at_their_joint(breaks: list[SynthTrack]) -> None:
    found = [report(track) for track in breaks]
    assert np.median([each.seam_ratio for each in found]) <= 1.0
    for each in found:
        assert each.length_error < 1e-5
        assert each.heard_error is not None and each.heard_error < 0.004
        assert each.inside_ms is not None and each.inside_ms < 6


def test_a_jump_at_the_joint_is_heard(breaks: list[SynthTrack]) -> None:
    for track in breaks:
        fade = np.linspace(0, 1, len(track.wav))
        jump = track.wav + 0.5 * fade  # the end is half of full scale above the start
        assert report(track, jump).click_ratio > 2 * report(track).click_ratio
    quiet = np.sin(2 * np.pi * 220.5 * np.arange(4 * RATE) / RATE)  # a tone that does not close
    closed = np.sin(2 * np.pi * 220.0 * np.arange(4 * RATE) / RATE)
    cut = measure_loop(quiet[: 4 * RATE - 40], RATE, bpm=120, beats=8)
    assert cut.click_ratio > 100 and measure_loop(closed, RATE, bpm=120, beats=8).click_ratio < 1.01


def test_a_loop_whose_end_leads_elsewhere_changes_its_spectrum() -> None:
    rng = np.random.default_rng(0)
    smooth = rng.standard_normal(4 * RATE)
    kernel = np.hanning(64)
    low = np.convolve(np.concatenate([smooth, smooth[:63]]), kernel, mode="valid")
    rises = low * np.linspace(0.001, 1, len(low))
    assert measure_loop(rises, RATE, bpm=120, beats=8).flux_ratio > 1.5
    assert measure_loop(low, RATE, bpm=120, beats=8).flux_ratio < 1.3


def test_another_tempo_is_seen_and_heard(breaks: list[SynthTrack]) -> None:
    track = breaks[0]
    found = report(track, bpm=track.bpm * 1.01)
    assert found.length_error == pytest.approx(1 - 1 / 1.01, abs=1e-4)
    assert found.heard_error == pytest.approx(1 - 1 / 1.01, abs=3e-3)


def test_silence_and_what_is_no_loop() -> None:
    silent = measure_loop(np.zeros(RATE), RATE, bpm=120, beats=2)
    assert silent.seam_ratio == 1.0 and silent.heard_error is None and silent.joint_ms is None
    for wav, beats in ((np.zeros((1, RATE)), 4), (np.zeros(RATE), 1), (np.zeros(100), 4)):
        with pytest.raises(MicroMusicGenError, match="a loop to measure is mono and two beats long"):
            measure_loop(wav, RATE, bpm=120, beats=beats)
