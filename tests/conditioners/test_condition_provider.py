"""Conditioners by name: the registry, plugins, and the model around them."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import fixtures_models as models
import pytest
import tiny_text
import torch
from hydra import compose, initialize_config_dir

import micro_musicgen.train  # noqa: F401  (lets Hydra look into the data home)
from micro_musicgen import paths
from micro_musicgen.conditioners.base import Surroundings, conditioners
from micro_musicgen.conditioners.fusing import fuse, read_fuser
from micro_musicgen.conditioners.lazy_registry import LazyRegistry
from micro_musicgen.conditioners.plugins import load_plugins
from micro_musicgen.conditioners.provider import ConditionProvider, build_provider, is_ours
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import build_condition_provider, build_lm, lm_config, lm_spec

DOC = Path(__file__).parents[2] / "docs" / "conditioning.md"
SURROUNDINGS = Surroundings(dim=32, num_codebooks=4, card=64)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return tiny_text.make_tiny_t5(tmp_path_factory.mktemp("t5") / "tiny", ("fast", "techno"), dim=16, num_layers=1)


def config(t5: Path, way: str = "cross") -> dict[str, Any]:
    made = models.lm_config()
    made["conditioners"] = {
        "description": {"model": "text", "text": {"encoder": str(t5), "max_length": 6, "modality": True}},
        "audio_prompt": {"model": "audio_prompt", "audio_prompt": {"duration_s": 0.2, "dim": 8}},
    }
    made["fuser"] = {**made["fuser"], way: ["description", "audio_prompt"], "mask_padding": True,
                     "cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1}  # fmt: skip
    made["classifier_free_guidance"] = {"training_dropout": 0.1, "inference_coef": 3.0}
    made["attribute_dropout"] = {"text": {"description": 0.1}, "wav": {"audio_prompt": 0.1}}
    return made


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("way", ["cross", "prepend"])
def test_the_model_listens_to_our_conditioners(t5: Path, way: str) -> None:
    plain = config(t5, way)
    model = build_lm(plain, window_s=1.0)
    provider = model.condition_provider
    assert isinstance(provider, ConditionProvider)
    assert provider.names() == ("description", "audio_prompt") and provider.names("text") == ("description",)
    spec = lm_spec(plain)
    assert spec.conditioning == {"cross": "cross", "prepend": "prefix"}[way]
    assert parameters(model) - parameters(provider) == spec.num_parameters
    assert {name for name in model.state_dict() if name.startswith("condition_provider.")} == {
        f"condition_provider.{name}" for name, _ in provider.named_parameters()
    }
    assert (model.transformer.layers[0].cross_attention is not None) == (way == "cross")
    fused = fuse(
        read_fuser(plain), provider(provider.prepare({"description": ["fast techno", None]})),
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    entered = fused.cross if way == "cross" else fused.prefix
    assert entered is not None and entered.shape == (2, 6 + 10, 32)


def test_training_mode_stops_before_the_encoder(t5: Path) -> None:
    model = build_lm(config(t5), window_s=1.0).train()
    provider = model.condition_provider
    provider.prepare({"description": ["fast"]})
    _, encoder = provider.conditioners["description"].encoder._loaded()
    assert provider.training and not encoder.training
    ours = {id(p) for p in model.parameters()}
    assert not any(id(p) in ours or p.requires_grad for p in encoder.parameters())
    state = deepcopy(model.state_dict())
    assert not any("encoder" in name for name in state)
    model.load_state_dict(state, strict=True)


def test_a_model_is_built_on_the_meta_device_without_weights(t5: Path) -> None:
    with torch.device("meta"):
        model = build_lm(config(t5), window_s=1.0, device="meta")
    assert all(tensor.is_meta for tensor in model.state_dict().values()) and not list(model.buffers())
    real = build_lm(config(t5), window_s=1.0)
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in real.state_dict().items()}


def test_the_provider_alone_is_the_models(t5: Path) -> None:
    alone = build_condition_provider(config(t5), window_s=1.0)
    inside = build_lm(config(t5), window_s=1.0).condition_provider
    assert {n: t.shape for n, t in alone.state_dict().items()} == {n: t.shape for n, t in inside.state_dict().items()}
    slower = build_condition_provider(config(t5), window_s=1.0, frame_rate=25.0)
    assert slower.conditioners["audio_prompt"].num_positions == 5


def test_a_relative_encoder_is_the_releases(t5: Path) -> None:
    plain = config(t5)
    plain["conditioners"]["description"]["text"]["encoder"] = t5.name
    provider = build_condition_provider(plain, window_s=1.0, folder=t5.parent)
    assert provider.conditioners["description"].encoder.folder == t5.resolve()


def test_audiocrafts_conditioners_stay_audiocrafts() -> None:
    plain = models.text_lm_config()
    assert not is_ours(plain) and not is_ours(models.lm_config())
    assert not isinstance(build_lm(plain, window_s=1.0).condition_provider, ConditionProvider)


def test_mixing_and_misnaming_are_refused(t5: Path, home: Path) -> None:
    mixed = config(t5)
    mixed["conditioners"]["genre"] = models.text_lm_config()["conditioners"]["description"]
    with pytest.raises(MicroMusicGenError, match=r"genre \(lut\).*can't be mixed"):
        build_lm(mixed, window_s=1.0)
    unknown = config(t5)
    unknown["conditioners"]["audio_prompt"] = {"model": "smell", "smell": {}}
    with pytest.raises(MicroMusicGenError, match=r"unknown conditioner 'smell'; known: audio_prompt.*text.*plugins"):
        build_lm(unknown, window_s=1.0)
    unheard = config(t5)
    unheard["fuser"]["cross"] = ["description"]
    with pytest.raises(MicroMusicGenError, match=r"name description; expected each .*once: audio_prompt, description"):
        build_lm(unheard, window_s=1.0)
    with pytest.raises(MicroMusicGenError, match="6 positions"):
        build_provider({**config(t5, "sum")}, SURROUNDINGS)


def test_things_said_are_checked(t5: Path) -> None:
    provider = build_condition_provider(config(t5), window_s=1.0)
    with pytest.raises(MicroMusicGenError, match="does not listen to 'smell'; it listens to description, audio_prompt"):
        provider.prepare({"smell": ["roses"]})
    with pytest.raises(MicroMusicGenError, match="different numbers"):
        provider.prepare({"description": ["fast"], "audio_prompt": [None, None]})


def test_a_name_is_known_before_its_module_is_imported(tmp_path: Path, monkeypatch: Any, home: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: LazyRegistry[Any] = LazyRegistry("fruit", {"apple": "fruit_module"})
    monkeypatch.setattr(sys, "fruit_registry", registry, raising=False)
    (tmp_path / "fruit_module.py").write_text("import sys\nsys.fruit_registry.register('apple')(5)\n", encoding="utf-8")
    assert "apple" in registry and list(registry) == ["apple"] and "pear" not in registry
    assert "fruit_module" not in sys.modules
    assert registry.get("apple") == 5
    with pytest.raises(MicroMusicGenError, match=r"unknown fruit 'pear'; known: apple; .*plugins"):
        registry.get("pear")


def test_a_config_that_says_the_width_needs_no_encoder(t5: Path) -> None:
    plain = config(t5)
    width = build_condition_provider(plain, window_s=1.0).conditioners["description"].width
    settled = deepcopy(plain)
    settled["conditioners"]["description"]["text"] |= {"encoder": "/gone/since", "width": width}
    model = build_lm(settled, window_s=1.0)
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in build_lm(plain, window_s=1.0).state_dict().items()
    }
    with pytest.raises(MicroMusicGenError, match="no folder '/gone/since"):
        model.condition_provider.prepare({"description": ["fast"]})


def doc_block(kind: str) -> str:
    """The one block of the guide that is of a language: what it shows is what is tested."""
    blocks = DOC.read_text(encoding="utf-8").split(f"```{kind}\n")[1:]
    (found,) = [block.split("```")[0] for block in blocks if "tempo" in block]
    return found


def test_the_guides_plugin_works(home: Path) -> None:
    """The example of docs/conditioning.md, word for word: `dora run conditioner=tempo` composes and builds this."""
    assert "tempo" not in conditioners
    for folder, kind, suffix in (("plugins", "python", "py"), ("conditioner", "yaml", "yaml")):
        (home / folder).mkdir(parents=True)
        (home / folder / f"tempo.{suffix}").write_text(doc_block(kind), encoding="utf-8")
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        cfg = compose("config", ["solver=musicgen/debug", "conditioner=tempo"])
    plain = lm_config(cfg)
    assert plain["fuser"]["prepend"] == ["tempo"] and is_ours(plain)
    model = build_lm(plain, window_s=1.0)
    assert {"audio_prompt", "tempo", "text"} <= set(conditioners)
    provider = model.condition_provider
    assert provider.names("text") == ("tempo",)
    embeddings, mask = provider(provider.prepare({"tempo": ["172 bpm", "90", None, "quick"]}))["tempo"]
    assert mask[:, 0].tolist() == [True, True, False, False]
    assert not embeddings[2:].any() and (embeddings[0] - embeddings[1]).abs().max() > 0.01
    assert any(name.startswith("condition_provider.conditioners.tempo.") for name in model.state_dict())
    assert load_plugins() == []


def test_a_plugin_that_fails_says_so(home: Path) -> None:
    path = home / "plugins" / "broken_one.py"
    path.parent.mkdir(parents=True)
    path.write_text("import not_installed_anywhere\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(MicroMusicGenError, match=r"broken_one\.py failed: ModuleNotFoundError.*not_installed") as e:
            conditioners.get("smell")
        assert "\n" not in str(e.value)
    assert "text" in conditioners, "what is known asks no plugin"
