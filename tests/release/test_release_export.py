"""A run becomes a folder that plays the same, in every form; nothing that exists is lost on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fixtures_models as models
import pytest
import torch
from torch import nn

from micro_musicgen import checkpoints, references, storage
from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.contracts import ReleaseConfig
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.release.export import export
from micro_musicgen.release.load import load_release
from micro_musicgen.upstream import audiocraft_module


def random_codes(frames: int = 20) -> torch.Tensor:
    return torch.randint(models.CARD, (2, models.NUM_CODEBOOKS, frames), generator=torch.Generator().manual_seed(1))


def logits_of(lm: nn.Module, codes: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output: Any = lm.compute_predictions(codes, [], condition_tensors={})
    return output.logits[output.mask]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_release_holds_the_best_weights_of_its_run(home: Path, tmp_path: Path) -> None:
    models.write_models()
    out = export("abcd0123", tmp_path / "out")
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "codec.safetensors",
        "config.json",
        "model.safetensors",
    ]
    loaded = load_release(out)
    for name, value in models.make_lm().state_dict().items():
        assert torch.equal(loaded.lm.state_dict()[name], value), name
    assert loaded.codec.content_hash == load_codec("c0dec000").content_hash
    assert loaded.window_s == models.WINDOW_S and loaded.name == "out" and not loaded.lm.training


def test_all_doors_open_to_the_same_logits(home: Path, tmp_path: Path) -> None:
    """The run, our release, audiocraft's package through us, and audiocraft itself: to 1e-5 (here: exactly)."""
    models.write_models()
    ours, theirs = export("jungle", tmp_path / "ours"), export("jungle", tmp_path / "theirs", form="audiocraft")
    upstream = audiocraft_module("models").MusicGen.get_pretrained(str(theirs), device="cpu")
    codes = random_codes()
    wanted = logits_of(models.make_lm(), codes)
    assert wanted.isfinite().all()
    for lm in (load_release("abcd0123").lm, load_release(ours).lm, load_release(theirs).lm, upstream.lm):
        torch.testing.assert_close(logits_of(lm, codes), wanted, atol=1e-5, rtol=0)
    wav = torch.randn(1, 1, 3200, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs_codes, _ = upstream.compression_model.encode(wav)
        theirs_wav = upstream.compression_model.decode(theirs_codes)
    codec = load_release(ours).codec
    assert torch.equal(codec.encode(wav), theirs_codes) and len(theirs_codes.unique()) > 3
    torch.testing.assert_close(codec.decode(theirs_codes), theirs_wav, atol=1e-5, rtol=0)


def test_audiocraft_plays_our_package(home: Path, tmp_path: Path) -> None:
    models.write_models()
    folder = export("abcd0123", tmp_path / "out", form="audiocraft")
    model = audiocraft_module("models").MusicGen.get_pretrained(str(folder), device="cpu")
    model.set_generation_params(duration=0.2, top_k=8, extend_stride=0.1)
    wav, codes = model.generate_unconditional(2, return_tokens=True)
    assert wav.shape == (2, 1, 6400) and codes.shape == (2, 4, 10)
    assert model.max_duration == models.WINDOW_S and model.sample_rate == 32000


def test_greedy_codes_are_those_of_audiocraft(home: Path, tmp_path: Path) -> None:
    models.write_models()
    folder = export("abcd0123", tmp_path / "out", form="audiocraft")
    upstream = audiocraft_module("models").MusicGen.get_pretrained(str(folder), device="cpu")
    wanted = upstream.lm.generate(num_samples=2, max_gen_len=12, use_sampling=False)
    ours = MicroMusicGen.get_pretrained(folder, device="cpu", precision="fp32")
    ours.set_generation_params(use_sampling=False, duration=12 / 50)
    assert torch.equal(ours.codes(2), wanted)


def test_a_package_is_read_by_torch_without_unpickling(home: Path, tmp_path: Path) -> None:
    models.write_models()
    folder = export("abcd0123", tmp_path / "out", form="audiocraft")
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        package = torch.load(folder / name, weights_only=True)
        assert set(package) == {"best_state", "xp.cfg", "version", "exported"} and package["exported"]


def test_forms_convert_into_each_other(home: Path, tmp_path: Path) -> None:
    models.write_models()
    first = export("abcd0123", tmp_path / "first")
    package = export(str(first), tmp_path / "package", form="audiocraft")
    back = export(str(package), tmp_path / "back")
    assert storage.file_hash(back / "model.safetensors") == storage.file_hash(first / "model.safetensors")
    assert storage.file_hash(back / "codec.safetensors") == storage.file_hash(first / "codec.safetensors")
    assert load_release(back).codec.content_hash == load_release(first).codec.content_hash
    kept = [json.loads((folder / "config.json").read_text())["provenance"] for folder in (first, back)]
    assert kept[0] == kept[1]


def test_exporting_twice_gives_the_same_bytes(home: Path, tmp_path: Path) -> None:
    models.write_models()
    first, second = (export("abcd0123", tmp_path / place / "x") for place in ("a", "b"))
    assert tree(first) == tree(second)


def test_config_and_provenance(home: Path, tmp_path: Path) -> None:
    models.write_models()
    out = export("abcd0123", tmp_path / "out", name="Jungle, nano")
    text = (out / "config.json").read_text()
    assert str(home) not in text and "/music/" not in text, "no path of the maker's"
    config = ReleaseConfig.from_dict(json.loads(text))
    assert config.name == "Jungle, nano" and config.sample_rate == 32000 and config.codec_reference is None
    assert config.hashes == {n: storage.file_hash(out / n) for n in ("model.safetensors", "codec.safetensors")}
    run, sounds = config.provenance["run"], config.provenance["sounds"]
    assert run["signature"] == "abcd0123" and run["updates"] == 7 and run["seed"] == 2036
    assert sounds["name"] == "jungle" and sounds["hash"]
    amount = {"files": 2, "hours": 0.0194}
    assert sounds["train"] == {**amount, "licenses": {"unknown": amount}, "sources": {"unknown": amount}}
    assert config.provenance["codec"] == {"signature": "c0dec000", "from_scratch": True}
    assert "trained from scratch by the maker" in (out / "README.md").read_text()
    again = export(str(out), tmp_path / "again")
    assert "trained from scratch by the maker" in (again / "README.md").read_text()
    made = config.provenance["exported_with"]
    assert made["packages"]["audiocraft"] == "1.3.0" and made["patches"]["delete_param"] in ("applied", "waiting")


def test_a_pretrained_codec_goes_by_name(home: Path, tmp_path: Path) -> None:
    models.write_lm_run(codec="//pretrained/facebook/encodec_32khz", config=models.lm_config(card=2048))
    ours = export("abcd0123", tmp_path / "ours")
    assert sorted(p.name for p in ours.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((ours / "config.json").read_text())["codec_reference"] == "facebook/encodec_32khz"
    theirs = export("abcd0123", tmp_path / "theirs", form="audiocraft")
    package = torch.load(theirs / "compression_state_dict.bin", weights_only=True)
    assert package["pretrained"] == "facebook/encodec_32khz" and package["exported"]
    assert "CC-BY-NC-4.0" in (ours / "README.md").read_text()


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_release_can_be_read_by_others(home: Path, tmp_path: Path) -> None:
    models.write_models()
    modes = {path.stat().st_mode & 0o777 for path in export("abcd0123", tmp_path / "out").iterdir()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}


def test_tensors_that_share_memory_and_scalars_are_stored(tmp_path: Path) -> None:
    from micro_musicgen.weights import read_shapes, read_weights, write_weights

    base = torch.arange(6.0).view(2, 3)
    state = {"a": base, "b": base, "row": base[1], "transposed": base.t(), "scalar": torch.tensor(3.0)}
    write_weights(tmp_path / "x.safetensors", state)
    found = read_weights(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert read_shapes(tmp_path / "x.safetensors")["scalar"] == ()


# What exists stays.


def test_another_folder_is_left_alone(home: Path, tmp_path: Path) -> None:
    models.write_models()
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(MicroMusicGenError, match="is not empty and is no release"):
            export("abcd0123", tmp_path, overwrite=overwrite)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_release_is_replaced_only_when_told(home: Path, tmp_path: Path) -> None:
    models.write_models()
    out = export("abcd0123", tmp_path / "out")
    before = tree(out)
    with pytest.raises(MicroMusicGenError, match="already holds a release; .* --overwrite"):
        export("abcd0123", out, form="audiocraft")
    assert tree(out) == before
    export("abcd0123", out, form="audiocraft", overwrite=True)
    assert not (out / "config.json").exists() and (out / "state_dict.bin").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_failed_export_leaves_the_old_release(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.write_models()
    out = export("abcd0123", tmp_path / "out")
    before = tree(out)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("micro_musicgen.release.export.render_card", full)
    with pytest.raises(OSError, match="no space"):
        export("abcd0123", out, overwrite=True)
    assert tree(out) == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_empty_folder_and_odd_names_are_fine(home: Path, tmp_path: Path) -> None:
    models.write_models()
    out = tmp_path / "Träume & Töne" / "mein Modell"
    out.mkdir(parents=True)
    assert load_release(export("abcd0123", out)).name == "mein Modell"


def test_a_read_only_place(home: Path, tmp_path: Path) -> None:
    models.write_models()
    if os.name != "posix":
        pytest.skip("needs a file system without writing")
    with pytest.raises(MicroMusicGenError, match="cannot write to .*; choose a folder that you can write to"):
        export("abcd0123", "/proc/release")


# What cannot be exported.


def test_unknown_form(home: Path, tmp_path: Path) -> None:
    with pytest.raises(MicroMusicGenError, match="unknown release form 'onnx'; known: audiocraft, micro"):
        export("abcd0123", tmp_path / "out", form="onnx")


def test_unknown_run(home: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="'nothing' is no file, run signature"):
        export("nothing", tmp_path / "out")


def test_a_codec_is_no_language_model(home: Path, tmp_path: Path) -> None:
    models.write_codec_run()
    with pytest.raises(MicroMusicGenError, match="solver=compression, no language model"):
        export("c0dec000", tmp_path / "out")


def test_a_codec_that_does_not_fit(home: Path, tmp_path: Path) -> None:
    models.write_codec_run("c0dec001", bins=32, n_q=2)
    models.write_lm_run(codec="//sig/c0dec001")
    with pytest.raises(
        MicroMusicGenError, match=r"codec .*c0dec001.* does not fit .*abcd0123.*2 codebooks against 4, 32 codes.*64"
    ):
        export("abcd0123", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_codec_that_is_gone(home: Path, tmp_path: Path) -> None:
    models.write_lm_run(codec="//sig/c0dec999")
    with pytest.raises(MissingFileError, match="run c0dec999 has no checkpoint"):
        export("abcd0123", tmp_path / "out")


def test_a_licence_that_is_none(home: Path, tmp_path: Path) -> None:
    with pytest.raises(MicroMusicGenError, match="is no licence id"):
        export("abcd0123", tmp_path / "out", license_id="do: what you like")


def test_a_truncated_checkpoint(home: Path, tmp_path: Path) -> None:
    run, _ = models.write_models()
    path = run / references.CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(MicroMusicGenError, match="damaged or not ours"):
        export("abcd0123", tmp_path / "out")


def test_weights_of_another_model(home: Path, tmp_path: Path) -> None:
    run, _ = models.write_models()
    path = run / references.CHECKPOINT_NAME
    state = checkpoints.load(path)
    state["config"] = state["config"].replace("dim: 32", "dim: 64")
    checkpoints.save(state, path)
    with pytest.raises(MicroMusicGenError, match=r"does not hold the model that its config describes: emb.0.weight"):
        export("abcd0123", tmp_path / "out")
