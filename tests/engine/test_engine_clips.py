"""Clips as files: the same bytes for the same seed, and nothing that exists is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fixtures_models as models
import numpy as np
import pytest
import soundfile
import torch

from micro_musicgen.engine import clips
from micro_musicgen.engine.clips import ClipRequest, clip_name, write_clips
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.errors import MicroMusicGenError


@pytest.fixture
def request_(home: Path, tmp_path: Path) -> ClipRequest:
    models.write_models()
    return ClipRequest(release="jungle", num_clips=3, out=tmp_path / "clips", duration_s=0.2, seed=5, batch_size=2)


def test_files_are_named_after_model_and_seed(request_: ClipRequest) -> None:
    heard: list[tuple[int, int]] = []
    written = write_clips(request_, progress=lambda *p: heard.append(p))
    assert [path.name for path in written.files] == [f"jungle_5_00{i}.wav" for i in range(3)]
    assert sorted(path.name for path in request_.out.iterdir()) == [path.name for path in written.files]
    for path in written.files:
        samples, rate = soundfile.read(path)
        assert rate == 32000 and samples.shape == (6400,)
    assert heard[-1] == (30, 30) and heard == sorted(heard)
    assert written.lines()[-1] == "seed 5 (--seed 5 gives these clips again)"


def test_the_same_seed_gives_the_same_bytes(request_: ClipRequest, tmp_path: Path) -> None:
    first = write_clips(request_)
    again = write_clips(replace(request_, out=tmp_path / "again"))
    assert [p.read_bytes() for p in first.files] == [p.read_bytes() for p in again.files]
    assert len({p.read_bytes() for p in first.files}) == 3
    other = write_clips(replace(request_, seed=6))
    assert other.files[0].read_bytes() != first.files[0].read_bytes()


def test_a_clip_does_not_depend_on_how_many_were_asked_for(request_: ClipRequest, tmp_path: Path) -> None:
    many = write_clips(request_)
    one = write_clips(replace(request_, num_clips=1, batch_size=1, out=tmp_path / "one"))
    assert one.files[0].read_bytes() == many.files[0].read_bytes()


def test_a_seed_is_drawn_and_named(request_: ClipRequest) -> None:
    written = write_clips(replace(request_, seed=None, num_clips=1))
    assert str(written.seed) in written.files[0].name and str(written.seed) in written.lines()[-1]


def test_peaks_are_scaled_not_clamped(request_: ClipRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = 2.0 * torch.sin(torch.linspace(0, 40, 6400))
    monkeypatch.setattr(MicroMusicGen, "decode", lambda self, codes: wave[None, None])
    written = write_clips(replace(request_, num_clips=1))
    samples, _ = soundfile.read(written.files[0])
    np.testing.assert_allclose(samples, wave.numpy() / float(wave.abs().max()), atol=1e-4)


def test_a_prompt_is_what_every_clip_begins_with(request_: ClipRequest, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.wav"
    soundfile.write(prompt, 0.1 * np.random.default_rng(0).standard_normal(8000), 16000)
    written = write_clips(replace(request_, prompt=prompt, prompt_duration_s=0.1))
    starts = [soundfile.read(path)[0][:1500] for path in written.files]
    assert len(starts) == 3 and all(len(start) == 1500 for start in starts)


def test_existing_files_are_refused_before_anything_is_loaded(
    request_: ClipRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_.out.mkdir()
    taken = request_.out / "jungle_5_001.wav"
    taken.write_bytes(b"mine")
    with monkeypatch.context() as patched:
        patched.setattr(MicroMusicGen, "get_pretrained", _never)
        with pytest.raises(MicroMusicGenError, match="jungle_5_001.wav exists; choose another --seed or --out, or add"):
            write_clips(request_)
    assert taken.read_bytes() == b"mine"
    write_clips(replace(request_, overwrite=True))
    assert taken.read_bytes() != b"mine"


def _never(*_: object, **__: object) -> None:
    raise AssertionError("the model was loaded")


def test_what_is_refused_before_anything_is_loaded(request_: ClipRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MicroMusicGen, "get_pretrained", _never)
    with pytest.raises(MicroMusicGenError, match="cannot write to /proc/clips"):
        write_clips(replace(request_, out=Path("/proc/clips")))
    with pytest.raises(MicroMusicGenError, match=r"nothing.wav"):
        write_clips(replace(request_, prompt=Path("nothing.wav")))
    for changes, words in (
        ({"num_clips": 0}, "0 clips were asked for"),
        ({"duration_s": 0.0}, "duration 0 s is out of range"),
        ({"duration_s": 10_000.0}, "duration 10000 s is out of range"),
        ({"batch_size": 0}, "batch size 0"),
        ({"temperature": -1.0}, "temperature -1 must be above 0"),
    ):
        with pytest.raises(MicroMusicGenError, match=words):
            replace(request_, **changes)


def test_an_interruption_leaves_whole_files(request_: ClipRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = clips.write_wav, []

    def interrupted(path: Path, wav: np.ndarray, sample_rate: int) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(path, wav, sample_rate)
        written.append(path)

    monkeypatch.setattr(clips, "write_wav", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_clips(request_)
    assert sorted(request_.out.iterdir()) == written
    assert all(soundfile.info(path).frames == 6400 for path in written)


@pytest.mark.parametrize(
    ("release", "name"),
    [("user/Dschungel 2", "Dschungel_2"), ("./", None), ("abcd0123", "abcd0123"), ("a/b/Töne/", "Töne"), ("...", None)],
)
def test_file_names(release: str, name: str | None) -> None:
    found = clip_name(release)
    assert found == name if name else found and "/" not in found and not found.startswith(".")
