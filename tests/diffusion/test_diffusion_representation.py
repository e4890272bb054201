import math
from types import SimpleNamespace

import pytest
import torch

from micro_musicgen import upstream
from micro_musicgen.diffusion.mel_frames import FLOOR, MelFrames
from micro_musicgen.diffusion.representation import nearest, representations, resampled
from micro_musicgen.errors import MicroMusicGenError

MELS = ("mel_16k", "mel_32k")


class StubCodec:
    """Latents are two numbers of each hop of 4 samples: its first sample and its last."""

    sample_rate, channels, frame_rate, hop_samples = 400, 1, 100.0, 4
    num_codebooks, cardinality, latent_dim, content_hash = 1, 8, 2, "stub"

    def encode_latents(self, wav):
        hops = torch.nn.functional.pad(wav[:, 0], (0, -wav.shape[-1] % 4)).unflatten(-1, (-1, 4))
        return torch.stack([hops[..., 0], hops[..., 3]], dim=1).double()

    def decode_latents(self, latents):
        return latents[:, :1].repeat_interleave(4, dim=-1)


def spectral_convergence(reference, found):
    return float((reference - found).norm() / reference.norm())


def tones(sample_rate, frequencies, duration_s=1.0):
    time = torch.arange(round(sample_rate * duration_s)) / sample_rate
    return sum(0.1 * torch.sin(2 * math.pi * f * time) for f in frequencies)[None, None]


def test_the_registry_lists_what_there_is():
    assert list(representations) == ["codec", "mel_16k", "mel_32k"]
    with pytest.raises(MicroMusicGenError, match=r"unknown representation 'x'; known: codec, mel_16k, mel_32k"):
        representations.get("x")


def test_codec_frames_are_the_encoders_latents():
    latents = representations.get("codec")(StubCodec())
    facts = (latents.name, latents.channels, latents.sample_rate, latents.frame_rate, latents.hop_samples)
    assert facts == ("codec", 2, 400, 100.0, 4) and latents.content_hash == "stub"
    wav = torch.arange(10.0)[None, None]
    assert torch.equal(latents.encode(wav), torch.tensor([[[0.0, 4.0, 8.0], [3.0, 7.0, 0.0]]]))
    assert latents.encode(wav).dtype == torch.float32
    assert torch.equal(latents.decode(latents.encode(wav))[0, 0, ::4], torch.tensor([0.0, 4.0, 8.0]))


def test_codec_frames_need_a_mono_codec():
    with pytest.raises(MicroMusicGenError, match="needs a codec"):
        representations.get("codec")(None)
    with pytest.raises(MicroMusicGenError, match="2 channels"):
        representations.get("codec")(SimpleNamespace(channels=2))


@pytest.mark.parametrize(
    ("name", "facts"),
    [("mel_16k", (80, 16_000, 62.5, 256)), ("mel_32k", (128, 32_000, 50.0, 640))],
)
def test_facts_of_the_spectra(name, facts):
    mel = representations.get(name)(None)
    assert (mel.channels, mel.sample_rate, mel.frame_rate, mel.hop_samples) == facts
    assert mel.content_hash == representations.get(name)(StubCodec()).content_hash
    assert len({representations.get(one)(None).content_hash for one in MELS}) == 2


@pytest.mark.parametrize("name", MELS)
@pytest.mark.parametrize("length", [1, 255, 256, 640, 641, 6400])
def test_shapes_and_the_round_trip_of_lengths(name, length):
    mel = representations.get(name)(None)
    frames = mel.encode(torch.zeros(2, 1, length))
    num_frames = math.ceil(length / mel.hop_samples)
    assert frames.shape == (2, mel.channels, num_frames) and frames.dtype == torch.float32
    assert torch.equal(frames, torch.full_like(frames, math.log(FLOOR)))
    if length < 6400:
        wav = mel.decode(frames)
        assert wav.shape == (2, 1, num_frames * mel.hop_samples) and float(wav.abs().max()) < 1e-3


@pytest.mark.parametrize("name", MELS)
def test_the_bands_are_torchaudios(name):
    upstream.patcher()
    from torchaudio.functional import melscale_fbanks

    mel = representations.get(name)(None)
    rate = mel.sample_rate
    expected = melscale_fbanks(mel.scale.n_fft // 2 + 1, 0.0, rate / 2, mel.channels, rate, norm=None, mel_scale="htk")
    wav = torch.randn(1, 1, rate // 4, generator=torch.Generator().manual_seed(0))
    found = mel.encode(wav).exp()
    assert torch.allclose(found, expected.T @ mel.magnitudes(wav), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MELS)
def test_a_frame_is_about_its_own_hop(name):
    mel = representations.get(name)(None)
    hop = mel.hop_samples
    for place in (0, 3, 9):
        wav = torch.zeros(1, 1, 10 * hop)
        wav[..., place * hop + hop // 2] = 1.0
        loudness = mel.encode(wav).exp().sum(dim=1)[0]
        assert int(loudness.argmax()) == place
        # As far to one side as to the other.
        sides = [float(loudness[place + d]) for d in (-1, 1) if 0 <= place + d < 10]
        assert sides[0] == pytest.approx(sides[-1], rel=1e-3)


@pytest.mark.parametrize("name", MELS)
def test_white_noise_has_the_magnitude_of_its_rms(name):
    mel = representations.get(name)(None)
    wav = 0.1 * torch.randn(1, 1, 2 * mel.sample_rate, generator=torch.Generator().manual_seed(0))
    assert float(mel.magnitudes(wav)[..., 4:-4].square().mean().sqrt()) == pytest.approx(0.1, rel=0.02)


def test_a_tone_lies_in_its_band_and_twice_as_loud_is_log_two_higher():
    mel = representations.get("mel_16k")(None)
    frames = mel.encode(tones(16_000, [1000]))[0, :, 30]
    centre = 2595 * math.log10(1 + 1000 / 700) / (2595 * math.log10(1 + 8000 / 700)) * 81 - 1
    assert abs(int(frames.argmax()) - centre) <= 1
    louder = mel.encode(2 * tones(16_000, [1000]))[0, :, 30]
    heard = frames > math.log(FLOOR)
    assert torch.allclose(louder[heard] - frames[heard], torch.tensor(math.log(2.0)), atol=1e-4)


@pytest.mark.parametrize("name", MELS)
def test_there_and_back(name):
    mel = representations.get(name)(None)
    wav = tones(mel.sample_rate, [220, 523.25, 1800], 0.64)
    frames = mel.encode(wav)
    bands = mel._filters @ mel.linear(frames)
    crude = mel._filters @ (mel._inverse @ frames.exp()).clamp(min=0)
    assert spectral_convergence(frames.exp(), bands) < 0.05 < spectral_convergence(frames.exp(), crude)
    back = mel.decode(frames)
    assert back.shape == wav.shape
    assert spectral_convergence(frames.exp(), mel.encode(back).exp()) < 0.12
    assert float(back.square().mean()) == pytest.approx(float(wav.square().mean()), rel=0.3)
    assert torch.equal(back, mel.decode(frames))


def test_linear_magnitudes_are_not_negative():
    mel = representations.get("mel_16k")(None)
    frames = mel.encode(tones(16_000, [100, 3000], 0.2))
    found = mel.linear(frames)
    assert float((mel._inverse @ frames.exp()).min()) < 0 <= float(found.min())


def test_a_clip_does_not_hear_its_batch():
    mel = representations.get("mel_16k")(None)
    wav = torch.cat([tones(16_000, [300], 0.2), tones(16_000, [900], 0.2)])
    frames = mel.encode(wav)
    assert torch.equal(frames[1:], mel.encode(wav[1:]))
    assert torch.equal(mel.decode(frames)[1:], mel.decode(frames[1:]))


def test_another_setting_is_another_hash():
    mel = representations.get("mel_16k")(None)
    assert isinstance(mel, MelFrames)
    other = MelFrames(mel.name, 22_050, mel.scale)
    assert other.content_hash != mel.content_hash


@pytest.mark.parametrize(("length", "num_frames"), [(10, 10), (10, 8), (8, 10), (1, 5), (5, 1), (50, 125)])
def test_resampled_is_linear_interpolation_between_middles(length, num_frames):
    frames = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.nn.functional.interpolate(frames, num_frames, mode="linear", align_corners=False)
    assert torch.allclose(resampled(frames, num_frames), expected)


def test_resampled_keeps_ramps_and_times():
    # Values say their time in seconds at 62.5 frames a second; asked for 50 a second, whatever the two lengths are.
    times = ((torch.arange(126.0) + 0.5) / 62.5)[None, None]
    found = resampled(times, 100, 62.5 / 50)
    assert torch.allclose(found[0, 0], (torch.arange(100.0) + 0.5) / 50, atol=1e-6)
    assert torch.equal(resampled(times, 126), times)
    beyond = resampled(times, 110, 62.5 / 50)
    assert torch.equal(beyond[..., 101:], times[..., -1:].expand(1, 1, 9))


def test_nearest_takes_the_frame_that_holds_the_middle():
    codes = torch.arange(4)[None, None]
    assert nearest(codes, 8).tolist() == [[[0, 0, 1, 1, 2, 2, 3, 3]]]
    assert nearest(codes, 2).tolist() == [[[1, 3]]]
    assert nearest(codes, 4).tolist() == codes.tolist()
    assert nearest(codes, 6, 1.0).tolist() == [[[0, 1, 2, 3, 3, 3]]]
    assert nearest(codes, 6).dtype == torch.int64
