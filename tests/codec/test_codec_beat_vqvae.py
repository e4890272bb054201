"""The beat VQ-VAE: causality, sizes, the quantiser that keeps its codes in use, streaming, and what it refuses."""

from typing import Any

import pytest
import torch

from micro_musicgen.codec.beat_codec import BeatCodec
from micro_musicgen.codec.beat_vqvae import BeatVqVae, BeatVqVaeConfig
from micro_musicgen.codec.builder import build_codec_model, codec_models, frame_samples, is_own
from micro_musicgen.codec.initialise import level_layers
from micro_musicgen.codec.quantiser import CodebookKeeper, QuantiserConfig
from micro_musicgen.engine.codec import _Whole, audio_stream, decoded, latent_stream, playing
from micro_musicgen.errors import MicroMusicGenError

BEAT = 64
STFT = {"use": True, "n_fft": 32, "hop_samples": 8, "power": 0.5}
SECTION = {
    "samples_per_beat": BEAT,
    "latents_per_beat": 1,
    "dimension": 6,
    "strides": [4, 4, 4],
    "channels": [4, 8],
    "residual_kernel_size": 3,
    "n_residual_layers": 2,
    "outer_channels": 2,
    "last_kernel_size": 5,
    "stft": {**STFT, "use": False},
}
RVQ = {
    "n_q": 2,
    "bins": 16,
    "q_dropout": False,
    "decay": 0.9,
    "kmeans_init": True,
    "kmeans_iters": 4,
    "threshold_ema_dead_code": 0,
    "orthogonal_reg_weight": 0.0,
    "orthogonal_reg_active_codes_only": False,
}
SPECTRAL = {"strides": [1, 4, 2], "channels": [8, 8], "last_kernel_size": 1, "stft": STFT}
KINDS = {
    "one": {},
    "four": {"latents_per_beat": 4, "strides": [4, 4], "channels": [8]},
    "spectra": SPECTRAL,
    "spectra, eight": {**SPECTRAL, "latents_per_beat": 8, "strides": [1], "channels": []},
}


def plain(rvq: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "compression_model": "beat_vqvae",
        "sample_rate": 3200,
        "channels": 1,
        "beat_vqvae": {**SECTION, **changes},
        "rvq": {**RVQ, **(rvq or {})},
    }


def made(rvq: dict[str, Any] | None = None, **changes: Any) -> BeatVqVae:
    torch.manual_seed(0)
    model: BeatVqVae = build_codec_model(plain(rvq, **changes))
    level_layers(model, sounds(8))
    return model


def sounds(num_clips: int, beats: int = 6, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(num_clips, 1, beats * BEAT, generator=generator)


def codec(**changes: Any) -> BeatCodec:
    model = made(**changes)
    keeper(model.quantizer).fit(model.encoder(sounds(8)).transpose(1, 2).flatten(0, 1).detach())
    return BeatCodec(model, plain(**changes))


def keeper(quantizer: Any, **changes: Any) -> CodebookKeeper:
    settings = {"warmup": 0.0, "refit": 0.0, "commit": 0.25, "bank_vectors_per_code": 4, "bank_segment_s": 1.0,
                "bank_shifts": [], "kmeans_iters": 5, "restart_every": 1, "restart_below": 0.1,
                "reservoir_vectors": 32}  # fmt: skip
    return CodebookKeeper(quantizer, QuantiserConfig.parse({**settings, **changes}), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_hear_nothing_behind_their_frame_and_as_much_before_it_as_they_say(kind: str) -> None:
    encoder = made(**KINDS[kind]).encoder
    hop, beats = encoder.hop_length, 10
    wav = sounds(1, beats).requires_grad_()
    frames = beats * BEAT // hop
    at = frames - 2
    encoder(wav)[0, :, at].square().sum().backward()
    heard = wav.grad[0, 0].nonzero()[:, 0]
    assert int(heard.max()) < (at + 1) * hop
    first = at * hop - encoder.context_samples
    assert first > 0 and int(heard.min()) >= first
    assert int(heard.min()) < first + hop, "what is claimed is what is used, to a frame"


@pytest.mark.parametrize("kind", KINDS)
def test_audio_of_a_frame_depends_on_no_later_latent_but_for_the_delay(kind: str) -> None:
    decoder = made(**KINDS[kind]).decoder
    hop, frames = decoder.hop_length, 40
    latents = torch.randn(1, 6, frames, requires_grad=True)
    decoder(latents)[0, 0, 20 * hop : 21 * hop].square().sum().backward()
    used = latents.grad[0].abs().sum(dim=0).nonzero()[:, 0]
    assert int(used.max()) == 20 + -(-decoder.delay_samples // hop)
    assert int(used.min()) >= 20 - decoder.context_latents
    if decoder.delay_samples:
        before = torch.randn(1, 6, frames, requires_grad=True)
        decoder(before)[0, 0, 20 * hop : 21 * hop - decoder.delay_samples].square().sum().backward()
        assert decoder.delay_samples >= hop or before.grad[0, :, 21:].abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_as_many_latents_codes_and_samples_as_promised(kind: str) -> None:
    found = codec(**KINDS[kind])
    latents = KINDS[kind].get("latents_per_beat", 1)
    wav = sounds(2, 5)
    assert found.encode_latents(wav).shape == (2, 6, 5 * latents)
    codes = found.encode(wav)
    assert codes.shape == (2, 2, 5 * latents) and codes.dtype == torch.int64
    assert found.decode(codes).shape == wav.shape
    assert torch.equal(found.decode(codes), found.decode_latents(found.codes_to_latents(codes)))
    assert (found.hop_samples, found.frame_rate) == (BEAT // latents, 3200 * latents / BEAT)
    assert found.encode(wav[..., :-1]).shape == codes.shape, "a partial frame is made up with silence"


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_by_the_formula(kind: str) -> None:
    model = made(**KINDS[kind])
    counted = sum(p.numel() for p in model.parameters())
    assert BeatVqVaeConfig.parse(plain(**KINDS[kind])["beat_vqvae"]).num_parameters == counted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[1] * 24, [5, 1, 18], [24]])
def test_streamed_in_pieces_is_decoded_at_once(kind: str, sizes: list[int]) -> None:
    found = codec(**KINDS[kind])
    assert playing(found) is found
    codes = torch.randint(16, (3, 2, 24), generator=torch.Generator().manual_seed(3))
    whole = found.decode(codes)
    pieces = list(decoded(found, iter(codes.split(sizes, dim=-1)), 3))
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, atol=1e-5, rtol=1e-4)
    stream = latent_stream(found, 3)
    assert not isinstance(stream, _Whole)
    parts = [stream.push_latents(part) for part in found.codes_to_latents(codes).split(sizes, dim=-1)]
    if len(sizes) > 1:
        assert parts[0].shape[-1] == max(0, sizes[0] * found.hop_samples - found.model.decoder.delay_samples)
    torch.testing.assert_close(torch.cat([*parts, stream.finish()], dim=-1), whole, atol=1e-5, rtol=1e-4)


def test_streams_refuse_what_they_cannot_follow() -> None:
    found = codec()
    stream = audio_stream(found, 2)
    with pytest.raises(MicroMusicGenError, match="codes of 1 clips for a stream of 2"):
        stream.push(torch.zeros(1, 2, 1, dtype=torch.long))
    assert stream.push(torch.zeros(2, 2, 0, dtype=torch.long)).shape == (2, 1, 0)
    assert stream.finish().shape == (2, 1, 0)
    with pytest.raises(MicroMusicGenError, match="finished"):
        stream.finish()
    with pytest.raises(MicroMusicGenError, match="0 clips"):
        found.stream(0)


def test_the_commitment_is_the_distance_to_the_codes_and_pulls_latents_only() -> None:
    model = made({"n_q": 1})
    keeper(model.quantizer).fit(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))
    latents = torch.randn(2, 6, 5, requires_grad=True)
    embed = model.quantizer.vq.layers[0]._codebook.embed.clone()
    quantised = model.quantizer.train()(latents, 1)
    nearest = torch.cdist(latents.transpose(1, 2).flatten(0, 1), embed).min(dim=1).values
    torch.testing.assert_close(quantised.penalty, nearest.square().mean() / 6)
    quantised.penalty.backward()
    rows = latents.detach().transpose(1, 2).flatten(0, 1)
    expected = 2 * (rows - embed[quantised.codes[:, 0].flatten()]) / rows.numel()
    torch.testing.assert_close(latents.grad.transpose(1, 2).flatten(0, 1), expected)
    through = torch.randn(2, 6, 5, requires_grad=True)
    model.quantizer(through, 1).x.sum().backward()
    assert torch.equal(through.grad, torch.ones_like(through)), "straight through to the encoder"


def test_codebooks_move_by_moving_averages() -> None:
    model = made({"n_q": 1})
    keeper(model.quantizer).fit(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))
    book = model.quantizer.vq.layers[0]._codebook
    sums, sizes = book.embed_avg.clone(), book.cluster_size.clone()
    latents = torch.randn(1, 6, 40)
    codes = model.quantizer.train()(latents, 1).codes[0, 0]
    rows = latents[0].t()
    for code in range(16):
        mine = rows[codes == code]
        torch.testing.assert_close(book.cluster_size[code], 0.9 * sizes[code] + 0.1 * len(mine))
        torch.testing.assert_close(book.embed_avg[code], 0.9 * sums[code] + 0.1 * mine.sum(dim=0))
    torch.testing.assert_close(book.embed, book.embed_avg / book.cluster_size[:, None], atol=1e-3, rtol=1e-3)


def test_dead_codes_come_back_where_latents_are() -> None:
    model = made()
    kept = keeper(model.quantizer)
    kept.fit(model.encoder(sounds(8)).transpose(1, 2).flatten(0, 1).detach())
    book = model.quantizer.vq.layers[0]._codebook
    book.embed[3:] = 100.0  # all but three codes where nothing ever is
    book.cluster_size[3:] = 0.0
    latents = model.encoder(sounds(8, seed=2)).detach()
    restarted = kept.observe(latents)
    assert restarted >= 13
    rows = latents.transpose(1, 2).flatten(0, 1)
    assert float(torch.cdist(book.embed[3:], rows).min(dim=1).values.max()) < 1e-2


def test_a_quantiser_goes_on_from_its_state_as_if_nothing_had_happened() -> None:
    def step(model: BeatVqVae, kept: CodebookKeeper, seed: int) -> None:
        latents = model.encoder(sounds(8, seed=seed)).detach()
        model.quantizer.train()(latents, 1)
        kept.observe(latents)

    first = made()
    kept = keeper(first.quantizer)
    kept.fit(first.encoder(sounds(8)).transpose(1, 2).flatten(0, 1).detach())
    step(first, kept, 2)
    second = made()
    again = keeper(second.quantizer)
    second.load_state_dict(first.state_dict())
    again.load_state_dict(kept.state_dict())
    for seed in (3, 4, 5):
        step(first, kept, seed)
        step(second, again, seed)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_the_registry_knows_it_and_nothing_about_encodec_changes() -> None:
    assert is_own(plain()) and "beat_vqvae" in codec_models
    assert not is_own({"compression_model": "encodec"}) and not is_own({})
    assert frame_samples(plain()) == BEAT and frame_samples(plain(**KINDS["four"])) == BEAT // 4
    assert frame_samples({"compression_model": "encodec", "seanet": {"ratios": [8, 5, 4, 4]}}) == 640


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [4, 4, 2]}, "4 x 4 x 2 = 32 samples, but samples_per_beat / latents_per_beat is 64 / 1 = 64"),
        ({"latents_per_beat": 2}, "4 x 4 x 4 = 64 samples, but samples_per_beat / latents_per_beat is 64 / 2 = 32"),
        ({**SPECTRAL, "strides": [1, 4, 4]}, "8 x 1 x 4 x 4 = 128 samples"),
        ({"latents_per_beat": 3}, "samples_per_beat=64 is no multiple of latents_per_beat=3"),
        ({"channels": [4]}, "channels has 1 widths for 3 strides; give one less"),
        ({"channels": [4, 0]}, "beat_vqvae.channels=[4, 0] must be a list of whole numbers from 1 to"),
        ({"strides": 64}, "beat_vqvae.strides=64 must be a list"),
        ({"dimension": 1 << 40}, "beat_vqvae.dimension=1099511627776 must be a whole number from 1 to"),
        ({"n_residual_layers": 1.5}, "beat_vqvae.n_residual_layers=1.5 must be a whole number"),
        ({"speed": 1}, "unknown key beat_vqvae.speed"),
        ({"stft": {**STFT, "hop_samples": 12}}, "hop_samples=12 must be a third of n_fft 32"),
        ({"stft": {"use": True}}, "missing key beat_vqvae.stft.n_fft"),
        ({"stft": {**STFT, "n_fft": "long"}}, "beat_vqvae.stft.n_fft=long must be a whole number"),
    ],
)
def test_bad_sizes_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MicroMusicGenError) as caught:
        build_codec_model(plain(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_bad_input_is_refused_in_one_line() -> None:
    with pytest.raises(MicroMusicGenError, match="channels=2: a beat VQ-VAE is mono"):
        build_codec_model({**plain(), "channels": 2})
    with pytest.raises(MicroMusicGenError, match="section rvq: .*speed"):
        build_codec_model(plain({"speed": 1}))
    with pytest.raises(MicroMusicGenError, match="audio of 100 samples is no whole number of frames of 64 samples"):
        made().encoder(torch.zeros(1, 1, 100))
