"""The fast decoder against audiocraft's, over every kind of codec that the config can describe."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import fixtures_models as models
import pytest
import torch

from micro_musicgen.codec.builder import build_codec_model
from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.engine import decoder as decoder_module
from micro_musicgen.engine import lstm as lstm_module
from micro_musicgen.engine.decoder import CodecDecoder, distance_db, lstm_kind
from micro_musicgen.errors import MicroMusicGenError

CARD = 16
ACTIVATIONS = [("ELU", {"alpha": 1.0}), ("ELU", {"alpha": 0.5}), ("LeakyReLU", {"negative_slope": 0.3}), ("SiLU", {}),
               ("Sigmoid", {}), ("GELU", {})]  # fmt: skip


def changed(
    seanet: dict[str, Any] | None = None, *, n_q: int = 4, n_filters: int = 2, **decoder: Any
) -> dict[str, Any]:
    config = models.codec_config(bins=CARD, n_q=n_q, n_filters=n_filters, dimension=8)
    config["seanet"].update({"ratios": [3, 2], **(seanet or {})})
    config["encodec"].update({key: config["seanet"][key] for key in ("causal", "channels")})
    config["seanet"]["decoder"] = {**config["seanet"]["decoder"], **decoder}
    return config


def any_config(seed: int) -> dict[str, Any]:
    """A codec that nobody would train, with every choice made by lot."""
    lot = random.Random(seed)
    causal, filters = lot.random() < 0.5, lot.choice([1, 2, 4])
    ratios = lot.choice([[2], [3, 2], [1, 3], [5, 1, 2], [4, 4, 5, 8]])
    activation, params = lot.choice(ACTIVATIONS)
    seanet = {
        "causal": causal, "channels": lot.choice([1, 2]), "ratios": ratios, "activation": activation,
        "activation_params": params, "n_residual_layers": lot.randint(0, 3), "true_skip": lot.random() < 0.5,
        "pad_mode": lot.choice(["constant", "reflect", "replicate"]), "norm": lot.choice(["none", "weight_norm"]),
        "lstm": lot.randint(0, 2), "compress": lot.choice([1, 2]) if filters > 1 else 1,
        "kernel_size": lot.choice([1, 2, 3, 7]), "last_kernel_size": lot.choice([1, 4, 5, 7]),
        "residual_kernel_size": lot.choice([1, 2, 3, 5]), "dilation_base": lot.choice([1, 2, 3]),
        "disable_norm_outer_blocks": lot.randint(0, len(ratios) + 2),
    }  # fmt: skip
    return changed(
        seanet,
        n_q=lot.randint(1, 8),
        n_filters=filters,
        trim_right_ratio=lot.choice([1.0, 0.5, 0.3, 0.0]) if causal else 1.0,
        final_activation=lot.choice([None, "Tanh"]),
    )


def pair(config: dict[str, Any], *, seed: int = 0, **how: Any) -> tuple[EncodecCodec, CodecDecoder]:
    """audiocraft's codec with random weights, and our decoder of it."""
    torch.manual_seed(seed)
    model = build_codec_model(config)
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.normal_()
    return EncodecCodec(model, config), CodecDecoder.from_state(config, model.state_dict(), **how)


def some_codes(decoder: CodecDecoder, clips: int, frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, decoder.cardinality, (clips, decoder.num_codebooks, frames), generator=generator)


def streamed(decoder: CodecDecoder, codes: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    stream, parts, start = decoder.stream(codes.shape[0]), [], 0
    for size in [*sizes, codes.shape[2]]:
        parts.append(stream.push(codes[:, :, start : start + size]))
        assert parts[-1].shape[2] % decoder.hop_samples == 0
        start += size
    return torch.cat([*parts, stream.finish()], dim=2)


@pytest.mark.parametrize("seed", range(24))
def test_any_codec_decodes_as_in_audiocraft_at_once_and_in_pieces(seed: int) -> None:
    config = any_config(seed)
    reference, ours = pair(config, seed=seed)
    for frames in (1, 2, 9, 40):
        codes = some_codes(ours, 2, frames, seed)
        want, found = reference.decode(codes), ours.decode(codes)
        assert found.shape == want.shape == (2, ours.channels, frames * ours.hop_samples)
        assert (found - want).abs().max() < 1e-5
        assert (streamed(ours, codes, [1, 0, 2, 17]) - found).abs().max() < 1e-5


def test_the_shipped_topologies_with_their_attributes() -> None:
    reference, ours = pair(models.codec_config())
    for name in ("sample_rate", "channels", "frame_rate", "hop_samples", "num_codebooks", "cardinality", "latent_dim"):
        assert getattr(ours, name) == getattr(reference, name), name
    codes = some_codes(ours, 2, 30)
    assert torch.equal(ours.codes_to_latents(codes), reference.codes_to_latents(codes))
    latents = torch.randn(2, ours.latent_dim, 30)
    assert (ours.decode_latents(latents) - reference.decode_latents(latents)).abs().max() < 1e-5
    assert (ours.decode(codes[:, :2]) - reference.decode(codes[:, :2])).abs().max() < 1e-5, "fewer codebooks"


@pytest.mark.parametrize("precision", ["fp32", "auto", "bf16"])
def test_a_clip_sounds_the_same_to_the_bit_in_any_batch(precision: str) -> None:
    _, ours = pair(changed({"ratios": [8, 5, 4, 4]}, n_filters=16), precision=precision)
    codes = some_codes(ours, 17, 3 if precision == "bf16" else 30)
    together = ours.decode(codes)
    for clips in (slice(0, 1), slice(3, 5), slice(4, 11), slice(16, 17)):
        assert torch.equal(ours.decode(codes[clips]), together[clips])
    assert torch.equal(ours.decode(codes), together), "run to run"


def test_blocks_of_a_long_clip_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair(changed())
    codes = some_codes(ours, 2, 700)
    whole = ours.decode(codes)
    monkeypatch.setattr(decoder_module, "BLOCK_FRAMES", 7)
    ours.upsampler.block_floats = 1
    assert (ours.decode(codes) - whole).abs().max() < 1e-5
    assert (streamed(ours, codes, [300]) - whole).abs().max() < 1e-5


def test_equal_pieces_give_equal_bits() -> None:
    _, ours = pair(changed())
    codes = some_codes(ours, 2, 40)
    assert torch.equal(streamed(ours, codes, [7, 13]), streamed(ours, codes, [7, 13]))


@pytest.mark.parametrize("causal", [True, False])
def test_samples_depend_on_exactly_the_frames_that_it_says(causal: bool) -> None:
    _, ours = pair(changed({"causal": causal, "n_residual_layers": 2}, n_filters=4))
    first = some_codes(ours, 1, 40)
    for later in (10, 25):
        second = first.clone()
        second[:, :, later:] = (second[:, :, later:] + 1) % CARD
        differs = (ours.decode(first) != ours.decode(second))[0, 0]
        earliest = int(differs.nonzero()[0]) // ours.hop_samples
        assert earliest == later - ours.lookahead_frames
        stream = ours.stream(1)
        assert stream.push(first[:, :, :later]).shape[2] == earliest * ours.hop_samples
    assert (ours.lookahead_frames == 0) is causal


def test_newer_names_of_weight_norm_and_weights_in_half() -> None:
    config = changed()
    torch.manual_seed(0)
    state = build_codec_model(config).state_dict()
    newer = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in state.items()
    }
    assert newer.keys() != state.keys()
    codes = torch.zeros(1, 4, 5, dtype=torch.int64)
    want = CodecDecoder.from_state(config, state).decode(codes)
    assert torch.equal(CodecDecoder.from_state(config, newer).decode(codes), want)
    decoding = {name: t.half() for name, t in state.items() if not name.startswith("encoder.")}
    assert CodecDecoder.from_state(config, decoding).decode(codes).dtype == torch.float32


def test_weights_are_copies() -> None:
    config = changed({"norm": "none"})
    model = build_codec_model(config)
    ours = CodecDecoder.from_state(config, model.state_dict())
    codes = some_codes(ours, 1, 5)
    before = ours.decode(codes)
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert torch.equal(ours.decode(codes), before)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("seanet", {"n_residual_layers": 10**9}),
        ("seanet", {"ratios": [10**9, 10**9]}),
        ("seanet", {"ratios": [500_000, 500_000]}),
        ("seanet", {"ratios": []}),
        ("seanet", {"lstm": 10**6}),
        ("seanet", {"dilation_base": 10**9, "n_residual_layers": 2}),
        ("seanet", {"n_filters": 10**9}),
        ("seanet", {"n_filters": 0}),
        ("seanet", {"kernel_size": 2.5}),
        ("seanet", {"causal": "yes"}),
        ("seanet", {"compress": 1000}),
        ("seanet", {"activation_params": {"colour": "red"}}),
        ("seanet", {"norm": "time_group_norm"}),
        ("seanet", {"disable_norm_outer_blocks": 99}),
        ("rvq", {"n_q": 10**9}),
        ("rvq", {"bins": 10**12}),
        ("encodec", {"quantizer": "no_quant"}),
    ],
)
def test_a_config_that_lies_is_refused_at_once(section: str, change: dict[str, Any]) -> None:
    config = changed()
    state = build_codec_model(config).state_dict()
    config[section].update(change)
    with pytest.raises(MicroMusicGenError, match="here.bin"):
        CodecDecoder.from_state(config, state, source="here.bin")


def test_a_missing_a_strange_and_a_wrong_tensor_are_named() -> None:
    config = changed()
    state = dict(build_codec_model(config).state_dict())
    wanted = "decoder.model.0.conv.conv.bias is missing, expected"
    name = "decoder.model.0.conv.conv.bias"
    with pytest.raises(MicroMusicGenError, match=f"here.bin does not hold .*{wanted}"):
        CodecDecoder.from_state(config, {k: v for k, v in state.items() if k != name}, source="here.bin")
    with pytest.raises(MicroMusicGenError, match="decoder.extra is .*expected nothing"):
        CodecDecoder.from_state(config, {**state, "decoder.extra": torch.zeros(3)})
    with pytest.raises(MicroMusicGenError, match=r"bias is \(3,\), expected"):
        CodecDecoder.from_state(config, {**state, name: torch.zeros(3)})


def test_what_it_supports() -> None:
    assert CodecDecoder.supports(changed())
    assert not CodecDecoder.supports(changed({"norm": "time_group_norm"}))
    assert not CodecDecoder.supports(changed({"activation": "PReLU"}))
    assert not CodecDecoder.supports(changed({"pad_mode": "circular"}))
    assert not CodecDecoder.supports({**changed(), "compression_model": "dac"})
    assert not CodecDecoder.supports({})


def test_codes_of_another_codec_are_refused() -> None:
    _, ours = pair(changed())
    good = some_codes(ours, 2, 3)
    for codes in (good[0], good.float(), good + CARD, good - CARD, torch.cat([good, good], 1), good[:, :0]):
        with pytest.raises(MicroMusicGenError, match="codes"):
            ours.decode(codes)
    with pytest.raises(MicroMusicGenError, match="stream of 3"):
        ours.stream(3).push(good)
    with pytest.raises(MicroMusicGenError, match="0 clips"):
        ours.stream(0)
    with pytest.raises(MicroMusicGenError, match="precision 'int3'"):
        pair(changed(), precision="int3")


def test_nothing_and_a_finished_stream() -> None:
    _, ours = pair(changed())
    assert ours.decode(some_codes(ours, 2, 0)).shape == (2, 1, 0)
    stream = ours.stream(2)
    assert stream.push(some_codes(ours, 2, 0)).shape == (2, 1, 0) and stream.finish().shape == (2, 1, 0)
    with pytest.raises(MicroMusicGenError, match="finished"):
        stream.push(some_codes(ours, 2, 1))
    with pytest.raises(MicroMusicGenError, match="finished"):
        stream.finish()


def test_other_precisions_are_near() -> None:
    config = changed({"ratios": [8, 5, 4, 4]}, n_filters=16)
    _, exact = pair(config)
    codes = some_codes(exact, 1, 50)
    want = exact.decode(codes)
    assert distance_db(pair(config, precision="auto")[1].decode(codes), want) > 60
    assert distance_db(pair(config, precision="bf16")[1].decode(codes), want) > 25


def test_auto_is_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(decoder_module, "fbgemm_is_there", lambda: True)
    assert [lstm_kind(p, 1024) for p in ("auto", "fp32", "bf16")] == ["int8", "fp32", "fp32"]
    assert lstm_kind("auto", 64) == "fp32"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert lstm_kind("auto", 1024) == "fp32"


def test_eight_bits_stay_only_where_they_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "lstm_kind", lambda precision, width: "int8" if precision == "auto" else "fp32")
    kinds = []
    for bar in (0.0, 1000.0):
        monkeypatch.setattr(decoder_module, "MIN_INT8_DB", bar)
        _, ours = pair(changed({"ratios": [2, 2, 2]}, n_filters=8), precision="auto")
        _, exact = pair(changed({"ratios": [2, 2, 2]}, n_filters=8))
        codes = some_codes(ours, 1, 20)
        kinds.append(torch.equal(ours.decode(codes), exact.decode(codes)))
    assert kinds == [not lstm_module.fbgemm_is_there(), True]


def test_audiocraft_is_not_imported() -> None:
    script = (
        "import sys, micro_musicgen.engine.decoder; "
        "print([name for name in ('audiocraft', 'omegaconf', 'hydra', 'einops', 'flashy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
