"""One name, one meaning: what wins when several things could be meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from micro_musicgen import paths, references, storage
from micro_musicgen.errors import MissingFileError
from micro_musicgen.references import newest_run, resolve


def make_run(signature: str, *, dataset: str = "jungle", solver: str = "musicgen", age_s: float = 0.0) -> Path:
    folder = paths.xp_dir(signature)
    storage.write_json(folder / "summary.json", {"dataset": dataset, "solver": solver})
    checkpoint = folder / references.CHECKPOINT_NAME
    checkpoint.write_bytes(b"")
    os.utime(checkpoint, (1e9 - age_s, 1e9 - age_s))
    return folder


def test_signatures(home: Path) -> None:
    run = make_run("abcd0123")
    for text in ("abcd0123", "//sig/abcd0123"):
        found = resolve(text)
        assert (found.kind, found.path, found.text) == ("run", run, text)
    with pytest.raises(MissingFileError, match=r"run 00000000 has no checkpoint in .*00000000; train it, or name"):
        resolve("//sig/00000000")


def test_a_data_sets_newest_run(home: Path) -> None:
    make_run("aaaaaaaa", age_s=100)
    newer = make_run("bbbbbbbb", age_s=50)
    codec = make_run("cccccccc", solver="compression")
    make_run("dddddddd", dataset="acid")
    assert resolve("jungle", solver="musicgen").path == newer
    assert resolve("jungle").path == codec
    assert newest_run("nothing") is None
    (newer / references.CHECKPOINT_NAME).unlink()
    (codec / "summary.json").write_text("{")
    assert resolve("jungle").path == paths.xp_dir("aaaaaaaa"), "runs without a checkpoint or a summary don't count"


def test_a_local_path_wins(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run("abcd0123", dataset="jungle")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jungle").mkdir()
    storage.write_json(tmp_path / "jungle" / "config.json", {})
    (tmp_path / "user" / "name").mkdir(parents=True)
    (tmp_path / "user" / "name" / "state_dict.bin").touch()
    for text in ("jungle", "user/name"):
        assert (resolve(text).kind, resolve(text).path) == ("release", tmp_path / text)
    (tmp_path / "abcd0123").write_bytes(b"")
    assert resolve("abcd0123").kind == "checkpoint"


def test_folders_and_files(home: Path, tmp_path: Path) -> None:
    run = make_run("abcd0123")
    assert resolve(run).kind == "run"
    assert resolve(run / references.CHECKPOINT_NAME).kind == "checkpoint"
    empty = tmp_path / "Träume und Töne"
    empty.mkdir()
    with pytest.raises(MissingFileError, match=r"Träume und Töne holds no release \(config.json\) and no run"):
        resolve(empty)


def test_the_hub_comes_last(home: Path) -> None:
    for text, hub_id in (("user/name", "user/name"), ("//pretrained/facebook/encodec_32khz", "facebook/encodec_32khz")):
        found = resolve(text)
        assert (found.kind, found.hub_id, found.path) == ("hub", hub_id, None)
        with pytest.raises(AssertionError, match="on the Hub"):
            found.local_path()


@pytest.mark.parametrize("text", ["nothing", "./user/name", "a/b/c", "", "/no/such/place", "//else/x"])
def test_nothing_of_that_name(home: Path, text: str) -> None:
    with pytest.raises(MissingFileError) as caught:
        resolve(text)
    assert "\n" not in str(caught.value)
