"""The facade: audiocraft's API, its shapes, and one line for everything that can't be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fixtures_models as models
import pytest
import torch

from micro_musicgen import MicroMusicGen
from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.engine.codec import playing
from micro_musicgen.engine.device import pick_device
from micro_musicgen.engine.inputs import UpstreamConditioner
from micro_musicgen.engine.sampler import fresh_seed
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.release.export import export
from micro_musicgen.upstream import audiocraft_module


def player(config: dict[str, Any] | None = None, **changes: Any) -> MicroMusicGen:
    codec = playing(EncodecCodec(models.make_codec_model(), models.codec_config()))
    lm = models.make_lm(config)
    if config is not None and config["conditioners"]:
        changes["conditioner"] = UpstreamConditioner(lm.condition_provider)
    model = MicroMusicGen(
        config or models.lm_config(), lm.state_dict(), codec, window_s=models.WINDOW_S, device="cpu", **changes
    )
    model.set_generation_params(duration=0.2, seed=1)
    return model


def noise(channels: int = 1, num_samples: int = 3200, clips: int = 1) -> torch.Tensor:
    return 0.1 * torch.randn(clips, channels, num_samples, generator=torch.Generator().manual_seed(0))


def test_a_release_plays(home: Path, tmp_path: Path) -> None:
    models.write_models()
    for reference in (
        "jungle",
        export("abcd0123", tmp_path / "r"),
        export("abcd0123", tmp_path / "u", form="audiocraft"),
    ):
        model = MicroMusicGen.get_pretrained(reference, device="cpu")
        assert (model.sample_rate, model.frame_rate, model.audio_channels) == (32000, 50.0, 1)
        assert model.device.type == "cpu" and model.window_s == model.max_duration == models.WINDOW_S
        model.set_generation_params(duration=0.3, seed=0)
        wav, codes = model.generate_unconditional(2, return_tokens=True)
        assert wav.shape == (2, 1, 9600) and codes.shape == (2, 4, 15) and wav.isfinite().all()
        assert torch.equal(model.generate_unconditional(2), wav)


def test_defaults_are_the_window_and_the_models_guidance() -> None:
    model = player()
    model.set_generation_params()
    assert model.params.duration_s == 1.0 and model.params.cfg_coef == 1.0 and model.params.seed is None
    model.set_generation_params(temperature=0.8, top_k=5)
    kept = model.params
    model.set_generation_params(use_sampling=False)
    assert model.params.greedy and model.params.temperature == 1.0 and model.params.top_k == 64
    assert kept.temperature == 0.8, "parameters are replaced, never edited"
    assert player(models.text_lm_config()).params.cfg_coef == 3.0


def test_a_number_of_seconds_is_that_many_samples() -> None:
    model = player()
    for seconds, frames in ((0.02, 1), (0.3, 15), (2.3, 115), (0.001, 1)):
        model.set_generation_params(duration=seconds)
        assert model.num_frames == frames


def test_clips_longer_than_the_window() -> None:
    model = player()
    model.set_generation_params(duration=1.7, extend_stride=0.5, seed=3)
    assert model.generate_unconditional(1).shape == (1, 1, round(1.7 * 32000))


def test_without_a_seed_every_call_is_new_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = player()
    model.set_generation_params(duration=0.2)
    first = model.generate_unconditional(1)
    seed = model.last_seed
    assert not torch.equal(model.generate_unconditional(1), first)
    model.set_generation_params(duration=0.2, seed=seed)
    assert torch.equal(model.generate_unconditional(1), first)


def test_torch_manual_seed_decides_where_no_seed_is_given() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = fresh_seed()
        torch.manual_seed(5)
        assert fresh_seed() == first != fresh_seed()


# Continuing.


def test_a_continuation_begins_with_the_prompts_codes() -> None:
    model = player()
    for prompt in (noise(clips=2), noise(channels=2, clips=2)):
        wav, codes = model.generate_continuation(prompt, 32000, return_tokens=True)
        assert wav.shape == (2, 1, 6400)
        assert torch.equal(codes[..., :5], model.codec.encode(prompt.mean(1, keepdim=True)))
    assert model.generate_continuation(noise()[0], 32000).shape == (1, 1, 6400)


def test_a_prompt_at_another_rate_is_resampled() -> None:
    model = player()
    _, codes = model.generate_continuation(noise(num_samples=4410), 44100, return_tokens=True)
    assert codes.shape == (1, 4, 10)


def test_a_broken_frame_at_the_end_of_a_prompt_is_cut_off() -> None:
    model = player()
    prompt = noise(num_samples=3200 + 600)
    _, codes = model.generate_continuation(prompt, 32000, return_tokens=True)
    assert torch.equal(codes[..., :5], model.codec.encode(prompt[..., :3200]))


@pytest.mark.parametrize(
    ("prompt", "rate", "words"),
    [
        (torch.zeros(1, 3, 3200), 32000, "1 or 2 channels, got 3"),
        (torch.full((1, 1, 3200), float("nan")), 32000, "NaN or infinite samples"),
        (torch.zeros(3200), 32000, r"axes \[B, C, L\] or \[C, L\]"),
        (torch.zeros(1, 1, 3200, dtype=torch.int16), 32000, "is float; got .*int16"),
        (torch.zeros(1, 1, 0), 32000, "the prompt is empty"),
        (torch.zeros(1, 1, 100), 32000, "shorter than one frame of 640"),
        (torch.zeros(1, 1, 6400), 32000, "leaves nothing to add to a clip of 0.2 s; raise the duration"),
        (torch.zeros(1, 1, 3200), 0, "sample rate 0 must be above 0"),
    ],
)
def test_prompts_that_cannot_be_used(prompt: torch.Tensor, rate: int, words: str) -> None:
    with pytest.raises(MicroMusicGenError, match=words):
        player().generate_continuation(prompt, rate)


# Text.


def test_a_model_without_text_says_so() -> None:
    with pytest.raises(MicroMusicGenError, match="trained without text, so 'acid' means nothing"):
        player().generate(["acid"])
    with pytest.raises(MicroMusicGenError, match="0 clips were asked for"):
        player().generate([])
    with pytest.raises(MicroMusicGenError, match=r"a list of texts, one per clip; write \['acid'\]"):
        player().generate("acid")
    with pytest.raises(MicroMusicGenError, match="2 texts for 1 prompts"):
        player().generate_continuation(noise(), 32000, ["a", "b"])


def test_text_decides_what_is_made() -> None:
    model = player(models.text_lm_config())
    acid, jungle = (model.generate([text], return_tokens=True)[1] for text in ("acid", "jungle"))
    assert not torch.equal(acid, jungle)
    assert torch.equal(model.generate(["acid"], return_tokens=True)[1], acid)
    none = model.generate_unconditional(1, return_tokens=True)[1]
    assert not torch.equal(none, acid)
    assert model.generate_continuation(noise(), 32000, ["acid"]).shape == (1, 1, 6400)


def test_guidance_is_u_plus_w_times_c_minus_u() -> None:
    """Weight 0 is the unconditional model, so that the text makes no difference."""
    model = player(models.text_lm_config())
    model.set_generation_params(duration=0.2, seed=1, cfg_coef=0.0)
    acid, jungle = (model.generate([text], return_tokens=True)[1] for text in ("acid", "jungle"))
    assert torch.equal(acid, jungle)


def test_guided_greedy_codes_are_those_of_audiocraft() -> None:
    model = player(models.text_lm_config())
    model.set_generation_params(duration=0.2, use_sampling=False, cfg_coef=2.0)
    attributes = audiocraft_module("modules.conditioners").ConditioningAttributes
    said = [attributes(text={"description": text}) for text in ("acid", "x")]
    lm = models.make_lm(models.text_lm_config())
    wanted = lm.generate(conditions=said, max_gen_len=10, use_sampling=False, cfg_coef=2.0)
    assert torch.equal(model.generate(["acid", "x"], return_tokens=True)[1], wanted)


# Progress, devices, arguments.


def test_progress_goes_to_the_callback_and_never_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    model = player()
    heard: list[tuple[int, int]] = []
    model.set_custom_progress_callback(lambda done, total: heard.append((done, total)))
    model.generate_unconditional(1)
    assert heard == []
    model.generate_unconditional(1, progress=True)
    assert heard[-1] == (10, 10) and len(heard) >= 10
    model.set_custom_progress_callback(None)
    model.generate_unconditional(1, progress=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16", "bf16", "int8"])
def test_every_precision_plays(precision: str) -> None:
    model = player(precision=precision)
    assert model.generate_unconditional(1).shape == (1, 1, 6400)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device(None).type in ("cuda", "mps", "cpu") and pick_device("auto") == pick_device()
    with pytest.raises(MicroMusicGenError, match="unknown device 'tpu'; use cuda, mps, cpu or auto"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(MicroMusicGenError, match="no cuda device that torch can use"):
            pick_device("cuda:0")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"duration": 0}, "duration 0 s is out of range"),
        ({"duration": 10_000}, "duration 10000 s is out of range"),
        ({"duration": float("nan")}, "duration nan s is out of range"),
        ({"temperature": 0}, "temperature 0 must be above 0"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_k": 65}, "top_k 65 is more than the 64 codes that there are; give 0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"extend_stride": 1.0}, "extend_stride 1 s must be shorter"),
        ({"two_step_cfg": True}, "two_step_cfg=True is not supported"),
    ],
)
def test_parameters_out_of_range_change_nothing(changes: dict[str, Any], words: str) -> None:
    model = player()
    before = model.params
    with pytest.raises(MicroMusicGenError, match=words):
        model.set_generation_params(**changes)
    assert model.params is before


def test_other_arguments_that_cannot_be_used(home: Path) -> None:
    models.write_models()
    with pytest.raises(MicroMusicGenError, match="0 clips were asked for; ask for 1 or more"):
        player().generate_unconditional(0)
    with pytest.raises(MicroMusicGenError, match="unknown precision 'int4'; use auto, fp32, fp16, bf16, int8"):
        player(precision="int4")
    with pytest.raises(MicroMusicGenError, match="unknown mode 'fast'; use auto, eager, graph, compile"):
        player(mode="fast")
    with pytest.raises(MicroMusicGenError, match="mode graph needs cuda, and the model is on cpu; use eager or auto"):
        player(mode="graph")
    with pytest.raises(MicroMusicGenError, match="abcd0123.* has no diffusion decoder of its own"):
        MicroMusicGen.get_pretrained("jungle", decoder="diffusion")
