"""A codec that somebody published for transformers, served by a Hub on this machine. Needs the [text] extra."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fake_hub
import pytest
import torch

from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.errors import MicroMusicGenError

transformers = pytest.importorskip("transformers")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_hub.FakeHub]:
    from huggingface_hub import constants

    with fake_hub.serve() as held:
        monkeypatch.setenv("HF_ENDPOINT", held.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield held


def publish(hub: fake_hub.FakeHub, folder: Path, name: str, **changes: object) -> None:
    """A small EnCodec with the published one's strides and random weights."""
    torch.manual_seed(0)
    facts = {"sampling_rate": 32000, "audio_channels": 1, "upsampling_ratios": [8, 5, 4, 4], "target_bandwidths": [1.2],
             "codebook_size": 64, "codebook_dim": 16, "hidden_size": 16, "num_filters": 2, "normalize": False,
             "use_causal_conv": False, "num_lstm_layers": 1}  # fmt: skip
    model = transformers.EncodecModel(transformers.EncodecConfig(**{**facts, **changes}))
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    model.save_pretrained(folder)
    hub.repos[name] = {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_keeps_the_contract(hub: fake_hub.FakeHub, home: Path, tmp_path: Path) -> None:
    publish(hub, tmp_path / "encodec", "some/encodec")
    codec = load_codec("//pretrained/some/encodec")
    assert isinstance(codec, Codec)
    assert (codec.sample_rate, codec.channels, codec.frame_rate, codec.hop_samples) == (32000, 1, 50.0, 640)
    assert (codec.num_codebooks, codec.cardinality, codec.latent_dim) == (4, 64, 16)
    wav = 0.1 * torch.randn(2, 1, 6400, generator=torch.Generator().manual_seed(0))
    codes = codec.encode(wav)
    assert codes.shape == (2, 4, 10) and codes.dtype == torch.int64
    assert codec.decode(codes).shape == wav.shape
    assert codec.encode_latents(wav).shape == codec.codes_to_latents(codes).shape == (2, 16, 10)
    torch.testing.assert_close(codec.decode_latents(codec.codes_to_latents(codes)), codec.decode(codes))
    assert load_codec("some/encodec").content_hash == codec.content_hash


def test_codes_that_do_not_stand_alone_are_refused(hub: fake_hub.FakeHub, home: Path, tmp_path: Path) -> None:
    publish(hub, tmp_path / "encodec", "some/encodec", normalize=True)
    with pytest.raises(MicroMusicGenError, match="some/encodec renormalises or chunks its audio"):
        load_codec("some/encodec")


def test_another_kind_of_model(hub: fake_hub.FakeHub, home: Path) -> None:
    hub.repos["some/bert"] = {"config.json": b'{"model_type": "bert"}'}
    with pytest.raises(MicroMusicGenError, match="some/bert on the Hub is no EnCodec but bert"):
        load_codec("some/bert")
