"""`micro-musicgen tokens`: what it does, says and refuses."""

import json
from pathlib import Path

import pytest
import typer
from token_oracle import BlockCodec, level_steps
from typer.testing import CliRunner

from micro_musicgen import paths
from micro_musicgen.codec import resolve
from micro_musicgen.commands.tokens import tokens
from micro_musicgen.data.manifest import write_manifest
from micro_musicgen.data.tokens import TokenSettings, open_token_store, store_folder, store_key
from micro_musicgen.errors import MicroMusicGenError, MissingFileError


@pytest.fixture
def tracks(home, make_track):
    split = {
        "train": [make_track(f"{n}.wav", level_steps(60, n)) for n in range(3)],
        "valid": [make_track("v.wav", level_steps(60, 9))],
    }
    for half, chosen in split.items():
        write_manifest(paths.manifests_dir("set") / half, chosen)
    return split


@pytest.fixture
def codec(monkeypatch):
    codec = BlockCodec()
    monkeypatch.setattr(resolve, "load_codec", lambda reference, device="cpu": codec)
    return codec


def run(*arguments: str, exit_code: int = 0) -> str:
    """Runs the command as `cli` registers it, for lines; an error of the project comes through."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(tokens)
    found = CliRunner().invoke(app, ["set", "--codec", "x", "--segment", "1", "--device", "cpu", *arguments])
    if isinstance(found.exception, MicroMusicGenError):
        raise found.exception
    assert found.exit_code == exit_code, found.output
    return found.stdout


def folder(tracks, half: str) -> Path:
    return store_folder("set", half, store_key("block", tracks[half], TokenSettings(1.0)))


def test_builds_what_train_looks_for_and_says_what_comes_next(tracks, codec):
    said = run()
    assert len(open_token_store(folder(tracks, "train")).tracks) == 3
    assert len(open_token_store(folder(tracks, "valid")).tracks) == 1
    assert "train 3 files: 0 encoded before, 3 to encode" in said and str(folder(tracks, "valid")) in said
    assert said.splitlines()[-1] == "next: micro-musicgen train set --codec x"
    calls = codec.calls
    assert "all encoded before" in run() and codec.calls == calls == 4


def test_one_split_and_a_dry_run(tracks, codec):
    found = json.loads(run("--dry-run", "--json"))
    assert [s["num_encoded"] for s in found["splits"]] == [3, 1] and found["splits"][0]["encoded_s"] == 3.6
    assert codec.calls == 0 and not paths.tokens_dir().exists()
    found = json.loads(run("--split", "valid", "--json"))
    assert [s["split"] for s in found["splits"]] == ["valid"] and found["splits"][0]["bytes"] == 60 * 2 * 2
    assert codec.calls == 1 and not folder(tracks, "train").exists()


def test_added_files_alone_are_encoded(tracks, codec, make_track):
    run()
    write_manifest(paths.manifests_dir("set") / "train", [*tracks["train"], make_track("new.wav", level_steps(60, 50))])
    assert "train 4 files: 3 encoded before, 1 to encode" in run() and codec.calls == 5


def test_verify_and_repair(tracks, codec):
    run()
    assert "are sound" in run("--verify")
    shard = folder(tracks, "train") / "shard-00000.bin"
    good = shard.read_bytes()
    shard.write_bytes(good[:-2])
    said = run("--verify", exit_code=1)
    assert "train shard-00000.bin: 718 bytes, the index says 720" in said and "train track 2: its shard ends" in said
    found = json.loads(run("--verify", "--json", "--sample", "1", exit_code=1))
    assert found["splits"][0]["num_damaged"] == 1 and found["splits"][0]["equal_shares"] == {"0": 1.0}
    assert "718 bytes" in run("--repair", "--dry-run", exit_code=1)
    assert shard.read_bytes() != good
    assert "train repaired: " in run("--repair") and shard.read_bytes() == good
    assert "are sound" in run("--verify") and "nothing to repair" in run("--repair")


def test_what_is_refused(tracks, codec):
    with pytest.raises(MissingFileError, match="holds no token store"):
        run("--verify")
    with pytest.raises(MicroMusicGenError, match="workers 0 must be 1 or more"):
        run("--workers", "0")
    with pytest.raises(MicroMusicGenError, match="overlap 9 s does not suit windows of 2 s"):
        run("--window", "2", "--overlap", "9")
    assert codec.calls == 0
    (paths.manifests_dir("set") / "train/data.jsonl.gz").unlink()
    with pytest.raises(MissingFileError, match="run micro-musicgen prepare"):
        run()
