"""Codes to sound through a diffusion decoder: the same in pieces, in batches and windows, and never of other codes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import fixtures_decoders as decoders
import fixtures_models as models
import pytest
import torch

from micro_musicgen import MicroMusicGen
from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.diffusion.builder import build_diffusion
from micro_musicgen.diffusion.code_condition import code_condition
from micro_musicgen.diffusion.denoiser import Told
from micro_musicgen.diffusion.sampling import params_of, sample
from micro_musicgen.engine.codec import playing
from micro_musicgen.engine.decoder import DecoderStream
from micro_musicgen.engine.diffusion_codec import DiffusionCodec
from micro_musicgen.errors import MicroMusicGenError


@pytest.fixture(scope="module", autouse=True)
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A codec, another one, language models of all and of two of its codebooks, and a decoder."""
    with decoders.home_at(tmp_path_factory.mktemp("home")):
        models.write_models()
        models.write_codec_run("c0dec001", bins=32)
        models.write_lm_run("abcd0002", codec="//sig/c0dec000:2", config=models.lm_config(n_q=2))
        decoders.write_decoder_run()
        yield


@functools.cache
def codec_of(reference: str = "c0dec000") -> Codec:
    return playing(load_codec(reference))


def make(codec: Codec | None = None, *, fitted: bool = True, **changes: Any) -> DiffusionCodec:
    """A decoder around a tiny codec, or its first codebooks."""
    config = decoders.decoder_config(**changes)
    return DiffusionCodec(codec or codec_of(), decoders.make_decoder(config, fitted=fitted), config)


def streamed(codec: DiffusionCodec, codes: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    stream, done, wavs = codec.stream(len(codes)), 0, []
    for piece in pieces:
        wavs.append(stream.push(codes[..., done : done + piece]))
        done += piece
    assert done == codes.shape[-1]
    return torch.cat([*wavs, stream.finish()], dim=-1)


def test_a_window_is_what_sampling_gives() -> None:
    """The slow way by hand: condition, sampler, codec."""
    codec, codes = make(), decoders.random_codes(1, 4, 16)
    told = Told(code_condition(codec.codec, codes, [4], codec.counts).clone())
    latents = sample(codec.model, told, num_frames=16, params=params_of(codec.config["sampling"]))
    assert torch.equal(codec.refined(codes), latents)
    assert torch.equal(codec.decode(codes), codec.codec.decode_latents(latents))
    assert not torch.allclose(codec.decode(codes), codec.codec.decode(codes), atol=1e-4)


def test_a_residual_regression_that_has_learned_nothing_is_the_plain_decoder() -> None:
    config = decoders.decoder_config(objective="regression")
    config["diffusion"]["residual"] = True
    model = build_diffusion(config)
    frames = torch.randn(1, decoders.LATENT_DIM, 50, generator=torch.Generator().manual_seed(0))
    model.normaliser.fit([frames, -frames])
    assert model.condition_normaliser is not None
    model.condition_normaliser.fit([torch.cat([frames, frames[:, :3]], dim=1)])
    codec, codes = DiffusionCodec(codec_of(), model, config), decoders.random_codes(2, 4, 40)
    torch.testing.assert_close(codec.refined(codes), codec.codes_to_latents(codes))
    torch.testing.assert_close(codec.decode(codes), codec.codec.decode(codes), atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", ["v", "regression"])
@pytest.mark.parametrize("frames", [1, 5, 16, 17, 41])
def test_a_stream_gives_the_samples_of_the_whole(objective: str, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latents bit for bit; what the codec makes of them as near as its own stream is."""
    codec, codes = make(objective=objective), decoders.random_codes(2, 4, frames)
    given: list[torch.Tensor] = []
    whole, latents = codec.decode(codes), codec.refined(codes)
    assert whole.shape == (2, 1, frames * models.HOP) and bool(whole.isfinite().all())
    push = DecoderStream.push_latents
    monkeypatch.setattr(DecoderStream, "push_latents", lambda *a: given.append(a[1]) or push(*a))
    for pieces in ([frames], [1] * frames):
        given.clear()
        torch.testing.assert_close(streamed(codec, codes, pieces), whole, atol=1e-5, rtol=0)
        assert torch.equal(torch.cat(given, dim=-1), latents)


def test_sound_comes_while_codes_do() -> None:
    codec, codes = make(), decoders.random_codes(1, 4, 41)
    stream = codec.stream(1)
    assert stream.push(codes[..., :15]).shape[-1] == 0
    assert stream.push(codes[..., 15:40]).shape[-1] >= 16 * models.HOP


def test_a_clip_is_the_same_alone_and_in_a_batch() -> None:
    codec, codes = make(), decoders.random_codes(3, 4, 20)
    together = codec.decode(codes)
    assert all(torch.equal(codec.decode(codes[i : i + 1])[0], together[i]) for i in range(3))
    assert torch.equal(codec.decode(codes), together)


def test_frames_far_away_change_nothing_and_noise_belongs_to_frames() -> None:
    """A longer clip begins with the windows of the shorter one."""
    codec, codes = make(), decoders.random_codes(1, 4, 60)
    short, long = codec.refined(codes[..., :30]), codec.refined(codes)
    assert torch.equal(short[..., :14], long[..., :14]) and not torch.equal(short[..., 16:30], long[..., 16:30])


def test_fewer_codebooks_say_so_to_the_network() -> None:
    two = codec_of("c0dec000:2")
    codec, whole = make(two), make()
    codes = decoders.random_codes(1, 4, 20)
    wav = codec.decode(codes[:, :2])
    assert codec.num_codebooks == 2 and wav.shape == (1, 1, 20 * models.HOP)
    torch.testing.assert_close(whole.decode(codes[:, :2]), wav, atol=1e-6, rtol=1e-5)  # of the codec's first two
    assert not torch.allclose(whole.decode(codes), wav, atol=1e-4)


def test_codes_it_was_not_trained_with() -> None:
    with pytest.raises(MicroMusicGenError, match=r"trained with 1, 2, 4 codebooks, and the codes have 3"):
        make(codec_of("c0dec000:3"))
    codec = make()
    for shape in ((1, 3, 5), (4, 5)):
        with pytest.raises(MicroMusicGenError, match="1 or 2 or 4 codebooks"):
            codec.decode(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(MicroMusicGenError, match="was trained on another codec .* than this one"):
        make(codec_of("c0dec001"))


def test_an_incomplete_model_is_refused_before_anything_is_played() -> None:
    with pytest.raises(MicroMusicGenError, match="normaliser was never fitted"):
        make(fitted=False)
    with pytest.raises(MicroMusicGenError, match=r"sampling.steps=21 .* 1 to 20"):
        make(steps=21)
    codec = make()
    codec.config["diffusion"]["condition_dropout"] = 0
    with pytest.raises(MicroMusicGenError, match="condition_dropout=0, so guidance 1.5 has nothing to guide from"):
        codec.with_params()
    assert codec.with_params(guidance=1).params.guidance == 1
    with pytest.raises(MicroMusicGenError, match="is a regression, without steps, guidance or noise"):
        make(objective="regression").with_params(steps=4)


def test_frames_of_something_else_are_no_decoder_of_codes() -> None:
    codec = make()
    config = {**codec.config, "frames": {"target": "codec", "condition": "mel_32k"}}
    with pytest.raises(MicroMusicGenError, match="makes codec frames of mel_32k, no sound of codes"):
        DiffusionCodec(codec.codec, codec.model, config)


def test_steps_and_guidance_are_chosen_by_who_plays() -> None:
    codec, codes = make(), decoders.random_codes(1, 4, 10)
    fewer, closer = codec.with_params(steps=1), codec.with_params(guidance=3)
    assert codec.with_params(noise_scale=0.5).params.noise_scale == 0.5
    assert (fewer.params.steps, fewer.params.guidance) == (1, 1.5) and closer.params.steps == 3
    first = codec.decode(codes)
    assert not torch.equal(fewer.decode(codes), first) and not torch.equal(closer.decode(codes), first)
    assert torch.equal(codec.with_params().decode(codes), first)


def test_what_is_not_finite_and_too_little_memory_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, codes = make(), decoders.random_codes(1, 4, 10)
    with monkeypatch.context() as patched:
        patched.setattr(codec.model.denoiser, "forward", lambda x, t, heard: x * float("nan"))
        with pytest.raises(MicroMusicGenError, match="values that are not finite"):
            codec.decode(codes)

    def full(x: torch.Tensor, t: torch.Tensor, heard: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(codec.model.denoiser, "forward", full)
    with pytest.raises(MicroMusicGenError, match="refining 1 clips of 10 frames needs more memory than cpu has left"):
        codec.decode(codes)


def test_it_is_the_codec_it_is_made_around() -> None:
    inner = codec_of("c0dec000")
    codec = make(inner)
    assert isinstance(codec, Codec) and codec.content_hash == inner.content_hash
    wav = 0.1 * torch.randn(1, 1, 3200, generator=torch.Generator().manual_seed(0))
    codes = codec.encode(wav)
    assert torch.equal(codes, inner.encode(wav)) and torch.equal(codec.encode_latents(wav), inner.encode_latents(wav))
    assert torch.equal(codec.codes_to_latents(codes), inner.codes_to_latents(codes))
    assert torch.equal(codec.decode_latents(inner.codes_to_latents(codes)), inner.decode(codes))


def test_a_codec_that_cannot_be_cut_plays_at_the_end() -> None:
    codec, codes = make(load_codec("c0dec000")), decoders.random_codes(1, 4, 30)
    stream = codec.stream(1)
    assert stream.push(codes).shape[-1] == 0
    assert torch.equal(stream.finish(), codec.decode(codes))


def test_a_model_plays_through_it() -> None:
    model = MicroMusicGen.get_pretrained("abcd0123", device="cpu", decoder=decoders.SIGNATURE, decoder_steps=2)
    plain = MicroMusicGen.get_pretrained("abcd0123", device="cpu", decoder="plain")
    for each in (model, plain):
        each.set_generation_params(duration=0.7, seed=0)
    assert isinstance(model.codec, DiffusionCodec) and model.codec.params.steps == 2
    wav, codes = model.generate_unconditional(2, return_tokens=True)
    assert torch.equal(codes, plain.codes(2)) and wav.shape == (2, 1, 35 * models.HOP)
    assert torch.equal(model.codec.decode(codes), wav) and not torch.allclose(wav, plain.decode(codes), atol=1e-4)
    alone = torch.cat(list(model.stream(chunk_s=0.2)), dim=-1)
    torch.testing.assert_close(alone[0], wav[0], atol=1e-5, rtol=0)
    prompt = torch.cat(list(model.stream(prompt=wav[:1, :, :6400], chunk_s=0.2)), dim=-1)
    assert prompt.shape == (1, 1, 35 * models.HOP)


def test_a_model_of_fewer_codebooks_plays_through_the_whole_codecs_decoder() -> None:
    model = MicroMusicGen.get_pretrained("abcd0002", device="cpu", decoder=decoders.SIGNATURE)
    model.set_generation_params(duration=0.1, seed=0)
    assert model.codec.num_codebooks == 2 and model.generate_unconditional(1).shape == (1, 1, 3200)


def test_what_is_asked_of_a_decoder_that_is_not_there() -> None:
    def load(**asked: Any) -> MicroMusicGen:
        return MicroMusicGen.get_pretrained("abcd0123", device="cpu", **asked)

    with pytest.raises(MicroMusicGenError, match="has no diffusion decoder of its own"):
        load(decoder="diffusion")
    with pytest.raises(MicroMusicGenError, match="'nothing' is no file"):
        load(decoder="nothing")
    with pytest.raises(MicroMusicGenError, match="is a run of solver=compression, no diffusion decoder"):
        load(decoder="c0dec000")
    for asked in ({"decoder_steps": 4}, {"decoder": "plain", "decoder_guidance": 1.0}, {"decoder_noise": 0.5}):
        with pytest.raises(MicroMusicGenError, match="the codec alone plays; choose a decoder"):
            load(**asked)


def test_bf16_is_near_fp32() -> None:
    found = []
    for precision in ("fp32", "bf16"):
        model = MicroMusicGen.get_pretrained("abcd0123", device="cpu", precision=precision, decoder=decoders.SIGNATURE)
        assert isinstance(model.codec, DiffusionCodec)
        found.append(model.codec.refined(decoders.random_codes(1, 4, 16)))
    error = (found[1] - found[0]).norm() / found[0].norm()
    assert 0 < error < 0.05


def test_the_hash_of_a_codec_is_known_without_building_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MicroMusicGen.get_pretrained("abcd0123", device="cpu")
    monkeypatch.setattr(type(model.codec), "whole", property(lambda self: pytest.fail("it was built")))
    assert model.codec.content_hash == load_codec("c0dec000").content_hash
