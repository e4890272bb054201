"""Repetition and tempo, on clips whose answer is known."""

import numpy as np
import pytest
import torch

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.consistency import fold_octaves, onset_envelope, repetition, tempo, tempo_instability

RATE = 16000


def _clicks(times_s, duration_s=8.0, seed=0):
    """Gives short bursts of noise at the times given, over a little hiss."""
    rng = np.random.default_rng(seed)
    wav = 1e-4 * rng.standard_normal(round(duration_s * RATE))
    burst = rng.standard_normal(800) * np.exp(-np.arange(800) / 150)
    for time_s in times_s:
        at = round(time_s * RATE)
        if at + 800 <= len(wav):
            wav[at : at + 800] += 0.3 * burst
    return torch.from_numpy(wav)


def _noise(duration_s=8.0, seed=0):
    return 0.1 * torch.randn(round(duration_s * RATE), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bpm", [75, 93, 120, 137.5, 170])
def test_tempo_of_clicks(bpm):
    envelope, rate = onset_envelope(_clicks(np.arange(0, 8, 60 / bpm)), RATE)
    assert fold_octaves([tempo(envelope, rate)], bpm)[0] == pytest.approx(bpm, rel=0.01)


def test_a_steady_pulse_is_stable_and_a_wandering_one_is_not():
    steady = tempo_instability(_clicks(np.arange(0, 8, 0.5)), RATE)
    gaps = np.linspace(0.62, 0.38, 16)
    wandering = tempo_instability(_clicks(np.cumsum(gaps)), RATE)
    assert steady < 0.01 < 0.06 < wandering


def test_an_exact_loop_repeats_and_noise_does_not():
    loop = torch.cat([_noise(2.0, seed=1) * torch.linspace(1, 0, 2 * RATE).square()] * 4)
    assert repetition(loop, RATE) > 0.9
    assert abs(repetition(_noise(), RATE)) < 0.1


def test_a_loop_in_random_order_lies_between():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 7.9, 24))
    assert repetition(_clicks(np.arange(0, 8, 0.5)), RATE) > repetition(_clicks(times), RATE) + 0.2


def test_what_has_no_answer_gives_none():
    silence = torch.zeros(8 * RATE)
    assert repetition(silence, RATE) is None and tempo_instability(silence, RATE) is None
    assert repetition(_noise(0.5), RATE) is None and tempo_instability(_noise(0.5), RATE) is None
    assert tempo(np.zeros(1000), 100.0) is None and tempo(np.arange(10.0), 100.0) is None


def test_folding_by_octaves():
    assert fold_octaves([60, 120, 240, 90], 120).tolist() == [120, 120, 120, 90]
    with pytest.raises(MicroMusicGenError, match="above 0"):
        fold_octaves([0.0], 120)
