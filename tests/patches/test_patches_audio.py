"""The patch of audio_write: every format without an ffmpeg binary."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from micro_musicgen.upstream import audiocraft_module

SAMPLE_RATE = 32000


@pytest.fixture
def audio(monkeypatch: pytest.MonkeyPatch) -> Any:
    """audiocraft.data.audio with the patch on, also on a machine that has ffmpeg."""
    from micro_musicgen.patches.audio_write import PATCH

    module = audiocraft_module("data.audio")
    monkeypatch.setattr(module, "_piping_to_ffmpeg", inspect.unwrap(module._piping_to_ffmpeg))
    PATCH.apply(module)
    return module


def _tone(channels: int, num_samples: int = SAMPLE_RATE) -> torch.Tensor:
    time_s = torch.arange(num_samples) / SAMPLE_RATE
    return 0.5 * torch.stack([torch.sin(2 * math.pi * 220 * (c + 1) * time_s) for c in range(channels)])


def test_audio_write_needs_no_ffmpeg(audio: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = (tmp_path / "tone", _tone(1), SAMPLE_RATE)
    with monkeypatch.context() as original:
        original.setattr(audio, "_piping_to_ffmpeg", audio._piping_to_ffmpeg.__wrapped__)
        with pytest.raises(FileNotFoundError, match="ffmpeg"):
            audio.audio_write(*arguments)
    assert audio.audio_write(*arguments).is_file()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("suffix", "tolerance"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.02)])
def test_audio_write_gives_what_was_given(
    audio: Any, tmp_path: Path, suffix: str, tolerance: float, channels: int
) -> None:
    wav = _tone(channels)
    path = audio.audio_write(tmp_path / "tone", wav, SAMPLE_RATE, suffix, strategy="clip")
    found, sample_rate = audio.audio_read(path)
    assert path.suffix == f".{suffix}" and sample_rate == SAMPLE_RATE
    assert found.shape == wav.shape
    assert (found - wav).abs().max() < tolerance


def test_audio_write_mp3_has_the_rate_that_was_asked_for(audio: Any, tmp_path: Path) -> None:
    wav = _tone(2, 10 * SAMPLE_RATE)
    sizes = []
    for kbps in (64, 256):
        path = audio.audio_write(tmp_path / f"tone{kbps}", wav, SAMPLE_RATE, "mp3", mp3_rate=kbps, strategy="clip")
        found, _ = audio.audio_read(path)
        assert found.shape[0] == 2 and abs(found.shape[1] - wav.shape[1]) <= 2 * 1152
        sizes.append(path.stat().st_size * 8 / 10_000)
    assert sizes == pytest.approx([64, 256], rel=0.05)


def test_audio_write_says_when_it_cannot_keep_the_ogg_rate(
    audio: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audio.audio_write(tmp_path / "tone", _tone(1), SAMPLE_RATE, "ogg", ogg_rate=64)
    assert "not 64k" in caplog.text


def test_audio_write_survives_minutes_of_ogg(audio: Any, tmp_path: Path) -> None:
    path = audio.audio_write(tmp_path / "long", _tone(2, 120 * SAMPLE_RATE), SAMPLE_RATE, "ogg", strategy="clip")
    assert audio.audio_info(path).duration == pytest.approx(120, abs=0.01)
