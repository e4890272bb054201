import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from micro_musicgen import paths, storage
from micro_musicgen.data import prepare as prepare_module
from micro_musicgen.data.manifest import read_manifest
from micro_musicgen.data.prepare import config_path, prepare
from micro_musicgen.errors import MicroMusicGenError


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six sounds with awkward names, a duplicate, a silent one, and files that are no audio."""
    root = tmp_path / "Schöne Klänge: nr. 1 'laut'"
    rng = np.random.default_rng(0)
    for index, (name, rate, channels) in enumerate(
        [
            ("a.wav", 44_100, 1),
            ("b/ü x.flac", 48_000, 2),
            ("b/c.aiff", 32_000, 1),
            ("B.WAV", 22_050, 1),
            ("d.ogg", 44_100, 2),
            ("e e.mp3", 44_100, 1),
        ]
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, (round(rate * (0.5 + 0.1 * index)), channels)), rate)
    shutil.copy(root / "a.wav", root / "b" / "same as a.wav")
    soundfile.write(root / "nothing.wav", np.zeros(32_000), 32_000)
    (root / "notes.txt").write_text("no audio")
    (root / "._a.wav").write_bytes(b"\0\5\x16\7")
    (root / ".hidden").mkdir()
    shutil.copy(root / "a.wav", root / ".hidden" / "z.wav")
    return root


def everything_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_counts_manifests_and_reasons(home, folder):
    calls = []
    report = prepare(folder, "jungle", valid_fraction=0.2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 8) for n in range(1, 9)]
    assert len(report.train) == 5 and len(report.valid) == 1 and report.num_ignored == 2
    assert {s.path: s.reason for s in report.skipped} == {
        "b/same as a.wav": "the same samples as a.wav; kept once",
        "nothing.wav": "silent: peak -inf dBFS is below -60 dBFS; pass --keep-silence to keep it",
    }
    assert (report.max_sample_rate, report.max_channels) == (48_000, 2)
    assert sum(t.duration for t in report.tracks) == pytest.approx(sum(0.5 + 0.1 * i for i in range(6)), abs=0.01)
    assert read_manifest(home / "egs/jungle/train") == list(report.train)
    assert read_manifest(home / "egs/jungle/valid") == list(report.valid)
    for track in report.tracks:
        assert soundfile.info(track.path).samplerate == track.sample_rate and 0.4 < track.amplitude < 2
    saved = storage.read_json(home / "egs/jungle/prepare.json")
    assert saved == report.to_dict() and saved["hours"] * 3600 == pytest.approx(4.5, abs=0.01)
    text = "\n".join(report.summary_lines())
    assert "jungle: 6 files, 0.1 min (0.001 h)" in text and "train 5 files" in text and "valid 1 file," in text
    assert "nothing.wav: silent" in text and "ignored 2 files" in text and "looped, never padded" in text


def test_options_let_files_pass(home, folder):
    assert not any("silent" in s.reason for s in prepare(folder, "x", keep_silence=True).skipped)
    strict = prepare(folder, "x", min_sample_rate=44_100, min_duration_s=0.55)
    reasons = {s.path: s.reason for s in strict.skipped}
    assert reasons["B.WAV"] == "sample rate 22050 Hz is below 44100 Hz; pass --min-sample-rate 22050 to keep it"
    assert reasons["a.wav"] == "0.500 s is shorter than 0.55 s; pass --min-duration 0.5 to keep it"
    assert "b/same as a.wav" in reasons and "same samples" not in reasons["b/same as a.wav"]


def test_hydra_composes_the_config(home, folder, tmp_path, monkeypatch):
    from hydra import compose, initialize_config_dir

    strange = tmp_path / "Zuhause: ${oc.env:HOME} \"ö\" 'x' # %"
    monkeypatch.setenv("MICRO_MUSICGEN_HOME", str(strange))
    report = prepare(folder, "my-set.v2_1")
    assert config_path("my-set.v2_1").read_text(encoding="utf-8").startswith("# @package _global_\n")
    with initialize_config_dir(str(paths.dset_dir()), version_base=None):
        config = compose("audio/my-set.v2_1")
    egs = (strange / "egs/my-set.v2_1").as_posix()
    assert dict(config.datasource) == {
        "max_sample_rate": 48_000,
        "max_channels": 2,
        "train": f"{egs}/train",
        "valid": f"{egs}/valid",
        "evaluate": f"{egs}/valid",
        "generate": f"{egs}/valid",
    }
    assert read_manifest(config.datasource.train) == list(report.train)


def test_same_folder_updates_and_gives_equal_bytes(home, folder):
    first = prepare(folder, "x", seed=3)
    before = everything_below(home)
    assert prepare(folder, "x", seed=3) == first
    assert everything_below(home) == before
    soundfile.write(folder / "new.wav", np.random.default_rng(9).uniform(-0.5, 0.5, 20_000), 32_000)
    grown = prepare(folder, "x", seed=3)
    assert len(grown.tracks) == 7 and grown.dataset_hash != first.dataset_hash
    assert [p.name for p in (home / "egs").iterdir()] == ["x"]


def test_another_folders_data_set_is_not_replaced_silently(home, folder, tmp_path):
    prepare(folder, "x")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "a.wav", other)
    before = everything_below(home)
    with pytest.raises(MicroMusicGenError, match="data set 'x' exists and was prepared from .*; choose another --name"):
        prepare(other, "x")
    assert everything_below(home) == before
    assert prepare(other, "x", overwrite=True).source == other.as_posix()
    config_path("mine").write_text("datasource: {}\n")
    with pytest.raises(MicroMusicGenError, match="data set 'mine' exists and was not made by prepare"):
        prepare(other, "mine")


def test_failed_or_interrupted_prepare_leaves_the_old_data_set(home, folder, monkeypatch):
    prepare(folder, "x")
    before = everything_below(home)
    with pytest.raises(MicroMusicGenError, match="no file in .* can be used"):
        prepare(folder, "x", min_duration_s=100)
    assert everything_below(home) == before

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(folder, "x", progress=interrupt)
    assert everything_below(home) == before

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, "x")
    assert everything_below(home) == before


def test_killed_between_the_two_renames_is_mended_by_the_next_call(home, folder):
    prepare(folder, "x")
    before = everything_below(home)
    (home / "egs/x").rename(home / "egs/.x.old")
    (home / "egs/.x.new").mkdir()
    with pytest.raises(MicroMusicGenError, match="can be used"):
        prepare(folder, "x", min_duration_s=100)
    assert everything_below(home) == before
    prepare(folder, "x")
    assert [p.name for p in (home / "egs").iterdir()] == ["x"]


def test_clips_that_models_made_are_not_data(folder, monkeypatch):
    home = folder / "micro_runs"
    monkeypatch.setenv("MICRO_MUSICGEN_HOME", str(home))
    clips = home / "xps" / "abc" / "samples"
    clips.mkdir(parents=True)
    soundfile.write(clips / "made.wav", np.random.default_rng(5).uniform(-1, 1, 32_000), 32_000)
    assert len(prepare(folder, "x").tracks) == 6


def test_linked_folders_are_walked_once(home, folder, tmp_path):
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    soundfile.write(outside / "o.wav", np.random.default_rng(5).uniform(-1, 1, 32_000), 32_000)
    (folder / "library").symlink_to(outside, target_is_directory=True)
    report = prepare(folder, "x")
    assert len(report.tracks) == 7
    assert not any("loop/" in track.path for track in report.tracks)


def test_single_file_is_said_to_be_both_splits(home, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    soundfile.write(folder / "one.wav", np.random.default_rng(5).uniform(-1, 1, 32_000), 32_000)
    report = prepare(folder, "x")
    assert report.train == report.valid and len(report.tracks) == 1 and report.to_dict()["hours"] == 1 / 3600
    assert any("both train and valid" in line for line in report.summary_lines())


def test_hash_knows_samples_and_not_files(home, tmp_path):
    wav = (np.random.default_rng(5).integers(-9000, 9000, (70_000, 2)) / 32_768).astype(np.float32)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", wav, 32_000, subtype="PCM_16")
    soundfile.write(tmp_path / "in" / "b.flac", wav, 32_000, subtype="PCM_16")
    soundfile.write(tmp_path / "in" / "c.wav", wav, 44_100, subtype="PCM_16")
    report = prepare(tmp_path / "in", "x")
    assert [s.path for s in report.skipped] == ["b.flac"] and len(report.tracks) == 2


def test_manifests_are_plain_json_lines(home, folder):
    prepare(folder, "x")
    lines = gzip.decompress((home / "egs/x/train/data.jsonl.gz").read_bytes()).decode().splitlines()
    assert all(Path(json.loads(line)["path"]).is_file() for line in lines)
