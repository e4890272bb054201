"""From files to a playing model: the short way imports nothing of audiocraft's, and checks before it allocates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fixtures_models as models
import pytest
import torch
from safetensors.torch import save_file

from micro_musicgen import MicroMusicGen, weights
from micro_musicgen.engine import memory
from micro_musicgen.engine.architecture import read_architecture
from micro_musicgen.engine.threads import threads
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.release.export import export
from micro_musicgen.release.load import load_release


@pytest.fixture
def release(home: Path, tmp_path: Path) -> Path:
    models.write_models()
    return export("abcd0123", tmp_path / "r")


def test_generating_imports_neither_audiocraft_nor_its_config_tools(release: Path, tmp_path: Path) -> None:
    heavy = (
        "audiocraft hydra omegaconf transformers torchaudio matplotlib scipy torch._dynamo torch._inductor flashy dora"
    )
    program = (
        "import sys; sys.argv = ['micro-musicgen', 'generate', sys.argv[1], '-n', '1', '--duration', '0.2',"
        " '--out', sys.argv[2]]\n"
        "from micro_musicgen import cli\n"
        "try: cli.run()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('loaded:', sorted(set({heavy.split()!r}) & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(release), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "loaded: []" in ran.stdout


def test_every_form_of_a_model_gives_the_same_codes(release: Path, tmp_path: Path) -> None:
    found = []
    for reference in (release, "abcd0123", "jungle", export("abcd0123", tmp_path / "u", form="audiocraft")):
        model = MicroMusicGen.get_pretrained(reference, device="cpu")
        model.set_generation_params(duration=0.3, seed=0)
        found.append(model.codes(2))
        assert model.num_parameters == sum(p.numel() for p in load_release(reference).lm.parameters())
    assert all(torch.equal(codes, found[0]) for codes in found)


def test_the_codec_is_whole_where_something_asks_for_it(release: Path) -> None:
    model, reference = MicroMusicGen.get_pretrained(release, device="cpu"), load_release(release).codec
    wav = 0.1 * torch.randn(1, 1, 3200, generator=torch.Generator().manual_seed(0))
    assert model.codec.content_hash == reference.content_hash
    assert torch.equal(model.codec.encode(wav), reference.encode(wav))
    torch.testing.assert_close(model.codec.encode_latents(wav), reference.encode_latents(wav))
    codes = reference.encode(wav)
    torch.testing.assert_close(model.codec.codes_to_latents(codes), reference.codes_to_latents(codes))
    latents = reference.codes_to_latents(codes)
    torch.testing.assert_close(
        model.codec.decode_latents(latents), reference.decode_latents(latents), atol=1e-5, rtol=0
    )
    with pytest.raises(AttributeError):
        model.codec.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_layers", 10**9, "1000000000 layers or codebooks, but there are only"),
        ("n_q", 10**9, "4 codebooks against 1000000000"),
        ("dim", 10**6, "does not hold the model that its config describes"),
        ("card", 7, "does not hold the model|does not fit"),
        ("causal", False, "causal must be true"),
        ("norm", "rms_norm", "unknown norm 'rms_norm'"),
        ("activation", "swiglu", "unknown activation 'swiglu'; known: gelu, relu"),
        ("positional_embedding", "alibi", "unknown positional_embedding 'alibi'"),
        ("num_heads", 3, "don't divide each other|not a multiple"),
    ],
)
def test_configs_that_cannot_be_played(release: Path, key: str, value: object, words: str) -> None:
    path = release / "config.json"
    config = json.loads(path.read_text())
    config["lm"]["transformer_lm"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(MicroMusicGenError, match=words):
        MicroMusicGen.get_pretrained(release, device="cpu")


def test_shapes_are_those_of_audiocrafts_modules() -> None:
    for changes in ({}, {"bias_attn": True, "bias_ff": True, "bias_proj": True}, {"layer_scale": 0.1, "kv_repeat": 2}):
        config = models.lm_config()
        config["transformer_lm"].update(changes)
        wanted = {name: tuple(x.shape) for name, x in models.make_lm(config).state_dict().items()}
        assert read_architecture(config).shapes() == wanted


def test_lazy_weights_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}, path)
    lazy = weights.LazyWeights(path)
    assert lazy.shapes == {"a": (2, 3), "b": (1,)} and list(lazy) == ["a", "b"] and len(lazy) == 2
    assert torch.equal(lazy["a"], torch.arange(6.0).view(2, 3)) and lazy["a"].data_ptr() % 64 == 0
    with pytest.raises(KeyError):
        lazy["c"]


def test_too_little_memory_is_said_before_any_work(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MicroMusicGen.get_pretrained(release, device="cpu")
    model.set_generation_params(duration=0.5)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1_500_000)
    assert model.codes(1).shape == (1, 4, 25)
    with pytest.raises(
        MicroMusicGenError, match=r"1000 rows of 29 steps .* needs 24 MB of memory and cpu has 1 MB left"
    ):
        model.codes(1000)
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    assert model.codes(1).shape == (1, 4, 25)


def test_memory_is_asked_of_the_system() -> None:
    found = memory.available_bytes(torch.device("cpu"))
    assert found is None or found > 10_000_000


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError), threads(1):
        raise RuntimeError
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_codes(release: Path) -> None:
    model = MicroMusicGen.get_pretrained(release, device="cpu", precision="fp32", mode="compile")
    eager = MicroMusicGen.get_pretrained(release, device="cpu", precision="fp32")
    for each in (model, eager):
        each.set_generation_params(duration=0.5, use_sampling=False)
    assert torch.equal(model.codes(2), eager.codes(2)) and model.warm_up_s > 0
