"""The command line: verbs, exit codes, and one clear line for each kind of bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fixtures_models import write_codec_run, write_models

from micro_musicgen import cli


class Outcome:
    """What a call of the command gave."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], home: Path):
    """Runs the command in this process, in a data home of its own."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["micro-musicgen", *map(str, arguments)])
        try:
            cli.run()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capfd.readouterr())

    return run


def tone(path: Path, duration_s: float = 2.0, sample_rate: int = 44100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(duration_s * sample_rate)) / sample_rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * time) * np.sin(9 * time), sample_rate)
    return path


def test_prepare_prints_what_comes_next(call, tmp_path: Path) -> None:
    sounds = tmp_path / "Bänke & Böden"
    for number in range(3):
        tone(sounds / f"töne {number}.wav", 2 + number)
    done = call("prepare", sounds, "--name", "breaks")
    assert done.code == 0 and "micro-musicgen train breaks" in done.out
    again = call("prepare", sounds, "--name", "breaks", "--json")
    assert json.loads(again.out)["name"] == "breaks"


def test_export_generate_and_info_of_a_run(call, tmp_path: Path) -> None:
    write_models()
    release = tmp_path / "ein Modell"
    done = call("export", "jungle", "--out", release)
    assert done.code == 0 and "micro-musicgen generate" in done.out
    done = call("generate", release, "-n", 2, "--duration", 0.5, "--seed", 1, "--out", tmp_path / "a", "--json")
    files = [Path(name) for name in json.loads(done.out)["files"]]
    assert done.code == 0 and len(files) == 2
    assert call("generate", release, "-n", 2, "--duration", 0.5, "--seed", 1, "--out", tmp_path / "b").code == 0
    assert [path.read_bytes() for path in files] == [(tmp_path / "b" / path.name).read_bytes() for path in files]
    assert json.loads(call("info", release, "--json").out)


def test_size_table_holds_the_published_numbers(call) -> None:
    rows = {row["scale"]: row for row in json.loads(call("size", "--json").out)}
    assert rows["micro"]["total"] == 134_246_400 and rows["midi"]["total"] == 33_573_888
    assert all(row["total"] == row["embedding"] + row["rest"] for row in rows.values())


def test_sizes_of_llamas(call) -> None:
    rows = {row["scale"]: row for row in json.loads(call("size", "--backbone", "llama", "--json").out)}
    assert rows["melformer"]["total"] == 5_638_784 and rows["nano"]["total"] == 2_889_344
    assert "melformer" in call("size", "--backbone", "llama").out
    refused(call("size", "--backbone", "gru"), "gru", "known: transformer_lm, llama")


def refused(done: Outcome, *parts: object) -> None:
    """One line, exit code 2, naming what was wrong."""
    (line,) = done.err.strip().splitlines()[-1:]
    assert done.code == 2, done.err
    assert "Traceback" not in done.err and line.startswith("error: ")
    for part in parts:
        assert str(part) in line, line


def test_bad_folders_are_refused(call, tmp_path: Path) -> None:
    empty = tmp_path / "leer"
    empty.mkdir()
    refused(call("prepare", empty, "--name", "x"), empty)
    refused(call("prepare", tmp_path / "missing", "--name", "x"), "missing")
    (empty / "text.wav").write_text("no audio at all")
    refused(call("prepare", empty, "--name", "x"), "text.wav")
    refused(call("prepare", empty, "--name", "../x"), "../x")


def test_bad_training_requests_are_refused(call, tmp_path: Path) -> None:
    refused(call("train", "nothing"), "nothing", "micro-musicgen prepare")
    tone(tmp_path / "s" / "a.wav")
    tone(tmp_path / "s" / "b.wav", 3)
    assert call("prepare", tmp_path / "s", "--name", "toy").code == 0
    refused(call("train", "toy", "--scale", "huge"), "huge", "nano, tiny, mini, midi, micro")
    refused(call("train", "toy", "--minutes", 0), "--minutes 0")
    refused(call("train", "toy", "--codec-scale", "vast"), "vast")
    refused(call("train", "toy", "--codec", tmp_path / "nowhere"), "nowhere")
    refused(call("train", "toy", "--set", "optim.lrr=1", "--codec", "c0dec000"), "c0dec000")
    write_codec_run()
    refused(call("train", "toy", "--set", "optim.lrr=1", "--codec", "c0dec000"), "optim.lrr")
    refused(call("train", "toy", "--set", "nonsense", "--codec", "c0dec000"), "nonsense")
    refused(call("train", "toy", "--set", "transformer_lm.card=32", "--codec", "c0dec000"), "codec 64", "LM 32")


def test_bad_generation_requests_are_refused(call, tmp_path: Path) -> None:
    write_models()
    release = tmp_path / "release"
    assert call("export", "jungle", "--out", release).code == 0
    out = tmp_path / "clips"
    refused(call("generate", release, "--duration", 0, "--out", out), "duration 0 s")
    refused(call("generate", release, "--duration", 10000, "--out", out), "duration 10000 s", "600")
    refused(call("generate", release, "--temperature", 0, "--out", out), "temperature 0")
    refused(call("generate", release, "-n", 0, "--out", out), "0")
    refused(call("generate", release, "--prompt", tmp_path / "no.wav", "--out", out), "no.wav")
    refused(call("generate", tmp_path / "nowhere", "--out", out), "nowhere")
    assert not list(out.glob("*"))
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    refused(call("generate", release, "--duration", 0.2, "--out", blocked / "clips"), blocked)
    refused(call("export", "jungle", "--out", blocked / "release"), blocked)


def test_nothing_written_is_overwritten_silently(call, tmp_path: Path) -> None:
    write_models()
    release, out = tmp_path / "release", tmp_path / "clips"
    assert call("export", "jungle", "--out", release).code == 0
    refused(call("export", "jungle", "--out", release), release, "overwrite")
    assert call("export", "jungle", "--out", release, "--overwrite").code == 0
    generate = ("generate", release, "-n", 1, "--duration", 0.2, "--seed", 3, "--out", out)
    assert call(*generate).code == 0
    refused(call(*generate), "overwrite")
    assert call(*generate, "--overwrite").code == 0


def test_missing_checkpoint_is_refused(call, tmp_path: Path) -> None:
    refused(call("export", "0123abcd", "--out", tmp_path / "r"), "0123abcd")
    refused(call("export", "unknown-set", "--out", tmp_path / "r"), "unknown-set")


def test_usage_errors_are_code_2_and_unexpected_ones_code_1(call, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(call("no-such-verb"), "no-such-verb")
    refused(call("generate", "x", "--duration", "long"), "long")
    monkeypatch.setattr("micro_musicgen.upstream.doctor.diagnose", lambda: 1 / 0)
    done = call("doctor")
    assert done.code == 1 and "ZeroDivisionError" in done.err and "Traceback" not in done.err


def test_interruption_is_code_130(call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("micro_musicgen.upstream.doctor.diagnose", interrupted)
    assert call("doctor").code == 130


def test_importing_the_package_and_the_command_line_is_light() -> None:
    heavy = "{'torch', 'audiocraft', 'numpy', 'transformers', 'hydra', 'matplotlib'} & set(sys.modules)"
    script = f"import sys, micro_musicgen, micro_musicgen.cli; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", script], check=True)
