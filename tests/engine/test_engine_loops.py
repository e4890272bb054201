"""Beat time, played: lengths to the sample, loops that close, windows of whole bars, releases that remember."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import fixtures_models as models
import numpy as np
import pytest
import soundfile
import torch
from beat_models import BAR, TIME, PulseCodec, beat_model, write_beat_runs
from typer.testing import CliRunner

from micro_musicgen.contracts import BeatTime, GenerationParams, ReleaseConfig
from micro_musicgen.engine import loops
from micro_musicgen.engine.clips import ClipRequest, write_clips
from micro_musicgen.engine.codec import playing
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.release.export import export
from micro_musicgen.release.info import describe
from micro_musicgen.release.source import read_parts


@pytest.fixture(scope="module")
def model() -> MicroMusicGen:
    return beat_model(PulseCodec())


# Lengths.


@pytest.mark.parametrize("bpm", [97.0, 140.0, 171.3, 200.0])
@pytest.mark.parametrize("bars", [1, 3])
def test_clips_have_the_length_of_their_bars_to_the_sample(model: MicroMusicGen, bpm: float, bars: int) -> None:
    model.set_generation_params(bars=bars, bpm=bpm, seed=1, loop=bars == 3, loop_tries=0)
    wav, codes = model.generate_unconditional(2, return_tokens=True)
    expected = round(bars * 4 * 60 / bpm * 32000)
    assert codes.shape == (2, 4, bars * BAR) and wav.shape == (2, 1, expected) and model.num_samples == expected
    assert model.frame_rate == pytest.approx(16 * bpm / 60) and model.bpm == bpm


def test_defaults_are_the_window_and_the_trained_tempo(model: MicroMusicGen) -> None:
    model.set_generation_params()
    assert (model.params.bars, model.bpm, model.num_frames) == (2, 172.0, 2 * BAR)
    assert model.max_duration == pytest.approx(2 * 4 * 60 / 172)


def test_a_duration_is_rounded_to_whole_beats(model: MicroMusicGen) -> None:
    model.set_generation_params(duration=2.0, bpm=120.0)
    assert model.num_frames == 4 * 16
    model.set_generation_params(duration=0.01)
    assert model.num_frames == 16
    with pytest.raises(MicroMusicGenError, match="duration 2 s and 4 bars are two lengths"):
        model.set_generation_params(duration=2.0, bars=4)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"bars": 0}, "bars 0 must lie in 1..1024"),
        ({"bpm": 5.0}, "bpm 5 is no tempo to play at"),
        ({"bpm": float("nan")}, "bpm nan"),
        ({"bars": 1000, "bpm": 100.0}, "1000 bars at 100 BPM are 2400 s; at most 600 s"),
        ({"loop": True, "loop_tries": -1}, "loop_tries -1"),
    ],
)
def test_what_can_not_be_played_is_said(model: MicroMusicGen, params: dict[str, float], words: str) -> None:
    with pytest.raises(MicroMusicGenError, match=words):
        model.set_generation_params(**params)


@pytest.mark.parametrize("params", [{"bars": 4}, {"bpm": 140.0}, {"loop": True}, {"bars": 4, "bpm": 140.0}])
def test_a_model_of_clock_time_counts_no_beats(params: dict[str, float]) -> None:
    clock = beat_model(PulseCodec(), time=None)
    with pytest.raises(MicroMusicGenError, match=r"can't be had of this model, which was trained in clock time"):
        clock.set_generation_params(**params)
    with pytest.raises(MicroMusicGenError, match="loop can't be had"):
        clock.generate_loop(bars=2)


# Loops.


def test_codes_going_round_are_decoded_as_the_middle_of_a_long_clip() -> None:
    """With a codec that hears as far as the lead: exactly what repeating the loop for ever sounds like."""
    codec = beat_model().codec
    codes = torch.randint(0, 64, (1, 4, 32), generator=torch.Generator().manual_seed(0))
    found = loops.decode_loop(codec, codes, 16)
    many = codec.decode(codes.repeat(1, 1, 20))
    passes = many.unflatten(-1, (20, 32 * 640))
    torch.testing.assert_close(found, passes[..., 10, :], atol=2e-5, rtol=0)
    assert float((found - codec.decode(codes)).abs().max()) > 1e-3  # alone it begins and ends in silence


def test_a_loop_closes_after_resampling(model: MicroMusicGen) -> None:
    """Played round, the seam is as smooth as the inside: a tone that closes stays a tone."""
    codes = torch.zeros(1, 4, BAR, dtype=torch.int64)
    params = GenerationParams(bars=1, bpm=171.3, loop=True)
    wav = loops.decode_beats(PulseCodec(), codes, TIME, params)[0, 0].numpy().astype(np.float64)
    assert len(wav) == round(4 * 60 / 171.3 * 32000)
    spectrum = np.abs(np.fft.rfft(wav))
    assert int(spectrum.argmax()) == BAR  # a period a frame: exactly so many in the loop
    others = np.delete(spectrum, BAR)
    assert np.sqrt(np.square(others).sum()) < 2e-3 * spectrum[BAR]


def test_the_last_bar_is_made_again_and_the_best_is_kept(model: MicroMusicGen, monkeypatch: pytest.MonkeyPatch) -> None:
    model.set_generation_params(bars=3, seed=7, loop=True, loop_tries=0)
    plain = model.codes(2)
    model.set_generation_params(bars=3, seed=7, loop=True, loop_tries=4)
    heard = []
    kept = loops._seam_loss
    monkeypatch.setattr(loops, "_seam_loss", lambda *given: heard.append(kept(*given)) or heard[-1])
    found = model.codes(2)
    assert (found[..., : 2 * BAR] == plain[..., : 2 * BAR]).all()
    losses = torch.stack(heard)
    assert losses.shape == (5, 2) and len(set(losses[:, 0].tolist())) == 5
    closed = loops._seam_loss(model, found, BAR, 2 * BAR, loops._first_rows(loops.Fused(rows=0), 2))
    torch.testing.assert_close(closed, losses.min(dim=0).values)
    assert (model.codes(2) == found).all()  # the same seed gives the same loop
    model.set_generation_params(bars=3, seed=7, loop=True, loop_tries=4)
    assert (model.codes(1, first_clip=1) == found[1:]).all()


def test_a_prompt_in_the_last_bar_is_left_alone(model: MicroMusicGen) -> None:
    model.set_generation_params(bars=2, seed=7, loop=True)
    prompt = torch.randint(0, 64, (1, 4, BAR + 16))
    assert (model.codes(1, prompt=prompt)[..., : BAR + 16] == prompt).all()


def test_generate_loop_leaves_the_parameters_as_they_are(model: MicroMusicGen) -> None:
    model.set_generation_params(bars=1, seed=3, temperature=0.9)
    before = model.params
    wav = model.generate_loop(2, bars=2, bpm=140)
    assert wav.shape == (2, 1, round(8 * 60 / 140 * 32000)) and model.params == before
    model.set_generation_params(bars=2, bpm=140, loop=True, seed=3, temperature=0.9)
    torch.testing.assert_close(model.generate_unconditional(2), wav)


def test_windows_of_long_clips_move_on_by_whole_bars() -> None:
    long = beat_model(PulseCodec())
    long.window_s = 5 * BAR / 50
    assert (long.windows(None).window, long.windows(None).stride) == (5 * BAR, 3 * BAR)
    seconds = 2.4 * 4 * 60 / 172
    assert long.windows(seconds).stride == 2 * BAR and long.windows(0.01).stride == BAR
    long.window_s = BAR / 50
    assert long.windows(None).stride < BAR  # a window of one bar can only move on within it
    with pytest.raises(MicroMusicGenError, match="must be shorter than the model's window"):
        long.windows(60.0)


# Tempo in and out.


def test_streamed_chunks_are_the_clip() -> None:
    plain = beat_model().codec
    model = beat_model(playing(plain))
    model.set_generation_params(bars=3, bpm=140.0, seed=2)
    whole = model.generate_unconditional(1)
    chunks = list(model.stream(chunk_s=0.3))
    joined = torch.cat(chunks, dim=-1)
    assert len(chunks) > 3 and joined.shape == whole.shape
    inside = slice(2000, -2000)  # a clip's ends are continued in other ways
    error, size = (float(x[..., inside].square().mean().sqrt()) for x in (joined - whole, whole))
    assert error < 1e-2 * size, error / size  # at the top of the band two filters differ
    model.set_generation_params(bars=2, loop=True)
    with pytest.raises(MicroMusicGenError, match="a loop closes when a clip is whole"):
        next(iter(model.stream()))


@pytest.mark.parametrize("bpm", [100.0, 172.0])
def test_a_prompt_is_heard_at_its_tempo(model: MicroMusicGen, bpm: float) -> None:
    """A prompt that was played at a tempo gives the codes that it was made of."""
    codes = torch.randint(0, 8, (1, 4, 32), generator=torch.Generator().manual_seed(1))
    codes = codes[:, :1].expand(-1, 4, -1)
    wav = loops.decode_beats(PulseCodec(), codes, TIME, GenerationParams(bpm=bpm))
    model.set_generation_params(bars=2, bpm=bpm, seed=1)
    _, made = model.generate_continuation(wav, 32000, return_tokens=True)
    assert (made[..., :31] == codes[..., :31]).float().mean() > 0.95


# Releases and files.


@pytest.fixture
def run(home: Path) -> Path:
    return write_beat_runs()


def test_runs_and_releases_remember_how_they_count(run: Path, tmp_path: Path) -> None:
    assert read_parts("beefab12").beat_time == TIME
    release = export("beefab12", tmp_path / "rel")
    config = json.loads((release / "config.json").read_text())
    assert config["frames_per_beat"] == 16
    assert config["tempo"] == {"beats_per_bar": 4, "bpm": 172.0, "bpm_range": [140.0, 180.0]}
    assert ReleaseConfig.from_dict(config).beat_time == TIME and read_parts(release).beat_time == TIME
    facts = describe(release)
    assert (facts["time"], facts["bpm"], facts["bpm_range"]) == ("beats", 172.0, "140 to 180")
    assert config["codec"]["beats"] == {"frames_per_beat": 16, "bpm": 172.0}
    card = (release / "README.md").read_text()
    assert "of music at 140 to 180 BPM" in card and "--bars 4 --bpm 172 --loop" in card
    with pytest.raises(MicroMusicGenError, match="audiocraft knows no beat time"):
        export("beefab12", tmp_path / "other", form="audiocraft")


def test_releases_of_clock_time_are_what_they_were(home: Path, tmp_path: Path) -> None:
    models.write_models()
    config = json.loads((export("jungle", tmp_path / "rel") / "config.json").read_text())
    assert "tempo" not in config and config["frames_per_beat"] is None and "beats" not in config["codec"]


def test_files_of_loops(run: Path, tmp_path: Path) -> None:
    request = ClipRequest(
        release="beefab12", num_clips=2, out=tmp_path, bars=2, bpm=140.0, loop=True, repeats=3, seed=4
    )
    written = write_clips(request)
    length = round(8 * 60 / 140 * 32000)
    for path in written.files:
        samples, rate = soundfile.read(path)
        assert rate == 32000 and len(samples) == 3 * length
        np.testing.assert_array_equal(samples[:length], samples[length : 2 * length])
    assert "loops of 2 bars at 140 BPM, 3.429 s, 3 times" in written.lines()
    assert written.plain()["num_samples"] == length
    with pytest.raises(MicroMusicGenError, match="--duration 2 and --bars 2 are two lengths"):
        replace(request, duration_s=2.0)


def test_a_release_of_clock_time_asked_for_bars(home: Path, tmp_path: Path) -> None:
    models.write_models()
    request = ClipRequest(release="jungle", num_clips=1, out=tmp_path, bars=1, bpm=240.0, seed=4)
    written = write_clips(request)
    assert soundfile.info(written.files[0]).frames == 32000
    assert "knows nothing of beats: 1 bars at 240 BPM are just 1.000 s" in " ".join(written.lines())
    for change in ({"bpm": None}, {"loop": True}):
        with pytest.raises(MicroMusicGenError, match="trained in clock time"):
            write_clips(replace(request, overwrite=True, **change))


def test_the_command_line(run: Path, tmp_path: Path) -> None:
    from micro_musicgen.cli import app

    out = tmp_path / "clips"
    arguments = ["generate", "beefab12", "-n", "1", "--bars", "2", "--bpm", "200", "--loop", "--repeats", "2"]
    found = CliRunner().invoke(app, [*arguments, "--seed", "1", "--out", str(out), "--json"])
    assert found.exit_code == 0, found.output
    plain = json.loads(found.stdout)
    assert soundfile.info(plain["files"][0]).frames == 2 * round(8 * 60 / 200 * 32000)
    assert (plain["bpm"], plain["beats"], plain["loop"]) == (200.0, 8, True)


def test_a_clip_as_it_is_made(run: Path, tmp_path: Path) -> None:
    """Streamed with a prompt of another tempo, whole beats of it, and as long as the file would be."""
    import contextlib

    from micro_musicgen.engine.listen import stream_pcm

    prompt = tmp_path / "prompt_100bpm.wav"
    soundfile.write(prompt, 0.1 * np.random.default_rng(0).standard_normal(4 * 32000), 32000)
    request = ClipRequest(release="beefab12", num_clips=1, bars=2, bpm=140.0, seed=1, prompt=prompt)
    heard: list[bytes] = []
    stream_pcm(request, lambda rate: contextlib.nullcontext(heard.append))
    assert sum(map(len, heard)) == 2 * round(8 * 60 / 140 * 32000)
    written = write_clips(replace(request, out=tmp_path / "clips"))
    assert soundfile.info(written.files[0]).frames == round(8 * 60 / 140 * 32000)
    for change, words in (({"loop": True}, "a loop closes when"), ({"repeats": 2}, "can't be played 2 times")):
        with pytest.raises(MicroMusicGenError, match=words):
            stream_pcm(replace(request, **change), lambda rate: contextlib.nullcontext(heard.append))


def test_a_config_with_a_tempo_that_is_none() -> None:
    plain = ReleaseConfig(lm={}, codec={}, sample_rate=32000, window_s=8.0, frames_per_beat=16).to_dict()
    assert ReleaseConfig.from_dict(plain).beat_time == BeatTime(frames_per_beat=16)
    with pytest.raises(MicroMusicGenError, match="no usable tempo"):
        _ = ReleaseConfig.from_dict({**plain, "tempo": {"speed": 3}}).beat_time
    with pytest.raises(MicroMusicGenError, match="tempo 5000"):
        _ = ReleaseConfig.from_dict({**plain, "tempo": {"bpm": 5000.0}}).beat_time
