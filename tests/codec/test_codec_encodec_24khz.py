"""The encodec package's 24 kHz model from a file of weights, drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_codecs
import torch

from micro_musicgen.codec import encodec_24khz
from micro_musicgen.codec.resolve import load_codec, read_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.data.encode import build_token_store
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.tokens import open_token_store
from micro_musicgen.engine.codec import PlayingCodec, codec_of_parts
from micro_musicgen.errors import MicroMusicGenError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_codecs.save_package_weights(tmp_path_factory.mktemp("encodec") / "encodec_24khz.th")


def noise(num_samples: int) -> torch.Tensor:
    return 0.3 * torch.randn(2, 1, num_samples, generator=torch.Generator().manual_seed(0))


def test_it_keeps_the_contract(weights: Path) -> None:
    codec = load_codec(weights)
    assert isinstance(codec, Codec)
    assert (codec.sample_rate, codec.channels, codec.frame_rate, codec.hop_samples) == (24000, 1, 75.0, 320)
    assert (codec.num_codebooks, codec.cardinality, codec.latent_dim) == (32, 1024, 128)
    codes = codec.encode(noise(9 * 320 + 1))
    assert codes.shape == (2, 32, 10) and codes.dtype == torch.int64 and len(codes.unique()) > 8
    assert codec.decode(codes).shape == (2, 1, 3200)
    assert codec.encode_latents(noise(3200)).shape == codec.codes_to_latents(codes).shape == (2, 128, 10)
    assert torch.equal(codec.decode_latents(codec.codes_to_latents(codes)), codec.decode(codes))


@pytest.mark.slow
def test_it_gives_what_the_package_gives(weights: Path) -> None:
    encodec = pytest.importorskip("encodec")
    model = encodec.EncodecModel.encodec_model_24khz(pretrained=False)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.set_target_bandwidth(6.0)
    codec = load_codec(f"{weights}:8")
    with torch.inference_mode():
        frames = model.encode(noise(3200))
        assert torch.equal(codec.encode(noise(3200)), frames[0][0])
        torch.testing.assert_close(codec.decode(frames[0][0]), model.decode(frames), rtol=0, atol=1e-6)


def test_the_engine_streams_it(weights: Path) -> None:
    parts = read_codec(f"{weights}:2")
    playing, codec = codec_of_parts(parts, torch.device("cpu")), load_codec(f"{weights}:2")
    assert isinstance(playing, PlayingCodec) and playing.content_hash == codec.content_hash
    codes = torch.randint(1024, (1, 2, 6), generator=torch.Generator().manual_seed(0))
    expected = codec.decode(codes)
    torch.testing.assert_close(playing.decode(codes), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_token_store_is_built_from_it(weights: Path, tmp_path: Path) -> None:
    codec = load_codec(f"{weights}:2")
    soundfile.write(tmp_path / "noise.wav", noise(24000)[0, 0].numpy(), 24000)
    track = Track(str(tmp_path / "noise.wav"), 1.0, 24000)
    build_token_store(tmp_path / "store", [track], codec, segment_s=0.5, window_s=0.6, overlap_s=0.2)
    store = open_token_store(tmp_path / "store")
    assert (store.codec_hash, store.card, store.num_codebooks) == (codec.content_hash, 1024, 2)
    assert store.codes(0).shape == (75, 2) and store.codes(0).dtype == np.int16


def test_the_hash_names_the_weights(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["decoder.model.0.conv.conv.bias"][0] += 1e-3
    torch.save(state, tmp_path / "changed.th")
    assert load_codec(tmp_path / "changed.th").content_hash != load_codec(weights).content_hash


def test_a_file_that_is_not_the_published_one(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "encodec_24khz-d7cc33bc.th"
    path.write_bytes(weights.read_bytes())
    with pytest.raises(MicroMusicGenError, match="sha256 does not begin with d7cc33bc.*; fetch it again"):
        load_codec(path)
    path.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(MicroMusicGenError, match="damaged or not ours"):
        load_codec(path)


def test_the_stereo_model_is_refused(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "encoder.model.0.conv.norm.weight": torch.ones(32)}, tmp_path / "encodec_48khz.th")
    with pytest.raises(MicroMusicGenError, match="is encodec's stereo model and music here has one channel"):
        load_codec(tmp_path / "encodec_48khz.th")


def test_a_model_of_another_shape_is_refused(weights: Path, tmp_path: Path) -> None:
    path = tiny_codecs.save_package_weights(tmp_path / "other.th", n_filters=4)
    with pytest.raises(MicroMusicGenError, match=r"other\.th does not hold the model that its config describes"):
        load_codec(path)


def test_other_files_are_left_to_their_readers(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.th")
    (tmp_path / "b.th").write_bytes(b"nothing")
    torch.save({"format": "x", "model": {}}, tmp_path / "c.th")
    assert all(encodec_24khz.read(path) is None for path in tmp_path.iterdir())
