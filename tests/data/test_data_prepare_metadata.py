"""`prepare` with metadata: what reaches manifest, report and filters; and docs/descriptions.md, run as written."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from micro_musicgen import cli, storage
from micro_musicgen.data.descriptions import Descriptions, Templates
from micro_musicgen.data.filters import Filters
from micro_musicgen.data.manifest import Track, dataset_hash, read_manifest, write_manifest
from micro_musicgen.data.prepare import prepare
from micro_musicgen.errors import MicroMusicGenError

DOCS = Path(__file__).parents[2] / "docs" / "descriptions.md"
INFO = {"description": "A fast break", "genre": "jungle", "bpm": 170.0, "moods": ["wild"], "license": "cc0-1.0"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """The three files that the docs are about."""
    root = tmp_path / "sounds"
    for seed, name in enumerate(("amen_01.wav", "pads/dark_pad_90bpm_Cmin.wav", "rain.flac")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, np.random.default_rng(seed).uniform(-0.5, 0.5, 16_000), 32_000)
    return root


@pytest.fixture
def call(monkeypatch, capfd, home):
    """Runs the command in this process; gives exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["micro-musicgen", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.run()
        return int(stop.value.code or 0), *capfd.readouterr()

    return run


def documented() -> dict[str, str]:
    """Gives the example files of the docs by name."""
    return dict(re.findall(r"`([\w.]+\.\w+)`:\n\n```(?:csv|json)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S))


def infos(tracks) -> dict[str, dict]:
    return {Path(track.path).name: track.info or {} for track in tracks}


def test_the_examples_of_the_docs(home, folder, tmp_path) -> None:
    examples = documented()
    assert sorted(examples) == ["amen_01.json", "by_file.json", "lines.jsonl", "sounds.csv", "sounds.json"]
    found = {}
    for name in ("sounds.csv", "sounds.json", "by_file.json", "lines.jsonl"):
        (tmp_path / name).write_text(examples[name], encoding="utf-8")
        report = prepare(folder, "x", metadata=tmp_path / name)
        assert report.coverage.table.num_matched == 2 and not report.coverage.notes
        found[name] = infos(report.tracks)
    amen = {"genre": "jungle", "moods": ["wild", "raw"], "bpm": 170.0, "license": "cc0-1.0"}
    pad = {"bpm": 90.0, "key": "C minor"}
    rain = {"description": "Rain on a tin roof."}
    assert found["sounds.csv"] == {
        "amen_01.wav": {"description": "A fast break, chopped up", **amen, "source": "https://freesound.org/s/1"},
        "dark_pad_90bpm_Cmin.wav": {
            **{"description": "A dark synth pad", "genre": "ambient", "moods": ["dark"], **pad},
            **{"license": "cc-by-4.0", "source": "my own"},
        },
        "rain.flac": {"keywords": ["rain"]},
    }
    named = {**pad, "keywords": ["dark", "pad"]}
    assert found["sounds.json"] == {
        "amen_01.wav": amen,
        "dark_pad_90bpm_Cmin.wav": named,
        "rain.flac": {**rain, "license": "cc0-1.0"},
    }
    assert found["by_file.json"]["amen_01.wav"] == {"genre": "jungle", "instrument": "drums", "bpm": 170.0}
    assert found["by_file.json"]["rain.flac"] == found["lines.jsonl"]["rain.flac"] == rain
    assert found["lines.jsonl"]["amen_01.wav"] == {"description": "A fast break, chopped up"}

    (folder / "amen_01.json").write_text(examples["amen_01.json"], encoding="utf-8")
    report = prepare(folder, "x")
    assert infos(report.tracks)["amen_01.wav"] == {
        **{"description": "A fast break, chopped up", "genre": "jungle", "moods": ["wild", "raw"]},
        **{"keywords": ["amen"], "instrument": "drums", "bpm": 170.0},
        **{"title": "Chopped", "artist": "Ann", "name": "amen"},
    }
    assert report.num_ignored == 0  # a file that was read is not called ignored
    for name, ignored in (("sounds.csv", 0), ("notes.txt", 1), (".hidden/sounds.csv", 1)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(examples["sounds.csv"], encoding="utf-8")
        table = name if name.endswith(".csv") else "sounds.csv"
        # A table in a hidden folder was never counted; the one that lies in the open is ignored then.
        assert prepare(folder, "x", metadata=folder / table).num_ignored == ignored + (name == ".hidden/sounds.csv")


def test_the_output_and_the_commands_of_the_docs(call, folder, tmp_path, monkeypatch) -> None:
    text = DOCS.read_text(encoding="utf-8")
    told, full, variants = re.findall(r"```text\n(.*?)```", text, re.S)
    (tmp_path / "sounds.csv").write_text(documented()["sounds.csv"], encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    micro-musicgen (prepare .*)$", text, re.M)
    assert len(commands) == 3
    counts = []
    for command in commands:
        code, out, _ = call(*command.replace("~", str(tmp_path)).split())
        assert code == 0
        counts.append(int(re.search(r": (\d) files?,", out)[1]))
        if len(counts) == 1:
            assert told in out
    assert counts == [3, 2, 1]

    tracks = read_manifest(tmp_path / "home/egs/jungle/train")
    said = Descriptions(tracks, seed=1)
    assert said.text(0, -1) == full.strip()
    assert set(variants.splitlines()) <= {said.text(0, place) for place in range(1000)}
    code = re.search(r"```python\n(.*?)```", text, re.S)[1].replace("micro_runs/egs/sounds", "home/egs/jungle")
    names: dict = {}
    exec(code, names)
    assert names["full"] == full.strip() and isinstance(names["variant"], str)
    assert names["texts"].templates == Templates()


def test_the_report_counts_what_is_known_and_where_it_comes_from(call, home, folder, tmp_path) -> None:
    (folder / "rain.json").write_text('{"license": "mine", "genre": 7, "bpm": "fast"}')
    rows = "file,description,licence,colour\namen_01.wav,Loud,CC0,red\ngone.wav,x,CC0,red\n"
    (tmp_path / "m.csv").write_text(rows)
    code, out, _ = call("prepare", folder, "--name", "x", "--metadata", tmp_path / "m.csv", "--json")
    known = json.loads(out)["metadata"]
    assert code == 0 and known == storage.read_json(home / "egs/x/prepare.json")["metadata"]
    assert known["fields"]["license"] == {"files": 2, "table": 1, "sidecar": 1, "tags": 0, "name": 0}
    assert known["fields"]["bpm"] == {"files": 1, "table": 0, "sidecar": 0, "tags": 0, "name": 1}
    assert known["licenses"] == {"cc0-1.0": 1, "mine": 1, "unknown": 1} and known["num_with_text"] == 3
    table = known["table"]
    assert (table["num_rows"], table["num_matched"], table["num_unmatched"]) == (2, 1, 1)
    assert table["unmatched"] == ["gone.wav"] and table["unread"] == ["colour"] and table["num_files_without_row"] == 2
    assert known["notes"] == ["rain.json: bpm 'fast' is no number; passed over"]
    out = call("prepare", folder, "--name", "x", "--metadata", tmp_path / "m.csv")[1]
    assert "no file is meant by 'gone.wav'" in out and "unknown columns: colour" in out and "passed over in" in out
    (tmp_path / "n.csv").write_text("file,genre\ngone.wav,x\n")
    code, out, _ = call("prepare", folder, "--name", "x", "--metadata", tmp_path / "n.csv")
    assert code == 0 and "0 of 1 rows mean a file, 3 files have no row" in out


def test_filters_name_and_count_what_they_leave_out(home, folder, tmp_path) -> None:
    (tmp_path / "m.csv").write_text("file,license\namen_01.wav,CC0\nrain.flac,CC BY-NC 4.0\n")
    calls: list[tuple[int, int]] = []
    report = prepare(
        folder,
        "x",
        metadata=tmp_path / "m.csv",
        filters=Filters.parse(license=["cc0", "cc-by"]),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 1)]  # what is left out is not decoded
    assert list(infos(report.tracks)) == ["amen_01.wav"]
    assert {skipped.path: skipped.reason for skipped in report.skipped} == {
        "pads/dark_pad_90bpm_Cmin.wav": "has no license, --license cc0,cc-by takes none without",
        "rain.flac": "license cc-by-nc-4.0: --license cc0,cc-by leaves it out",
    }
    assert report.to_dict()["metadata"]["left_out"] == {"no license": 1, "another license": 1}
    assert any("filters left out 2: 1 no license, 1 another license" in line for line in report.summary_lines())


def test_of_equal_sounds_one_that_passes_the_filters_stays(home, folder, tmp_path) -> None:
    (folder / "copy.wav").write_bytes((folder / "amen_01.wav").read_bytes())
    (tmp_path / "m.csv").write_text("file,license\ncopy.wav,CC0\n")
    report = prepare(folder, "x", metadata=tmp_path / "m.csv", filters=Filters.parse(license=["cc0"]))
    assert list(infos(report.tracks)) == ["copy.wav"]


def test_bad_input_gives_one_line_and_keeps_the_old_data_set(call, home, folder, tmp_path) -> None:
    assert call("prepare", folder, "--name", "x")[0] == 0
    before = (home / "egs/x/prepare.json").read_bytes()
    (tmp_path / "m.txt").write_text("file,genre\n")
    (tmp_path / "plain.csv").write_text("amen_01.wav,jungle\n")
    (tmp_path / "latin.csv").write_bytes(b"file,genre\namen_01.wav,sch\xf6n\n")
    for options, words in (
        (["--metadata", tmp_path / "gone.csv"], "gone.csv does not exist"),
        (["--metadata", tmp_path / "m.txt"], "must be a file that ends in"),
        (["--metadata", tmp_path / "plain.csv"], "give it a header such as"),
        (["--metadata", tmp_path / "latin.csv"], "is not UTF-8 (line 2)"),
        (["--license", "cc0"], "passes the filters (3 no license), such as amen_01.wav: has no license"),
        (["--genre", ","], "--genre ',' names nothing"),
    ):
        code, _, err = call("prepare", folder, "--name", "x", *options)
        assert code == 2 and words in err and len(err.strip().splitlines()) == 1, err
        assert (home / "egs/x/prepare.json").read_bytes() == before


def test_info_is_in_the_manifest_and_in_no_name(home, folder, tmp_path) -> None:
    plain = Track("/a.wav", 1.0, 8000, audio_hash="aa")
    told = replace(plain, info=INFO)
    assert read_manifest(write_manifest(tmp_path / "m", [told, plain]).parent) == [told, plain]
    assert dataset_hash([told]) == dataset_hash([plain]) and hash(told) == hash(plain)
    # Manifests without anything known are, byte for byte, what they were.
    assert write_manifest(tmp_path / "e", [replace(plain, info={})]).read_bytes() == (
        write_manifest(tmp_path / "p", [plain]).read_bytes()
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/data.jsonl").write_text('{"path": "/a.wav", "duration": 1, "sample_rate": 8, "info": [1]}')
    with pytest.raises(MicroMusicGenError, match=r"line 1 of .* is no track \(info is no object\)"):
        read_manifest(tmp_path / "bad")
    first = prepare(folder, "x").dataset_hash
    (folder / "rain.json").write_text('{"genre": "rain"}')
    assert prepare(folder, "x").dataset_hash == first
