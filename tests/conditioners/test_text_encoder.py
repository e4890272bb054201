"""Frozen text encoders, on a tiny T5 in the real format."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch

from micro_musicgen import hub_client
from micro_musicgen.conditioners import text_encoder
from micro_musicgen.conditioners.text_encoder import open_text_encoder
from micro_musicgen.errors import MicroMusicGenError, MissingExtraError, MissingFileError

pytest.importorskip("transformers")
WORDS = ("a", "fast", "slow", "techno", "beat", "piano")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.make_tiny_t5(tmp_path_factory.mktemp("t5") / "tiny", WORDS, dim=16, num_layers=1)


def test_features_are_what_transformers_gives(t5: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    model, tokenizer = T5EncoderModel.from_pretrained(t5).eval(), AutoTokenizer.from_pretrained(t5)
    encoder = open_text_encoder(str(t5))
    with torch.no_grad():
        expected = model(**tokenizer(["a fast techno beat"], return_tensors="pt")).last_hidden_state[0]
    found = encoder.encode("a fast techno beat", 64)
    assert found.shape == (5, 16) and encoder.width == 16  # four words and the end
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_the_order_and_choice_of_words_matter(t5: Path) -> None:
    encoder = open_text_encoder(str(t5))
    one, two, three = (encoder.encode(text, 8) for text in ("fast techno", "slow techno", "techno fast"))
    assert (one - two).abs().max() > 0.1 and (one - three).abs().max() > 0.1


def test_a_long_text_is_cut_with_one_warning(t5: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    encoder = open_text_encoder(str(tiny_text.make_tiny_t5(tmp_path / "t5", WORDS, dim=8, num_layers=1)))
    with caplog.at_level(logging.WARNING):
        long = encoder.encode("techno " * 10_000, 6)
        encoder.encode("beat " * 10_000, 6)
    (record,) = [r for r in caplog.records if r.name == text_encoder.__name__]
    assert "10001 tokens" in record.getMessage() and "cut to the 6" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert torch.equal(long, encoder.encode("techno " * 5, 6)), "the end of the text is kept"


def test_one_encoder_is_shared_frozen_and_never_copied(t5: Path) -> None:
    encoder = open_text_encoder(str(t5))
    assert open_text_encoder(str(t5)) is encoder
    assert copy.deepcopy({"held": encoder})["held"] is encoder
    encoder.encode("a beat", 8)
    _, model = encoder._loaded()
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_its_hash_tells_weights_apart_and_not_places(t5: Path, tmp_path: Path) -> None:
    same = tiny_text.make_tiny_t5(tmp_path / "same", WORDS, dim=16, num_layers=1)
    other = tiny_text.make_tiny_t5(tmp_path / "other", WORDS, dim=16, num_layers=1, seed=1)
    hashes = [open_text_encoder(str(folder)).content_hash for folder in (t5, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_relative_path_is_looked_up_in_the_release_first(t5: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_text_encoder(t5.name, t5.parent).folder == t5.resolve()
    with pytest.raises(MissingFileError, match=r"no folder '\./tiny'"):
        open_text_encoder("./tiny")
    with pytest.raises(MissingFileError, match="no folder ''"):
        open_text_encoder("", t5)


def test_an_unreachable_id_says_what_to_fetch_and_how_to_pass_it(monkeypatch: Any) -> None:
    def fail(*args: Any, **kwargs: Any) -> Path:
        raise MicroMusicGenError("cannot reach the Hub for t5-base (no network)")

    monkeypatch.setattr(hub_client, "download_folder", fail)
    with pytest.raises(MicroMusicGenError) as caught:
        open_text_encoder("t5-base")
    said = str(caught.value)
    assert "config.json, model.safetensors" in said and "of t5-base" in said and "\n" not in said
    assert "conditioners.description.text.encoder=/path/to/folder" in said


def test_a_hub_id_is_fetched_in_two_steps(t5: Path, monkeypatch: Any) -> None:
    """The config when a model is built, the rest when a text is encoded."""
    asked: list[tuple[str, ...]] = []

    def download(name: str, patterns: tuple[str, ...]) -> Path:
        asked.append(tuple(patterns))
        return t5

    monkeypatch.setattr(hub_client, "download_folder", download)
    encoder = open_text_encoder("somebody/t5-tiny")
    assert asked == [("config.json",)] and encoder.width == 16
    assert encoder.encode("techno", 8).shape == (2, 16)


def _copy(t5: Path, folder: Path, *leave_out: str) -> Path:
    folder.mkdir()
    for path in t5.iterdir():
        if path.name not in leave_out:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_folders_that_do_not_serve(t5: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MicroMusicGenError, match="no T5 text encoder but something else"):
        open_text_encoder(str(tmp_path / "empty"))
    other = _copy(t5, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"model_type": "bert", "d_model": 8}), encoding="utf-8")
    with pytest.raises(MicroMusicGenError, match="no T5 text encoder but bert"):
        open_text_encoder(str(other))
    pickled = _copy(t5, tmp_path / "pickled", "model.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"a pickle that must never be opened")
    with pytest.raises(MicroMusicGenError, match="pickled weights are not read"):
        open_text_encoder(str(pickled)).encode("techno", 8)
    wordless = _copy(t5, tmp_path / "wordless", "tokenizer.json")
    with pytest.raises(MicroMusicGenError, match=r"tokenizer"):
        open_text_encoder(str(wordless)).encode("techno", 8)
    cut = _copy(t5, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((t5 / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(MicroMusicGenError, match="cannot be loaded") as caught:
        open_text_encoder(str(cut)).encode("techno", 8)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_made_up(t5: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    holed = _copy(t5, tmp_path / "holed")
    state = load_file(holed / "model.safetensors")
    name = next(key for key in state if "SelfAttention.q" in key)
    del state[name]
    save_file(state, holed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MicroMusicGenError, match=r"lacks 1 of its weights, .*SelfAttention\.q"):
        open_text_encoder(str(holed)).encode("techno", 8)


def test_without_transformers_the_extra_is_named(t5: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(text_encoder, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'micro-musicgen\[text\]'"):
        open_text_encoder(str(t5))
