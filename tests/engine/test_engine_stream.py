"""Audio while it is being made: the chunks of a stream are the clip, and a pipe carries them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fixtures_models as models
import numpy as np
import pytest
import soundfile
import torch

from micro_musicgen import MicroMusicGen, cli
from micro_musicgen.engine import listen
from micro_musicgen.engine.codec import PlayingCodec, audio_stream, decoded
from micro_musicgen.engine.listen import find_player, pcm_bytes, player_command, playing_sink
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.release.export import export

SAMPLES = 1e-5
"""Chunks and clip agree within this: convolutions over other numbers of frames sum in another order."""


@pytest.fixture
def release(home: Path, tmp_path: Path) -> Path:
    models.write_models()
    return export("abcd0123", tmp_path / "r")


def player(release: Path, **changes: Any) -> MicroMusicGen:
    model = MicroMusicGen.get_pretrained(release, device="cpu")
    model.set_generation_params(**{"duration": 1.7, "seed": 3, **changes})
    return model


@pytest.mark.parametrize("chunk_s", [0.02, 0.1, 0.5, 10.0])
def test_chunks_are_the_clip(release: Path, chunk_s: float) -> None:
    """Over two windows, in chunks of any length."""
    model = player(release)
    wanted = model.generate_unconditional(1)
    chunks = list(model.stream(chunk_s=chunk_s))
    assert all(chunk.shape[:2] == (1, 1) and chunk.shape[-1] > 0 for chunk in chunks)
    assert max(chunk.shape[-1] for chunk in chunks) <= max(chunk_s, 0.3) * 32000
    found = torch.cat(chunks, dim=-1)
    assert found.shape == wanted.shape == (1, 1, 54400)
    torch.testing.assert_close(found, wanted, atol=SAMPLES, rtol=0)


def test_a_stream_begins_with_the_prompt_and_goes_on(release: Path) -> None:
    model = player(release, duration=0.6)
    prompt = 0.1 * torch.randn(1, 1, 6400, generator=torch.Generator().manual_seed(0))
    wanted = model.generate_continuation(prompt, 32000)
    found = torch.cat(list(model.stream(prompt=prompt, chunk_s=0.1)), dim=-1)
    torch.testing.assert_close(found, wanted, atol=SAMPLES, rtol=0)


def test_a_stream_is_made_as_it_is_read(release: Path) -> None:
    """The first chunk is there long before the last code: reading one chunk draws a chunk's codes, not a clip's."""
    model = player(release, duration=1.0)
    stream = model.stream(chunk_s=0.1)
    next(stream)
    assert model.runner._buffers is not None
    codes = model.runner._buffers[1].codes[0, 0]
    assert int((codes != models.CARD).sum()) < 30, "50 frames are the clip"
    with pytest.raises(MicroMusicGenError, match="chunk of 0 s must be above 0"):
        model.stream(chunk_s=0)
    with pytest.raises(MicroMusicGenError, match="duration 0 s"):
        model.stream(duration=0)


def test_a_codec_that_cannot_be_cut_gives_everything_at_the_end() -> None:
    from micro_musicgen.codec.encodec import EncodecCodec

    codec = EncodecCodec(models.make_codec_model(), models.codec_config())
    codes = torch.randint(models.CARD, (1, 4, 9), generator=torch.Generator().manual_seed(0))
    assert not isinstance(codec, PlayingCodec)
    chunks = list(decoded(codec, iter([codes[..., :5], codes[..., 5:]]), 1))
    assert len(chunks) == 1 and torch.equal(chunks[0], codec.decode(codes))
    assert audio_stream(codec, 2).finish().shape == (2, 1, 0)


# PCM.


def test_pcm_is_sixteen_bits_and_never_wraps() -> None:
    wav = torch.tensor([[[0.0, 0.5, 1.0, 2.0, -3.0]]])
    assert np.frombuffer(pcm_bytes(wav), "<i2").tolist() == [0, 16384, 32767, 32767, -32767]
    stereo = torch.tensor([[[0.0, 0.5], [1.0, -1.0]]])
    assert np.frombuffer(pcm_bytes(stereo), "<i2").tolist() == [0, 32767, 16384, -32767]


def command(release: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "micro_musicgen.cli", "generate", str(release), "--device", "cpu", *args]


def test_a_pipe_carries_the_clip(release: Path, tmp_path: Path) -> None:
    """The command line, a real pipe, and the same samples as the file of the same seed."""
    out = tmp_path / "pcm"
    with out.open("wb") as sink:
        ran = subprocess.run(
            command(release, "--stdout", "--duration", "0.5", "--seed", "4"), stdout=sink, stderr=subprocess.PIPE
        )
    assert ran.returncode == 0, ran.stderr
    assert b"16-bit little-endian, 32000 Hz, 1 channel" in ran.stderr and b"seed 4" in ran.stderr
    model = player(release, duration=0.5, seed=4)
    wanted = np.frombuffer(pcm_bytes(model.generate_unconditional(1)), "<i2")
    found = np.frombuffer(out.read_bytes(), "<i2")
    assert found.shape == (16000,) and np.abs(found.astype(int) - wanted).max() <= 1


def test_a_reader_that_leaves_early_is_no_error(release: Path) -> None:
    with subprocess.Popen(
        command(release, "--stdout", "--duration", "30", "--seed", "4"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert len(process.stdout.read(100)) == 100
        process.stdout.close()
        words = process.stderr.read()
        assert process.wait() == 0 and b"Traceback" not in words and b"rror" not in words, words


@pytest.mark.parametrize("more", [["-n", "2"], ["--out", "x"], ["--json"], ["--play"]])
def test_one_clip_to_one_place(
    release: Path, more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["micro-musicgen", "generate", str(release), "--stdout", *more])
    with pytest.raises(SystemExit) as end:
        cli.run()
    assert end.value.code == 2 and "--play and --stdout give one clip to one place" in capsys.readouterr().err


def test_players(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MicroMusicGenError, match=r"found no player .*aplay.*; install one, or pipe --stdout"):
        find_player()
    for name in ("aplay", "ffplay"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    command = player_command(find_player(), 32000)
    assert command[:1] == ["ffplay"] and "32000" in command
    (tmp_path / "ffplay").unlink()
    assert player_command(find_player(), 44100, 2) == [
        "aplay",
        "-q",
        "-t",
        "raw",
        "-f",
        "S16_LE",
        "-r",
        "44100",
        "-c",
        "2",
        "-",
    ]


def test_what_is_played_is_what_was_made(release: Path, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    request = listen.ClipRequest(release=str(release), num_clips=1, duration_s=0.5, seed=9, device="cpu")
    seed = listen.stream_pcm(request, lambda rate: playing_sink(["/bin/sh", "-c", f"cat > {heard}"]))
    wanted = pcm_bytes(player(release, duration=0.5, seed=9).generate_unconditional(1))
    assert seed == 9 and len(heard.read_bytes()) == len(wanted)
    with (
        pytest.raises(MicroMusicGenError, match=r"the player /bin/sh failed \(no device\)"),
        playing_sink(["/bin/sh", "-c", "echo no device >&2; exit 3"]) as sink,
    ):
        for _ in range(100):
            sink(b"x" * 100_000)


# Many clips.


def test_an_interruption_leaves_finished_files_whole(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "many"
    with subprocess.Popen(
        command(release, "-n", "4000", "--batch-size", "2", "--duration", "0.5", "--seed", "1", "--out", str(out)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background jobs, and all that they start, ignore Ctrl-C; a CI may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        end = time.monotonic() + 60
        while len(list(out.glob("*.wav"))) < 4 and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        _, words = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in words, words
    files = sorted(out.iterdir())
    assert 4 <= len(files) < 4000 and all(path.suffix == ".wav" for path in files)
    for path in files:
        assert soundfile.read(path)[0].shape == (16000,)
