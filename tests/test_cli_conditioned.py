"""`generate --text --audio-prompt` on the command line: what is written, what is reported, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import conditioned_models as own
import fixtures_models as models
import pytest
import soundfile
import tiny_text
import torch

from micro_musicgen import MicroMusicGen, cli
from micro_musicgen.engine.listen import pcm_bytes
from micro_musicgen.release.export import export

pytest.importorskip("transformers")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.make_tiny_t5(tmp_path_factory.mktemp("t5") / "tiny", ["acid", "slow", "beat"], num_layers=1)


@pytest.fixture
def release(home: Path, tmp_path: Path, tiny: Path) -> Path:
    own.write_own_run("text and sound", tiny)
    return export("abcd0123", tmp_path / "acid")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], release: Path) -> Call:
    """Runs `generate` on the release, 0.2 s of seed 3."""

    def run(*arguments: object) -> tuple[int, str, str]:
        line = ["micro-musicgen", "generate", release, "--duration", 0.2, "--seed", 3, "--device", "cpu", *arguments]
        monkeypatch.setattr(sys, "argv", [str(each) for each in line])
        try:
            cli.run()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfdbinary.readouterr()
        return code, out.decode("latin-1"), err.decode()

    return run


def sound(path: Path, seconds: float = 0.3, *, seed: int = 0, channels: int = 1, rate: int = 44100) -> Path:
    soundfile.write(path, own.noise(seconds, seed=seed, channels=channels, rate=rate).t().numpy(), rate)
    return path


def player(release: Path) -> MicroMusicGen:
    model = MicroMusicGen.get_pretrained(release, device="cpu")
    model.set_generation_params(duration=0.2, seed=3)
    return model


def test_a_text_each_and_a_sound_for_all(call: Call, release: Path, tmp_path: Path) -> None:
    kick = sound(tmp_path / "kick.wav", channels=2)
    said = ["--text", "acid beat", "--text", "slow", "--audio-prompt", kick]
    code, out, err = call(*said, "--cfg", 2, "--cfg-audio", 1.5, "--out", tmp_path / "a", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["cfg_coef"] == 2 and report["cfg_coef_audio"] == 1.5 and report["seed"] == 3
    assert [clip["text"] for clip in report["clips"]] == ["acid beat", "slow"]
    assert {clip["audio_prompt"] for clip in report["clips"]} == {str(kick)}
    assert [clip["file"] for clip in report["clips"]] == report["files"] and len(report["files"]) == 2
    # One clip alone, and a batch of one, give the same bytes: a clip is its number, its seed and what it is told.
    code, _, err = call(*said, "--cfg", 2, "--cfg-audio", 1.5, "--out", tmp_path / "b", "--batch-size", 1)
    assert code == 0, err
    for file in report["files"]:
        assert (tmp_path / "b" / Path(file).name).read_bytes() == Path(file).read_bytes()


def test_many_clips_of_one_text(call: Call, release: Path, tmp_path: Path) -> None:
    code, out, err = call("--text", "acid", "-n", 3, "--out", tmp_path / "a")
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 5 and all(line.endswith('.wav  "acid"') for line in lines[:3])
    assert lines[3] == "guidance 3" and lines[4].startswith("seed 3 ")
    code, _, _ = call("-n", 3, "--out", tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert code == 0 and all((tmp_path / "a" / n).read_bytes() != (tmp_path / "b" / n).read_bytes() for n in names)
    code, _, _ = call("-n", 3, "--text", "acid", "--cfg", 0, "--out", tmp_path / "c")
    assert code == 0 and all((tmp_path / "c" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_without_conditions_the_report_is_what_it_was(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("-n", 1, "--out", tmp_path / "a", "--json")
    assert code == 0 and set(json.loads(out)) == {"seed", "files"}


def test_a_stream_is_told_too(call: Call, release: Path, tmp_path: Path) -> None:
    kick = sound(tmp_path / "kick.wav", rate=models.SAMPLE_RATE)
    code, out, err = call("--text", "acid", "--audio-prompt", kick, "--stdout")
    assert code == 0, err
    wav = player(release).generate(["acid"], audio_prompts=own.noise(0.3))
    assert isinstance(wav, torch.Tensor)
    pcm = torch.frombuffer(bytearray(out.encode("latin-1")), dtype=torch.int16)
    wanted = torch.frombuffer(bytearray(pcm_bytes(wav)), dtype=torch.int16)
    assert len(pcm) == len(wanted) and (pcm - wanted).abs().max() <= 70  # the file is 16-bit, the tensor is not


def refused(done: tuple[int, str, str], *parts: object) -> None:
    code, _, err = done
    (line,) = err.strip().splitlines()[-1:]
    assert code == 2 and "Traceback" not in err and line.startswith("error: "), err
    for part in parts:
        assert str(part) in line, line


def test_what_is_refused(call: Call, tmp_path: Path) -> None:
    kick, short = sound(tmp_path / "kick.wav"), sound(tmp_path / "short.wav", 0.01)
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, torch.zeros(4000).numpy(), 32000)
    out = ("--out", tmp_path / "clips")
    refused(call("--text", "", *out), "a text is empty; describe the sound, or leave --text out")
    refused(call("--text", "a", "--text", "b", "-n", 3, *out), "2 texts for 3 clips; give one for all of them, or one")
    refused(
        call("--text", "a", "--audio-prompt", kick, "--audio-prompt", short, "-n", 3, *out), "2 audio prompts for 3"
    )
    refused(call("--audio-prompt", tmp_path / "no.wav", *out), "no.wav")
    refused(call("--audio-prompt", kick, "--audio-prompt", short, *out), "short.wav", "shorter than one frame")
    refused(call("--audio-prompt", silent, *out), "silent.wav", "is silent")
    refused(call("--text", "acid", "--cfg", "nan", *out), "cfg_coef nan must be a finite number")
    refused(call("--text", "a", "--text", "b", "--stdout"), "2 texts for 1 clips")
    assert not list(tmp_path.glob("clips/*")), "nothing was written"


def test_models_that_cannot_listen(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    models.write_models()
    kick = sound(tmp_path / "kick.wav")
    for told, words in (
        (["--text", "acid"], "this model was trained without text, so 'acid' means nothing to it"),
        (["--audio-prompt", str(kick)], "this model was trained without audio prompts"),
        (["--cfg-audio", "2"], "cfg_coef_audio 2 means nothing to a model without audio prompts"),
    ):
        monkeypatch.setattr(sys, "argv", ["micro-musicgen", "generate", "jungle", "--duration", "0.2", *told])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            cli.run()
        assert stop.value.code == 2 and words in capfd.readouterr().err


def test_a_text_of_ten_thousand_words(call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code, out, err = call("--text", "acid beat " * 5000, "--out", tmp_path / "a")
    assert code == 0, err
    assert len(out.splitlines()[0]) < 300 and out.splitlines()[0].endswith(' ..."')
    assert "cut to the 5 that the model reads" in caplog.text
