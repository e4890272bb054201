"""Distances of clips, against closed forms."""

import math

import pytest
import torch

from micro_musicgen.audio.mel import MelScale, magnitudes, mel_filters
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.spectral import (
    MEL,
    log_magnitude_error,
    log_mel_distance,
    si_sdr,
    spectral_convergence,
)

RATE = 32000


@pytest.fixture
def noise():
    return 0.1 * torch.randn(2, 1, RATE, generator=torch.Generator().manual_seed(0))


def test_filters_match_torchaudio():
    functional = pytest.importorskip("micro_musicgen.upstream") and pytest.importorskip("torchaudio.functional")
    wanted = functional.melscale_fbanks(513, 40.0, 16000.0, 64, RATE)
    assert torch.allclose(mel_filters(MEL, RATE).float(), wanted, atol=1e-5)


def test_white_noise_has_its_rms_as_magnitude_at_every_resolution(noise):
    for n_fft in (256, 2048):
        power = magnitudes(noise, MelScale(n_fft, n_fft // 4, 16)).square()[:, 1:-1, 4:-4].mean()
        assert power.sqrt() == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize("gain", [0.5, 0.9, 3.0])
def test_a_gain_is_its_log_apart(noise, gain):
    assert log_mel_distance(gain * noise, noise, RATE) == pytest.approx(abs(math.log(gain)), rel=1e-3)
    assert log_magnitude_error(gain * noise, noise) == pytest.approx(abs(math.log(gain)), rel=1e-2)


def test_equal_clips_are_zero_apart(noise):
    assert log_mel_distance(noise, noise, RATE) == 0
    assert spectral_convergence(noise, noise) == 0
    assert log_magnitude_error(noise, noise) == 0
    assert si_sdr(noise, noise) == 100


def test_silence_is_finite(noise):
    silence = torch.zeros_like(noise)
    assert math.isfinite(log_mel_distance(silence, noise, RATE))
    assert math.isfinite(log_magnitude_error(silence, noise))
    assert log_mel_distance(silence, silence, RATE) == 0
    assert spectral_convergence(silence, noise) == 1
    assert spectral_convergence(silence, silence) == 0
    assert spectral_convergence(noise, silence) == math.inf
    assert si_sdr(silence, noise) == pytest.approx(-100, abs=100)


def test_si_sdr_of_added_noise_ignores_scale():
    generator = torch.Generator().manual_seed(1)
    clip, hiss = torch.randn(2, 4, 1, 200_000, generator=generator)
    assert si_sdr(3 * (clip + 0.1 * hiss), clip) == pytest.approx(20, abs=0.1)


def test_a_clip_shorter_than_the_window_has_a_distance():
    assert math.isfinite(log_mel_distance(torch.ones(1, 1, 10), torch.zeros(1, 1, 10), RATE))


def test_bad_input_is_named(noise):
    with pytest.raises(MicroMusicGenError, match="cut them alike"):
        log_mel_distance(noise[..., :-1], noise, RATE)
    with pytest.raises(MicroMusicGenError, match="hold no bin"):
        mel_filters(MelScale(256, 64, 80), RATE)
    with pytest.raises(MicroMusicGenError, match="hop of 300"):
        MelScale(256, 300, 8)
    with pytest.raises(MicroMusicGenError, match="n_mels 0"):
        MelScale(256, 64, 0)
