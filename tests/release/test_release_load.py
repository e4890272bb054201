"""Releases of both forms, and what is said about damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fixtures_models as models
import pytest
import torch

from micro_musicgen import references, storage
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.release.export import export
from micro_musicgen.release.info import describe
from micro_musicgen.release.load import load_release
from micro_musicgen.upstream.packages import write_package


@pytest.fixture
def release(home: Path, tmp_path: Path) -> Path:
    models.write_models()
    return export("abcd0123", tmp_path / "release")


def edit_config(release: Path, **changes: Any) -> None:
    path = release / "config.json"
    storage.write_json(path, {**json.loads(path.read_text()), **changes})


def test_a_run_plays_without_an_export(home: Path) -> None:
    run, _ = models.write_models()
    for reference in ("abcd0123", "jungle", run, run / references.CHECKPOINT_NAME):
        assert load_release(reference).spec.dim == 32


def test_loading_draws_no_random_numbers(release: Path) -> None:
    before = torch.get_rng_state()
    load_release(release)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_text_model_travels_too(home: Path, tmp_path: Path) -> None:
    models.write_codec_run()
    models.write_lm_run(config=models.text_lm_config())
    for form in ("micro", "audiocraft"):
        loaded = load_release(export("abcd0123", tmp_path / form, form=form))
        assert loaded.spec.conditioning == "cross" and loaded.lm.cfg_coef == 3.0
        for name, value in models.make_lm(models.text_lm_config()).state_dict().items():
            assert torch.equal(loaded.lm.state_dict()[name], value), name


def test_training_only_keys_of_audiocraft_are_dropped(home: Path, tmp_path: Path) -> None:
    config = models.text_lm_config()
    config["conditioners"]["args"] = {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5}
    full = {**config, "dataset": {"segment_duration": 1.0}, "sample_rate": 32000, "channels": 1}
    write_package(tmp_path / "state_dict.bin", models.make_lm(models.text_lm_config()).state_dict(), full)
    write_package(
        tmp_path / "compression_state_dict.bin", models.make_codec_model().state_dict(), models.codec_config()
    )
    assert load_release(tmp_path).spec.conditioning == "cross"


def test_a_changed_weight_file(release: Path) -> None:
    path = release / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(MicroMusicGenError, match=r"model.safetensors is not the file that was released \(its sha256"):
        load_release(release)


def test_a_truncated_weight_file(release: Path) -> None:
    path = release / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    edit_config(release, hashes={})
    with pytest.raises(MicroMusicGenError, match=r"model.safetensors is damaged"):
        load_release(release)


@pytest.mark.parametrize("name", ["model.safetensors", "codec.safetensors"])
def test_a_missing_weight_file(release: Path, name: str) -> None:
    (release / name).unlink()
    with pytest.raises(MissingFileError, match=f"{name} is missing; the release is incomplete"):
        load_release(release)


def test_a_config_of_another_size_costs_no_memory(release: Path) -> None:
    """2^40 weights are claimed; were they allocated, this would not end."""
    lm = json.loads((release / "config.json").read_text())["lm"]
    lm["transformer_lm"] |= {"dim": 2**20, "num_heads": 2**10}
    edit_config(release, lm=lm)
    with pytest.raises(MicroMusicGenError, match=r"emb.0.weight is \(65, 32\), expected \(65, 1048576\)"):
        load_release(release)


def test_a_config_of_absurd_depth(release: Path) -> None:
    lm = json.loads((release / "config.json").read_text())["lm"]
    lm["transformer_lm"]["num_layers"] = 10**9
    edit_config(release, lm=lm)
    with pytest.raises(MicroMusicGenError, match="num_layers 1000000000, but there are only"):
        load_release(release)


def test_a_release_from_the_future(release: Path) -> None:
    edit_config(release, version=99)
    with pytest.raises(MicroMusicGenError, match="release version 99 is not readable here; upgrade"):
        load_release(release)


def test_a_codec_of_another_release(release: Path, tmp_path: Path) -> None:
    models.write_codec_run("c0dec001", bins=32)
    codec = references.resolve("c0dec001")
    assert codec.path is not None
    from micro_musicgen.codec.resolve import read_codec
    from micro_musicgen.weights import write_weights

    parts = read_codec("c0dec001")
    write_weights(release / "codec.safetensors", parts.state)
    edit_config(release, codec=parts.config, hashes={})
    with pytest.raises(
        MicroMusicGenError, match=r"does not fit the language model .*: 32 codes per codebook against 64"
    ):
        load_release(release)


def test_a_package_that_holds_code(home: Path, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"best_state": Evil(), "xp.cfg": ""}, tmp_path / "state_dict.bin", pickle_module=pickle)
    with pytest.raises(MicroMusicGenError, match=r"state_dict.bin: the file holds more than weights"):
        load_release(tmp_path)
    assert not (tmp_path / "touched").exists()


def test_a_stereo_package_is_refused(home: Path, tmp_path: Path) -> None:
    full = {**models.lm_config(), "dataset": {"segment_duration": 1.0}, "sample_rate": 32000}
    full["interleave_stereo_codebooks"] = {"use": True}
    write_package(tmp_path / "state_dict.bin", {}, full)
    with pytest.raises(MicroMusicGenError, match="holds a stereo model"):
        load_release(tmp_path)


def test_a_folder_of_something_else(home: Path, tmp_path: Path) -> None:
    storage.write_json(tmp_path / "config.json", {"model_type": "bert"})
    with pytest.raises(MissingFileError, match="holds no language model"):
        load_release(tmp_path)


# What `info` says.


def test_describe_a_run_a_release_and_a_package(release: Path, tmp_path: Path) -> None:
    package = export(str(release), tmp_path / "package", form="audiocraft")
    forms = {"abcd0123": "run", str(release): "micro release", str(package): "audiocraft package"}
    for reference, form in forms.items():
        facts = describe(reference)
        assert facts["kind"] == "language model" and facts["form"] == form
        assert facts["parameters"] == sum(p.numel() for p in models.make_lm().parameters())
        assert facts["embedding_parameters"] + facts["other_parameters"] == facts["parameters"]
        assert facts["codec.parameters"] == sum(p.numel() for p in models.make_codec_model().parameters())
        assert facts["codec.frame_rate"] == 50 and facts["window_s"] == 1.0
        json.dumps(facts)
    assert describe(release)["run.signature"] == "abcd0123"


def test_describe_a_codec(home: Path) -> None:
    run = models.write_codec_run()
    for reference in ("c0dec000", run, run / references.CHECKPOINT_NAME):
        facts = describe(reference)
        assert facts["kind"] == "codec" and facts["card"] == 64 and facts["hop_samples"] == 640


def test_describe_a_model_whose_codec_is_gone(home: Path) -> None:
    models.write_lm_run(codec="//sig/c0dec999")
    assert "c0dec999" in describe("abcd0123")["codec.missing"]


def test_describe_by_data_set_prefers_the_language_model(home: Path) -> None:
    models.write_models()
    assert describe("jungle")["kind"] == "language model"
