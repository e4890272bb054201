"""Embedders, against what the sounds are known to be."""

from __future__ import annotations

import math

import fixtures_models as models
import numpy as np
import pytest
import torch

from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.embedders import embedders, make_embedder, mono_at
from micro_musicgen.metrics.frechet import frechet_distance
from micro_musicgen.metrics.log_mel import FLOOR, SAMPLE_RATE, SCALE, LogMelEmbedder

BANDS = SCALE.n_mels


@pytest.fixture(scope="module")
def codec() -> EncodecCodec:
    return EncodecCodec(models.make_codec_model(), models.codec_config())


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_gain_moves_the_means_only() -> None:
    embedder, noise = LogMelEmbedder(), _noise(1, 1, 3 * SAMPLE_RATE)
    soft, loud = embedder.embed(noise, SAMPLE_RATE), embedder.embed(4 * noise, SAMPLE_RATE)
    np.testing.assert_allclose(loud[:, :BANDS] - soft[:, :BANDS], math.log(4), atol=1e-2)
    np.testing.assert_allclose(loud[:, BANDS:], soft[:, BANDS:], atol=1e-2)


def test_silence_is_the_floor_and_does_not_move() -> None:
    row = LogMelEmbedder().embed(torch.zeros(1, 1, SAMPLE_RATE), SAMPLE_RATE)[0]
    np.testing.assert_allclose(row[:BANDS], math.log(FLOOR))
    assert np.abs(row[BANDS:]).max() == pytest.approx(0, abs=1e-12)


def test_clicks_change_more_than_a_steady_sound_of_the_same_level() -> None:
    steady = _noise(1, 1, 2 * SAMPLE_RATE)
    gate = (torch.arange(2 * SAMPLE_RATE) % 4000 < 1000).float()
    embedder = LogMelEmbedder()
    rows = [embedder.embed_clips(wav, SAMPLE_RATE)[0] for wav in (steady, 2 * gate * steady)]
    assert rows[1][BANDS : 2 * BANDS].min() > 2 * rows[0][BANDS : 2 * BANDS].max()
    assert rows[1][2 * BANDS :].mean() > rows[0][2 * BANDS :].mean()


def test_there_is_a_row_for_each_second_and_one_at_least() -> None:
    embedder = LogMelEmbedder()
    for seconds, rows in ((0.0001, 1), (0.4, 1), (1.4, 1), (1.6, 2), (3.0, 3)):
        wav = _noise(2, 1, max(1, round(seconds * SAMPLE_RATE)))
        found = embedder.embed(wav, SAMPLE_RATE)
        assert found.shape == (2 * rows, embedder.width) and found.dtype == np.float64
        np.testing.assert_allclose(embedder.embed_clips(wav, SAMPLE_RATE)[1], found[rows:].mean(axis=0))


@pytest.mark.parametrize("name", ["log_mel", "codec"])
def test_a_clip_does_not_depend_on_its_neighbours(name: str, codec: EncodecCodec) -> None:
    embedder, wav = make_embedder(name, codec=codec), _noise(3, 1, 70_000)
    alone = np.concatenate([embedder.embed(clip[None], 32000) for clip in wav])
    np.testing.assert_allclose(embedder.embed(wav, 32000), alone, atol=1e-5)
    assert np.array_equal(embedder.embed(wav, 32000), embedder.embed(wav, 32000))


def test_codec_rows_are_its_latents(codec: EncodecCodec) -> None:
    wav = _noise(2, 1, 10 * models.HOP)
    embedder = make_embedder("codec", codec=codec)
    found = embedder.embed(wav, models.SAMPLE_RATE)
    assert found.shape == (20, embedder.width) and embedder.name == f"codec-{codec.content_hash}"
    latents = codec.encode_latents(wav)
    np.testing.assert_allclose(found[13], latents[1, :, 3].double().numpy(), rtol=1e-6)
    np.testing.assert_allclose(embedder.embed_clips(wav, models.SAMPLE_RATE), latents.double().mean(dim=2), rtol=1e-5)


@pytest.mark.parametrize("name", ["log_mel", "codec"])
def test_another_rate_and_stereo_are_the_same_sound(name: str, codec: EncodecCodec) -> None:
    embedder = make_embedder(name, codec=codec)
    time = {rate: torch.arange(2 * rate) / rate for rate in (32000, 44100)}
    tone = {rate: 0.3 * torch.sin(2 * math.pi * 440 * t)[None, None] for rate, t in time.items()}
    here = embedder.embed_clips(tone[32000], 32000)
    there = embedder.embed_clips(tone[44100].expand(-1, 2, -1), 44100)
    other = embedder.embed_clips(_noise(1, 1, 64000), 32000)
    assert np.linalg.norm(here - there) < 0.05 * np.linalg.norm(here - other)


def test_log_mel_tells_collections_apart() -> None:
    embedder = LogMelEmbedder()
    white = [embedder.embed(_noise(8, 1, 64000, seed=seed), 32000) for seed in (0, 1)]
    brown = _noise(8, 1, 64000, seed=2).cumsum(dim=-1)
    brown = embedder.embed(0.1 * brown / brown.std(), 32000)
    assert frechet_distance(white[0], brown) > 20 * frechet_distance(*white)


def test_a_third_party_adds_one_in_a_file() -> None:
    class Level:
        name, width = "level", 1

        def embed(self, wav: torch.Tensor, sample_rate: int) -> np.ndarray:
            return mono_at(wav, sample_rate, sample_rate).std(dim=1, keepdim=True).double().numpy()

        embed_clips = embed

    embedders.register("test_level")(lambda *, codec, reference, device: Level())
    assert make_embedder("test_level").embed(torch.zeros(2, 1, 5), 8000).tolist() == [[0.0], [0.0]]


def test_bad_input_is_named(codec: EncodecCodec) -> None:
    with pytest.raises(MicroMusicGenError, match="unknown embedder 'vggish'; known: clap, codec, log_mel"):
        make_embedder("vggish")
    with pytest.raises(MicroMusicGenError, match="embedder codec needs a codec; name the codec's run or release"):
        make_embedder("codec")
    with pytest.raises(MicroMusicGenError, match="embedder clap needs a CLAP model; give its Hub id, such as"):
        make_embedder("clap")
    for embedder in (LogMelEmbedder(), make_embedder("codec", codec=codec)):
        for wav, words in (
            (torch.zeros(5), r"\[B, C, L\]"),
            (torch.zeros(0, 1, 5), "not empty"),
            (torch.zeros(1, 1, 0), "not empty"),
            (torch.zeros(1, 1, 5, dtype=torch.int16), "int16"),
            (torch.full((1, 1, 5), math.nan), "NaN"),
        ):
            with pytest.raises(MicroMusicGenError, match=words):
                embedder.embed(wav, 32000)
        with pytest.raises(MicroMusicGenError, match="sample rate 0 must be above 0 Hz"):
            embedder.embed(torch.zeros(1, 1, 5), 0)
