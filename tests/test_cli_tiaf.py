"""`micro-musicgen tiaf`: folders there and back, and one clear line for what can't be done."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from micro_musicgen import cli


class Outcome:
    """What a call of the command gave."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs `micro-musicgen tiaf` in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["micro-musicgen", "tiaf", *map(str, arguments)])
        try:
            cli.run()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capfd.readouterr())

    return run


def tone(path: Path, duration_s: float = 2.0, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(duration_s * rate)) / rate
    soundfile.write(path, np.tile(0.3 * np.sin(2 * np.pi * 220 * time)[:, None], channels), rate)
    return path


def refused(done: Outcome, *parts: object) -> None:
    """One line, exit code 2, naming what was wrong."""
    line = done.err.strip().splitlines()[-1]
    assert done.code == 2 and line.startswith("error: ") and "Traceback" not in done.err, done.err
    for part in parts:
        assert str(part) in line, line


def test_a_folder_there_and_back(call, tmp_path: Path) -> None:
    sounds, beats, wavs = tmp_path / "Töne", tmp_path / "beats", tmp_path / "wavs"
    tone(sounds / "a_120_x.wav")
    tone(sounds / "deep" / "b 90bpm.flac", 1.5, channels=2)
    (sounds / "broken_100bpm_x.wav").write_bytes(b"RIFF" + bytes(40))
    (sounds / "notes.txt").write_text("no sound")
    small = ("--samples-per-beat", 8192)
    planned = call("encode", sounds, "--out", beats, "--dry-run", *small)
    assert planned.code == 0 and "nothing was written" in planned.out and not beats.exists()
    done = call("encode", sounds, "--out", beats, "--dtype", "int16", "--json", *small)
    found = json.loads(done.out)
    assert done.code == 0 and [Path(one["path"]).name for one in found["failed"]] == ["broken_100bpm_x.wav"]
    by_name = {Path(one["out"]).relative_to(beats).as_posix(): one for one in found["files"]}
    assert set(by_name) == {"a_120_x.tiaf", "deep/b 90bpm.tiaf"}
    assert (by_name["a_120_x.tiaf"]["bpm"], by_name["a_120_x.tiaf"]["loops"]) == (120, True)
    assert (by_name["deep/b 90bpm.tiaf"]["beats"], by_name["deep/b 90bpm.tiaf"]["loops"]) == (2.25, False)
    back = call("decode", beats, "--out", wavs)
    assert back.code == 0 and "a_120_x.wav: 2.000 s at 16000 Hz" in back.out
    heard, rate = soundfile.read(wavs / "deep" / "b 90bpm.wav")
    wanted, _ = soundfile.read(sounds / "deep" / "b 90bpm.flac")
    assert rate == 16_000 and heard.shape == wanted.shape and np.abs(heard - wanted).max() < 2e-3
    faster = call("decode", beats / "a_120_x.tiaf", "--bpm", 160, "--sample-rate", 8000, "--json")
    (only,) = json.loads(faster.out)["files"]
    assert Path(only["out"]) == beats / "a_120_x_160bpm.wav" and only["num_samples"] == 12_000
    told = call("info", beats / "a_120_x.tiaf")
    assert told.code == 0 and "120 BPM, 4 beats, loops, 2.000 s" in told.out
    (plain,) = json.loads(call("info", beats / "a_120_x.tiaf", "--json").out)["files"]
    assert (plain["num_beats"], plain["dtype"], plain["metadata"]["tempo_from"]) == (4, "int16", "name")


def test_nothing_is_replaced_unasked(call, tmp_path: Path) -> None:
    sound = tone(tmp_path / "a_120_x.wav")
    assert call("encode", sound).code == 0
    before = (tmp_path / "a_120_x.tiaf").read_bytes()
    refused(call("encode", sound, "--bpm", 60), "a_120_x.tiaf exists", "--overwrite")
    assert (tmp_path / "a_120_x.tiaf").read_bytes() == before
    assert call("encode", sound, "--bpm", 60, "--no-loop", "--overwrite").code == 0
    refused(call("decode", tmp_path / "a_120_x.tiaf"), "a_120_x.wav exists")
    tone(tmp_path / "a_120_x.flac")
    refused(call("encode", tmp_path, "--out", tmp_path / "out"), "a_120_x.flac and", "would both be")


def test_bad_input_is_one_line(call, tmp_path: Path) -> None:
    sound = tone(tmp_path / "a_120_x.wav")
    refused(call("encode", sound, "--bpm", 5), "5 BPM is no tempo")
    refused(call("encode", sound, "--dtype", "int8"), "int8", "float32 or int16")
    refused(call("encode", sound, "--offset", -1e9), "beat 0 cannot be at -1e+09 s")
    refused(call("encode", sound, "--samples-per-beat", 1 << 40), "1099511627776 samples a beat")
    refused(call("encode", sound, "--offset", 3), "nothing lies behind beat 0")
    refused(call("encode", sound, "--loop", "--bpm", 100), "no loop of whole ones")
    refused(call("encode", tmp_path / "none.wav"), "none.wav does not exist")
    (tmp_path / "empty").mkdir()
    refused(call("encode", tmp_path / "empty"), "holds no file")
    assert call("encode", sound).code == 0
    made = tmp_path / "a_120_x.tiaf"
    data = bytearray(made.read_bytes())
    data[-100] ^= 1
    (tmp_path / "bad.tiaf").write_bytes(data)
    refused(call("info", tmp_path / "bad.tiaf"), "bad.tiaf is damaged: the checksum of beat 3")
    both = call("info", tmp_path / "bad.tiaf", made)
    refused(both, "bad.tiaf is damaged")
    assert "120 BPM" in both.out  # the others go on
    refused(call("decode", sound, "--out", tmp_path / "out"), "is no .tiaf file")
    refused(call("decode", made, "--keep-pitch"), "give --bpm too")
    refused(call("decode", made, "--bpm", 2000), "2000 BPM is no tempo")
    refused(call("decode", made, "--sample-rate", 1), "--sample-rate 1")


def test_play_pipes_pcm_into_a_player(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_musicgen.engine import listen

    sound = tone(tmp_path / "a_120_x.wav", channels=2)
    assert call("encode", sound, "--samples-per-beat", 8192).code == 0
    made, heard = tmp_path / "a_120_x.tiaf", tmp_path / "heard"
    monkeypatch.setattr(listen, "PLAYERS", ())
    refused(call("play", made), "found no player")
    script = tmp_path / "player"
    script.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nshutil.copyfileobj(sys.stdin.buffer, open({str(heard)!r}, 'wb'))\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(listen, "PLAYERS", (f"{script} {{rate}} {{channels}}",))
    assert call("play", made, "--loop", 3, "--bpm", 240).code == 0
    assert heard.stat().st_size == 3 * 16_000 * 2 * 2
