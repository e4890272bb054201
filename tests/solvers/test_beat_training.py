"""The four steps in beat time on synthesised breaks: tempos, codec, LM over its codes, and loops out of the release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
from omegaconf import OmegaConf
from typer.testing import CliRunner

from micro_musicgen import checkpoints, paths, references
from micro_musicgen.audio.warp import beat_rate
from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.data.manifest import read_manifest
from micro_musicgen.data.prepare import prepare
from micro_musicgen.data.tokens import open_token_store
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.release.export import export
from micro_musicgen.solvers.beat_run import RunTime, codec_warning, known_tracks
from micro_musicgen.solvers.machine import settle
from micro_musicgen.train import get_solver, main, run_xp
from micro_musicgen.training import TrainingRequest, codec_of, codec_overrides, train

BEATS = ("dset.time=beats", "dset.frames_per_beat=16")
CODEC = ("solver=compression/debug", "dset=audio/toy", "num_threads=1", *BEATS)
LM = ("solver=musicgen/debug", "dset=audio/toy", "num_threads=1", *BEATS)


class Heard:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, *_: Any, **__: Any) -> None: ...
    def step(self, *_: Any) -> None: ...
    def stage(self, *_: Any) -> None: ...
    def stop(self) -> None: ...
    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def codec_run(toy_home: Path) -> Path:
    return run_xp([*CODEC, "seed=3"])


@pytest.fixture(scope="module")
def lm_run(codec_run: Path) -> Path:
    return run_xp([*LM, f"compression_model_checkpoint=//sig/{codec_run.name}", "dataset.segment_bars=2"])


def checkpoint(folder: Path) -> dict[str, Any]:
    return checkpoints.load(folder / references.CHECKPOINT_NAME)


def config_of(folder: Path) -> Any:
    return OmegaConf.create(checkpoint(folder)["config"])


def test_a_codec_is_trained_on_whole_beats_at_the_rate_of_the_median_tempo(toy_home: Path, codec_run: Path) -> None:
    tracks = read_manifest(paths.manifests_dir("toy") / "train")
    assert all(track.tempo is not None and track.tempo.is_loop and track.tempo.source == "name" for track in tracks)
    cfg = config_of(codec_run)
    assert 160 <= cfg.dset.bpm <= 176 and cfg.dset.bpm_range[0] <= cfg.dset.bpm <= cfg.dset.bpm_range[1]
    assert cfg.dataset.segment_duration == 0.32 and cfg.dataset.valid.segment_duration == 1.28
    xp = main.experiment([*CODEC, "seed=3"])
    with xp.enter():
        solver: Any = get_solver(xp.cfg)
    assert solver.heard_rate == pytest.approx(beat_rate(cfg.dset.bpm, 10240))
    assert solver.criterion.sample_rate == solver.heard_rate
    assert solver.crops["train"].batch(0, 2).shape == (2, 1, 10240)
    valid = checkpoint(codec_run)["history"][-1]["valid"]
    assert 0 < valid["mel"] < 10
    assert load_codec(codec_run.name).config["beats"] == {"frames_per_beat": 16, "bpm": cfg.dset.bpm}
    clip, rate = soundfile.read(codec_run / "samples" / "original_0.wav")
    assert rate == 32000 and len(clip) == round(4 * 60 / cfg.dset.bpm * 32000)  # played at its tempo


def test_an_lm_learns_whole_bars_of_codes(lm_run: Path, codec_run: Path) -> None:
    cfg = config_of(lm_run)
    assert cfg.dataset.segment_duration == 2.56 and cfg.dset.codec_frames == 16
    (folder,) = (path for path in paths.tokens_dir().glob("toy-train-*") if "pool" not in path.name)
    store = open_token_store(folder)
    assert store.settings.frames_per_beat == 16 and store.codec_hash == load_codec(codec_run.name).content_hash
    for index, track in enumerate(store.tracks):
        assert track.tempo is not None and store.loop_frames(index) == round(track.tempo.beats or 0) * 16
    summary = json.loads((lm_run / "summary.json").read_text())
    assert summary["beat_time"]["frames_per_beat"] == 16
    clip, rate = soundfile.read(next((lm_run / "samples").glob("*.wav")))
    assert len(clip) == round(8 * 60 / cfg.dset.bpm * rate)


def test_a_release_of_it_plays_loops_at_any_tempo(lm_run: Path, tmp_path: Path) -> None:
    release = export(lm_run.name, tmp_path / "rel")
    model = MicroMusicGen.get_pretrained(release, device="cpu")
    assert model.beat_time is not None and model.beat_time.frames_per_beat == 16
    for bpm in (140.0, 172.0, 200.0):
        wav = model.generate_loop(1, bars=2, bpm=bpm)
        assert wav.shape == (1, 1, round(8 * 60 / bpm * 32000)) and bool(wav.isfinite().all())


def test_held_out_codes_are_in_beat_time_when_a_model_is_evaluated(lm_run: Path, tmp_path: Path) -> None:
    from micro_musicgen.evaluation.likelihood import track_nll
    from micro_musicgen.evaluation.sounds import SoundSet, track_codes

    model = MicroMusicGen.get_pretrained(lm_run.name, device="cpu")
    tracks = read_manifest(paths.manifests_dir("toy") / "valid")
    sounds = SoundSet("toy", tuple(tracks), (len(tracks), sum(track.duration for track in tracks)))
    codes = list(track_codes(sounds, model.codec, model.window_s, model.beat_time))
    for track, found in zip(tracks, codes, strict=True):
        assert track.tempo is not None and track.tempo.beats is not None
        assert found.shape[1] == max(128, round(track.tempo.beats) * 16)
    nats, frames = track_nll(model, codes[0])
    assert frames == codes[0].shape[1] and bool(nats.isfinite().all())


def test_codes_made_while_training_are_in_beat_time_too(codec_run: Path) -> None:
    argv = [*LM, f"compression_model_checkpoint=//sig/{codec_run.name}", "dataset.segment_bars=1"]
    batches = {}
    for store in ("true", "false"):
        xp = main.experiment([*argv, f"tokens.store={store}"])
        with xp.enter():
            solver: Any = get_solver(xp.cfg)
        batches[store] = solver.crops["train"].crops(0, 4)
    kept, live = batches["true"], batches["false"]
    assert kept.codes.shape == live.codes.shape == (4, 4, 64)
    assert kept.tracks == live.tracks and kept.bars == live.bars
    inside = slice(16, 48)  # near its edges a crop alone sounds otherwise
    assert float((kept.codes == live.codes)[..., inside].float().mean()) > 0.9


def test_a_codec_of_another_time_is_measured_and_said(codec_run: Path) -> None:
    cfg = settle(main.experiment([*LM, "compression_model_checkpoint=//sig/c0dec000"]).cfg)
    cfg.dset.bpm, cfg.dset.bpm_range = 170.0, [160.0, 176.0]
    time, tracks = RunTime.of(cfg), known_tracks(cfg, "valid")
    assert codec_warning(load_codec(codec_run.name), time, tracks) is None
    clock = load_codec("c0dec000")
    line = codec_warning(clock, time, tracks)
    assert line is not None and "trained in clock time" in line and "\n" not in line
    assert codec_warning(clock, None, tracks) is None
    assert "trained in beat time (16 frames a beat)" in str(codec_warning(load_codec(codec_run.name), None, tracks))
    cfg.dset.frames_per_beat = 32
    assert "16 frames a beat, this run has 32" in str(
        codec_warning(load_codec(codec_run.name), RunTime.of(cfg), tracks)
    )


def test_a_solver_without_beat_time_says_so(toy_home: Path) -> None:
    xp = main.experiment(["solver=diffusion_decoder/debug", "dset=audio/toy", *BEATS])
    with xp.enter(), pytest.raises(MicroMusicGenError, match="diffusion_decoder knows no beat time"):
        get_solver(xp.cfg)


@pytest.mark.slow
def test_train_takes_the_four_steps(toy_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("optim.epochs=1", "optim.updates_per_epoch=2", "generate.every=never", "num_threads=1")
    sizes = ("dataset.batch_size=2", "dataset.valid.num_samples=2", "quantiser.bank_vectors_per_code=1")
    request = TrainingRequest(
        dataset="toy", minutes=None, scale="nano", time="beats", overrides=small, lm_overrides=("dataset.batch_size=2",)
    )
    assert codec_of(request) is None, "the debug codec is of another size"
    codec_argv = codec_overrides(request, None)
    assert codec_argv[3:5] == ["dset.time=beats", "dset.frames_per_beat=16"]
    codec = run_xp([*codec_argv, *sizes, "rvq.bins=64", "seanet.n_filters=2", "seanet.dimension=8"])
    assert codec_of(request) == f"//sig/{codec.name}"
    assert codec_of(TrainingRequest(dataset="toy")) is None, "a codec of beat time is none for clock time"
    assert codec_of(TrainingRequest(dataset="toy", time="beats", frames_per_beat=32)) is None
    heard = Heard()
    shape = ("transformer_lm.dim=32", "transformer_lm.num_heads=2", "transformer_lm.num_layers=2")
    lm_small = (*request.lm_overrides, *shape, "dataset.segment_bars=2", "dataset.valid.num_samples=2")
    folder = train(TrainingRequest(**{**vars(request), "lm_overrides": lm_small}), heard)  # type: ignore[arg-type]
    cfg = config_of(folder)
    assert cfg.compression_model_checkpoint == f"//sig/{codec.name}" and cfg.dset.time == "beats"
    assert list(cfg.conditioners) == ["bars"] and "the model listens to bars" in heard.said
    player = MicroMusicGen.get_pretrained(folder.name, device="cpu")
    assert player.generate_loop(1, bars=3, bpm=172.0).shape == (1, 1, round(12 * 60 / 172 * 32000))
    assert any("tempo of" in line and "loops" in line for line in heard.said)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"time": "bars"}, "unknown time 'bars'"),
        ({"frames_per_beat": 32}, "--frames-per-beat 32 is for beat time"),
        ({"time": "beats", "frames_per_beat": 20}, "--frames-per-beat 20 is not one of 16, 32, 64"),
    ],
)
def test_requests_that_can_not_be_met(toy_home: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(MicroMusicGenError, match=words):
        TrainingRequest(dataset="toy", **wrong)


def test_prepare_finds_tempos_and_keeps_them(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.cli import app

    write_breaks(tmp_path / "sounds", seed=0, minutes=0.3)
    report = prepare(tmp_path / "sounds", "told", in_beats=True)
    assert report.tempos is not None and report.to_dict()["tempos"]["sources"] == {"name": len(report.tracks)}
    assert any("tempo of" in line for line in report.summary_lines())
    from micro_musicgen.data import beat_tempos

    monkeypatch.setattr(beat_tempos, "find_tempo", lambda *_, **__: pytest.fail("a tempo was looked for twice"))
    again = prepare(tmp_path / "sounds", "told", in_beats=True)
    assert [track.tempo for track in again.tracks] == [track.tempo for track in report.tracks]
    monkeypatch.undo()
    monkeypatch.setenv(paths.HOME_VARIABLE, str(home))
    arguments = ["prepare", str(tmp_path / "sounds"), "--name", "told", "--bpm", "85"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert "(given" in found.output and "next: micro-musicgen train told --time beats" in found.output
    tempos = [t.tempo for t in read_manifest(paths.manifests_dir("told") / "train")]
    assert all(tempo is not None and abs(tempo.bpm - 85) < 3 for tempo in tempos)
    with pytest.raises(MicroMusicGenError, match="5 BPM is no tempo of a sound"):
        prepare(tmp_path / "sounds", "told", bpm=5.0)


@pytest.mark.slow
def test_a_dry_run_says_what_it_costs(toy_home: Path) -> None:
    from micro_musicgen.cli import app

    arguments = ["train", "toy", "--time", "beats", "--minutes", "1", "--scale", "nano", "--dry-run", "--json"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    plan = json.loads(found.stdout)
    assert "dset.time=beats" in plan["lm"]["argv"] and plan["lm"]["steps"] > 0


def test_a_llama_of_its_own_scale_is_trained_by_its_name(toy_home: Path) -> None:
    from micro_musicgen.training import _shape_overrides

    assert _shape_overrides(TrainingRequest(dataset="toy", scale="melformer", backbone="llama")) == [
        "model=lm/llama_lm",
        "model/lm/model_scale=melformer",
    ]
    with pytest.raises(MicroMusicGenError, match="unknown scale 'melformer'"):
        TrainingRequest(dataset="toy", scale="melformer")
    with pytest.raises(MicroMusicGenError, match="unknown backbone 'gru'; known: transformer_lm, llama"):
        TrainingRequest(dataset="toy", backbone="gru")
    with pytest.raises(MicroMusicGenError, match="--from x brings its own backbone, so --backbone llama"):
        TrainingRequest(dataset="toy", backbone="llama", start_from="x")
