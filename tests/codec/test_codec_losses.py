"""What a codec is trained on: closed forms, finite gradients at silence, configs that say what is wrong."""

import math

import pytest
import torch

from micro_musicgen.codec.losses import LossConfig, ReconstructionLoss
from micro_musicgen.errors import MicroMusicGenError

LOSSES = {"l1": 2.0, "msspec": 1.0, "mrstft": 0.5, "adv": 0.0, "feat": 0.0, "l2": 0.0, "mel": 0.0, "sisnr": 0.0}
SPECTRAL = {"low": 1.5, "low_hz": 300.0, "resolutions": [[512, 128, 20], [128, 32, 8]], "log_floor": 1e-6}


@pytest.fixture
def loss():
    return ReconstructionLoss(LossConfig.parse(LOSSES, SPECTRAL), 32000)


@pytest.fixture
def noise():
    return 0.1 * torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(0))


def test_equal_clips_cost_nothing(loss, noise):
    assert all(float(value) == 0 for value in loss(noise, noise).values())


def test_a_gain_has_a_closed_form(loss, noise):
    losses = loss(0.5 * noise, noise)
    assert float(losses["l1"]) == pytest.approx(0.5 * float(noise.abs().mean()), rel=1e-5)
    assert float(losses["msspec"]) == pytest.approx(math.log(2), rel=1e-2)
    assert float(losses["mrstft"]) == pytest.approx(0.5, rel=1e-2)
    assert float(losses["low"]) == pytest.approx(0.5, rel=1e-4)
    total = 2 * losses["l1"] + losses["msspec"] + 0.5 * losses["mrstft"] + 1.5 * losses["low"]
    assert float(loss.weighted(losses)) == pytest.approx(float(total))


@pytest.mark.parametrize("estimate_is_silent", [True, False])
@pytest.mark.parametrize("reference_is_silent", [True, False])
def test_silence_has_finite_gradients(loss, noise, estimate_is_silent, reference_is_silent):
    estimate = (torch.zeros_like(noise) if estimate_is_silent else noise + 0.1).requires_grad_()
    reference = torch.zeros_like(noise) if reference_is_silent else noise
    loss.weighted(loss(estimate, reference)).backward()
    assert torch.isfinite(estimate.grad).all()


def test_half_precision_is_compared_in_single(loss, noise):
    assert all(value.dtype == torch.float32 for value in loss(noise.bfloat16(), noise).values())


def test_only_the_bass_is_held_to_its_phase():
    """A quarter period late: magnitudes are the same, and the complex spectrum differs, but counts in the bass only."""
    config = LossConfig.parse(LOSSES, {**SPECTRAL, "resolutions": [[4096, 1024, 20]]})
    t = 2 * math.pi * torch.arange(64000)[None, None] / 32000
    bass, treble = torch.cos(100 * t), torch.cos(3000 * t)
    loss = ReconstructionLoss(config, 32000)
    late_bass = loss(torch.sin(100 * t) + treble, bass + treble)
    late_treble = loss(bass + torch.sin(3000 * t), bass + treble)
    assert late_bass["mrstft"] < 0.1 and late_treble["mrstft"] < 0.1
    assert late_bass["low"] > 0.9 and late_treble["low"] < 0.1


def test_has_no_state_to_save(loss):
    assert not loss.state_dict()


@pytest.mark.parametrize(
    ("losses", "spectral", "message"),
    [
        ({"speed": 1}, {}, "unknown key losses.speed"),
        ({"l1": -1}, {}, "losses.l1=-1 is negative"),
        ({"mel": 1}, {}, "losses.mel=1 is upstream's only; set it to 0"),
        ({}, {"floor": 1}, "unknown key spectral.floor"),
        ({}, {"resolutions": [[512, 128]]}, "must be a list of"),
        ({}, {"low": -1}, "spectral.low=-1 is negative"),
        ({}, {"resolutions": []}, "must be a list of"),
    ],
)
def test_bad_config_is_named(losses, spectral, message):
    with pytest.raises(MicroMusicGenError, match=message):
        LossConfig.parse({**LOSSES, **losses}, {**SPECTRAL, **spectral})


def test_missing_keys_are_named_together():
    with pytest.raises(MicroMusicGenError, match="missing key losses.adv; .*missing key spectral.resolutions"):
        LossConfig.parse({}, {})
