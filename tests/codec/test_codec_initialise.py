"""Layers levelled on a batch: unit latents, an output as loud as the sound, nothing renamed."""

import pytest
import torch
from fixtures_models import codec_config

from micro_musicgen.codec.builder import build_codec_model
from micro_musicgen.codec.initialise import level_layers


@pytest.fixture
def wav():
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(4, 1, 16000, generator=generator) * torch.linspace(0.1, 2, 16000)


@pytest.mark.parametrize("norm", ["weight_norm", "none"])
def test_latents_and_output_have_their_levels(wav, norm):
    torch.manual_seed(0)
    config = codec_config()
    config["seanet"]["norm"] = norm
    model = build_codec_model(config)
    keys = set(model.state_dict())
    level_layers(model, wav)
    with torch.no_grad():
        latents = model.encoder(wav)
        decoded = model.decoder(latents)
    assert torch.allclose(latents.std(dim=(0, 2)), torch.ones(latents.shape[1]), atol=0.01)
    assert torch.allclose(latents.mean(dim=(0, 2)), torch.zeros(latents.shape[1]), atol=0.01)
    assert float(decoded.std()) == pytest.approx(float(wav.std()), rel=0.01)
    assert set(model.state_dict()) == keys
    assert not any(module._forward_hooks for module in model.modules())


def test_silence_changes_nothing(wav):
    torch.manual_seed(0)
    model = build_codec_model(codec_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    level_layers(model, torch.zeros_like(wav))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
