"""Releases of models that listen: the text encoder travels inside them, or by its id; the rest as ever."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import conditioned_models as own
import fake_hub
import pytest
import tiny_text
import torch
import yaml

from micro_musicgen import MicroMusicGen, storage, weights
from micro_musicgen.conditioners.provider import ConditionProvider
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.release import encoders
from micro_musicgen.release.export import export
from micro_musicgen.release.hub import pull, push
from micro_musicgen.release.info import describe
from micro_musicgen.release.load import load_release

pytest.importorskip("transformers")
WORDS = ("acid", "slow", "beat")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.make_tiny_t5(tmp_path_factory.mktemp("t5") / "tiny", WORDS, num_layers=1)


@pytest.fixture
def t5(tiny: Path, tmp_path: Path) -> Path:
    """A copy to spoil, with files beside it that nobody should publish."""
    folder = Path(shutil.copytree(tiny, tmp_path / "my encoder"))
    (folder / "notes.txt").write_text("private")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


@pytest.fixture
def release(home: Path, tmp_path: Path, t5: Path) -> Path:
    own.write_own_run("text and sound", t5)
    return export("abcd0123", tmp_path / "release")


def codes_of(reference: Any, **more: Any) -> torch.Tensor:
    model = MicroMusicGen.get_pretrained(reference, device="cpu")
    model.set_generation_params(duration=0.1, seed=0)
    said = {"descriptions": ["acid beat", "slow"], "audio_prompts": own.noise()[None], **more}
    return model.codes(2, **said)


def edit_config(release: Path, change: Any) -> None:
    config = json.loads((release / "config.json").read_text())
    change(config)
    storage.write_json(release / "config.json", config)


def test_a_release_works_where_the_encoder_is_not(release: Path, t5: Path, home: Path, tmp_path: Path) -> None:
    wanted = codes_of("abcd0123")
    files = {p.name for p in (release / "text_encoder").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not files & {"notes.txt", "pytorch_model.bin"}
    config = json.loads((release / "config.json").read_text())
    text = (release / "config.json").read_text()
    assert config["lm"]["conditioners"]["description"]["text"] == {
        "encoder": "text_encoder",
        "max_length": 5,
        "width": 32,
    }
    assert config["conditioners"] == config["lm"]["conditioners"]
    assert str(t5) not in text and str(home) not in text, "no path of the maker's"
    listed = {name for name in config["hashes"] if name.startswith("text_encoder/")}
    assert listed == {f"text_encoder/{name}" for name in files}
    shutil.rmtree(t5)
    moved = release.rename(tmp_path / "another machine")
    assert torch.equal(codes_of(moved), wanted)
    again = export(str(moved), tmp_path / "again")
    assert torch.equal(codes_of(again), wanted)
    assert json.loads((again / "config.json").read_text())["hashes"] == config["hashes"]
    export(str(moved), again, overwrite=True)


def test_weights_are_those_of_the_run_and_hold_no_encoder(release: Path) -> None:
    import fixtures_models as models

    loaded = load_release(release)
    wanted = models.make_lm(own.own_config("text and sound", encoder=release / "text_encoder")).state_dict()
    found = loaded.lm.state_dict()
    assert isinstance(loaded.lm.condition_provider, ConditionProvider) and not loaded.lm.training
    assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    names = set(weights.read_shapes(release / "model.safetensors"))
    assert {name for name in names if name.startswith("condition_provider.conditioners.description")} == {
        "condition_provider.conditioners.description.projection.weight"
    }


def test_an_encoder_on_the_hub_goes_by_its_id(home: Path, tmp_path: Path, t5: Path) -> None:
    """And is asked for when a text is said, not before."""
    run = own.write_own_run("text and sound", t5)
    from micro_musicgen import checkpoints, references

    path = run / references.CHECKPOINT_NAME
    state = checkpoints.load(path)
    config = yaml.safe_load(state["config"])
    config["conditioners"]["description"]["text"]["encoder"] = "somebody/tiny-t5"
    state["config"] = yaml.safe_dump(config)
    checkpoints.save(state, path)
    out = export("abcd0123", tmp_path / "release")
    assert not (out / "text_encoder").exists()
    config = json.loads((out / "config.json").read_text())
    assert config["lm"]["conditioners"]["description"]["text"]["encoder"] == "somebody/tiny-t5"
    assert codes_of(out, descriptions=None).shape == (2, 4, 5)
    assert describe(out)["conditions.description.encoder"] == "somebody/tiny-t5"


def test_info_says_what_a_model_listens_to(release: Path) -> None:
    facts = describe(release)
    assert facts["conditions.description"] == "text" and facts["conditions.audio_prompt"] == "audio_prompt"
    assert facts["conditions.audio_prompt.duration_s"] == own.SOUND_S and facts["conditioning"] == "cross"
    size = sum((release / name).stat().st_size for name in json.loads((release / "config.json").read_text())["hashes"]
               if name.startswith("text_encoder/"))  # fmt: skip
    assert facts["conditions.description.encoder_megabytes"] == round(size / 1e6, 2)
    json.dumps(facts)


def test_audiocraft_can_not_load_such_a_model(release: Path, tmp_path: Path) -> None:
    with pytest.raises(MicroMusicGenError, match="audiocraft has no conditioner audio_prompt or text.*--format micro"):
        export("abcd0123", tmp_path / "theirs", form="audiocraft")
    assert not (tmp_path / "theirs").exists()


# What is damaged, or somebody else's idea.


def test_damaged_encoders(release: Path) -> None:
    encoder = release / "text_encoder"
    (encoder / "chat.py").write_text("print()")
    with pytest.raises(MicroMusicGenError, match=r"chat.py does not belong to the release; remove it"):
        codes_of(release)
    (encoder / "chat.py").unlink()
    kept = (encoder / "tokenizer.json").read_bytes()
    (encoder / "tokenizer.json").write_bytes(kept + b" ")
    with pytest.raises(MicroMusicGenError, match=r"tokenizer.json is not the file that was released \(its sha256"):
        codes_of(release)
    (encoder / "tokenizer.json").unlink()
    with pytest.raises(MissingFileError, match=r"tokenizer.json is missing; the release is incomplete"):
        codes_of(release)
    (encoder / "tokenizer.json").write_bytes(kept)
    edit_config(release, lambda config: config.update(hashes={}))
    with pytest.raises(MicroMusicGenError, match="config.json lists no files of text_encoder"):
        codes_of(release)


@pytest.mark.parametrize("encoder", ["/etc", "../other", "~/models", "a/b/c", "C:\\models"])
def test_a_release_leads_to_no_place_on_this_machine(release: Path, encoder: str) -> None:
    edit_config(release, lambda config: config["lm"]["conditioners"]["description"]["text"].update(encoder=encoder))
    with pytest.raises(MicroMusicGenError, match="names the text encoder .*; a release holds one or names a Hub id"):
        codes_of(release)


@pytest.mark.parametrize(
    "name", ["text_encoder/../config.json", "text_encoder/a.py", "text_encoder/x/model.safetensors"]
)
def test_only_files_of_encoders_are_listed(release: Path, name: str) -> None:
    edit_config(release, lambda config: config["hashes"].update({name: "0" * 64}))
    with pytest.raises(MicroMusicGenError, match="is no file of a text encoder"):
        codes_of(release)


def test_a_config_of_another_size_costs_no_memory(release: Path) -> None:
    edit_config(release, lambda config: config["lm"]["conditioners"]["audio_prompt"]["audio_prompt"].update(dim=2**40))
    with pytest.raises(MicroMusicGenError, match="does not hold the model that its config describes"):
        codes_of(release)


def test_encoders_that_cannot_be_released(home: Path, tmp_path: Path, t5: Path) -> None:
    own.write_own_run("text", t5)
    (t5 / "model.safetensors").unlink()
    with pytest.raises(MicroMusicGenError, match=r"holds no text encoder with config.json and model.safetensors"):
        export("abcd0123", tmp_path / "out")
    shutil.rmtree(t5)
    with pytest.raises(MissingFileError, match=r"the text encoder .*my encoder of .* is gone; put its folder back"):
        export("abcd0123", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    two = own.own_config("text", encoder=tmp_path)
    two["conditioners"]["other"] = {"model": "text", "text": {"encoder": str(home.parent.parent)}}
    with pytest.raises(MicroMusicGenError, match="listens through 2 text encoders in folders of their own"):
        encoders.released(two, "the model")


# The Hub.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_hub.FakeHub]:
    from huggingface_hub import constants

    with fake_hub.serve() as held:
        monkeypatch.setenv("HF_ENDPOINT", held.address)
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield held


def test_there_and_back(hub: fake_hub.FakeHub, release: Path, tmp_path: Path) -> None:
    push(release, "me/acid")
    held = {str(p.relative_to(release)): p.read_bytes() for p in release.rglob("*") if p.is_file()}
    assert hub.repos["me/acid"] == held
    pulled = pull("me/acid", tmp_path / "pulled")
    assert {str(p.relative_to(pulled)): p.read_bytes() for p in pulled.rglob("*") if p.is_file()} == held
    wanted = codes_of(release)
    assert torch.equal(codes_of(pulled), wanted) and torch.equal(codes_of("me/acid"), wanted)
    (release / "text_encoder" / "config.json").write_text("{}")
    with pytest.raises(MicroMusicGenError, match="is not the file that was released"):
        push(release, "me/other")
    hub.repos["me/spoiled"] = {**held, "text_encoder/config.json": b"{}"}
    with pytest.raises(MicroMusicGenError, match="is not the file that was released"):
        pull("me/spoiled", tmp_path / "spoiled")
    assert not (tmp_path / "spoiled").exists()


def test_a_folder_of_that_name_beside_another_release_stays_at_home(
    hub: fake_hub.FakeHub, home: Path, tmp_path: Path
) -> None:
    import fixtures_models as models

    models.write_models()
    release = export("abcd0123", tmp_path / "plain")
    (release / "text_encoder").mkdir()
    (release / "text_encoder" / "config.json").write_text("{}")
    push(release, "me/plain")
    assert not any("text_encoder" in name for name in hub.repos["me/plain"])
