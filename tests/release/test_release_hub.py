"""Push and pull with the real huggingface_hub against a Hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fake_hub
import fixtures_models as models
import pytest
import torch

from micro_musicgen import MicroMusicGen
from micro_musicgen.codec.resolve import load_codec, read_codec
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.release.export import export
from micro_musicgen.release.hub import pull, push
from micro_musicgen.release.load import load_release


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_hub.FakeHub]:
    from huggingface_hub import constants

    with fake_hub.serve() as held:
        monkeypatch.setenv("HF_ENDPOINT", held.address)
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        # The client reads its cache folder once, when it is imported.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield held


@pytest.fixture
def release(home: Path, tmp_path: Path) -> Path:
    models.write_models()
    return export("abcd0123", tmp_path / "release")


def test_there_and_back(hub: fake_hub.FakeHub, release: Path, tmp_path: Path) -> None:
    url = push(release, "me/jungle", private=True)
    assert url.endswith("me/jungle") and hub.private["me/jungle"] and hub.commits == ["Release release"]
    assert hub.repos["me/jungle"] == {path.name: path.read_bytes() for path in release.iterdir()}
    out = pull("me/jungle", tmp_path / "pulled")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == hub.repos["me/jungle"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert load_release(out).codec.content_hash == load_codec("c0dec000").content_hash


def test_pushing_again_replaces_the_files(hub: fake_hub.FakeHub, release: Path, tmp_path: Path) -> None:
    push(release, "me/jungle")
    push(export("abcd0123", tmp_path / "new", name="new"), "me/jungle")
    assert b'"name": "new"' in hub.repos["me/jungle"]["config.json"] and len(hub.commits) == 2


def test_only_a_releases_files_go_up(hub: fake_hub.FakeHub, release: Path) -> None:
    (release / "diary.txt").write_text("private")
    (release / "clips").mkdir()
    (release / "clips" / "a.wav").write_bytes(b"x")
    push(release, "me/jungle")
    assert sorted(hub.repos["me/jungle"]) == ["README.md", "codec.safetensors", "config.json", "model.safetensors"]


@pytest.mark.parametrize("form", ["micro", "audiocraft"])
def test_a_hub_id_plays(hub: fake_hub.FakeHub, release: Path, tmp_path: Path, form: str) -> None:
    push(export(str(release), tmp_path / form, form=form), "me/jungle")
    model = MicroMusicGen.get_pretrained("me/jungle", device="cpu")
    model.set_generation_params(duration=0.1, seed=0)
    assert model.generate_unconditional(1).shape == (1, 1, 3200)
    assert load_codec("//pretrained/me/jungle").content_hash == load_codec("c0dec000").content_hash
    assert load_codec("me/jungle").content_hash == load_codec("c0dec000").content_hash


def test_ours_is_taken_from_a_repository_that_holds_both_forms(
    hub: fake_hub.FakeHub, release: Path, tmp_path: Path
) -> None:
    push(release, "me/jungle")
    push(export(str(release), tmp_path / "package", form="audiocraft"), "me/jungle")
    assert load_release("me/jungle").source.endswith("model.safetensors")
    assert not any("state_dict.bin" in line for line in hub.seen if "resolve" in line)


def test_somebody_elses_encodec_goes_by_name(hub: fake_hub.FakeHub) -> None:
    hub.repos["some/encodec"] = {"config.json": b'{"model_type": "encodec"}'}
    assert read_codec("some/encodec").pretrained == "some/encodec"


# What goes wrong.


def test_unknown_repository(hub: fake_hub.FakeHub, home: Path, tmp_path: Path) -> None:
    for attempt in (lambda: pull("me/nothing", tmp_path / "out"), lambda: load_release("me/nothing"),
                    lambda: load_codec("me/nothing")):  # fmt: skip
        with pytest.raises(MissingFileError, match="there is no me/nothing on the Hub, or it is private"):
            attempt()
    assert not (tmp_path / "out").exists()


def test_a_repository_without_a_release(hub: fake_hub.FakeHub, home: Path, tmp_path: Path) -> None:
    hub.repos["me/notes"] = {"README.md": b"hello"}
    with pytest.raises(MissingFileError, match="me/notes on the Hub holds no release"):
        pull("me/notes", tmp_path / "out")
    with pytest.raises(MissingFileError, match="me/notes on the Hub holds no release"):
        load_release("me/notes")
    with pytest.raises(MicroMusicGenError, match="me/notes on the Hub holds no codec"):
        load_codec("me/notes")


def test_no_token(hub: fake_hub.FakeHub, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(MicroMusicGenError, match=r"does not let you at me/jungle; run: hf auth login"):
        push(release, "me/jungle")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(MicroMusicGenError, match=r"does not let you at me/jungle; run: hf auth login"):
        push(release, "me/jungle")


def test_no_network(hub: fake_hub.FakeHub, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for attempt in (lambda: pull("me/jungle", tmp_path / "out"), lambda: push(release, "me/jungle"),
                    lambda: load_release("me/jungle")):  # fmt: skip
        with pytest.raises(MicroMusicGenError, match=r"cannot reach http://127.0.0.1:9 for me/jungle \("):
            attempt()


def test_a_bad_id(hub: fake_hub.FakeHub, release: Path, tmp_path: Path) -> None:
    for attempt in (lambda: pull("not an id", tmp_path / "out"), lambda: push(release, "a/b/c")):
        with pytest.raises(MicroMusicGenError, match=r"is not a Hub id; write USER/NAME"):
            attempt()


def test_a_folder_that_is_taken(hub: fake_hub.FakeHub, release: Path, tmp_path: Path) -> None:
    push(release, "me/jungle")
    before = {p.name: p.read_bytes() for p in release.iterdir()}
    with pytest.raises(MicroMusicGenError, match="is not empty; name another folder to pull me/jungle to"):
        pull("me/jungle", release)
    assert {p.name: p.read_bytes() for p in release.iterdir()} == before


def test_a_damaged_release_is_neither_pushed_nor_kept(hub: fake_hub.FakeHub, release: Path, tmp_path: Path) -> None:
    push(release, "me/jungle")
    hub.repos["me/jungle"]["model.safetensors"] = b"x" * 100
    with pytest.raises(MicroMusicGenError, match="is not the file that was released"):
        pull("me/jungle", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (release / "model.safetensors").write_bytes(b"x")
    with pytest.raises(MicroMusicGenError, match="is not the file that was released"):
        push(release, "me/other")
    assert "me/other" not in hub.repos


def test_what_is_no_release_is_not_pushed(hub: fake_hub.FakeHub, home: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="holds no release; make one: micro-musicgen export RUN"):
        push(tmp_path, "me/jungle")
    with pytest.raises(MissingFileError, match="is no folder; export a run first"):
        push(tmp_path / "nothing", "me/jungle")
    torch.save({}, tmp_path / "other.bin")
    assert hub.seen == []
