"""bench/diffusion.py's parts: plans, scores, rows, plots, and that a trained thing is found again. No training here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import diffusion  # noqa: E402
import diffusion_collages as collages  # noqa: E402
import diffusion_home as homes  # noqa: E402
import diffusion_memory as memory  # noqa: E402
import diffusion_models as models  # noqa: E402
import diffusion_plot as plots  # noqa: E402
import diffusion_quality as quality  # noqa: E402
import diffusion_speed as speed  # noqa: E402
import diffusion_steps as steps  # noqa: E402
import diffusion_tuning as tuning  # noqa: E402
from common import aim_met, machine, print_table, wanted_parts  # noqa: E402
from pool import WorkerFailure  # noqa: E402

RATE = 32000


@pytest.fixture
def home(tmp_path: Path) -> homes.Home:
    """A home whose codec is known and where nothing else is."""
    found = homes.Home(tmp_path / "data")
    found.notes.mkdir(parents=True)
    (found.notes / "codec").write_text("c0dec000\n")
    return found


def test_a_home_is_known_by_what_decides_it(home: homes.Home, tmp_path: Path) -> None:
    full = homes.FULL
    assert replace(full, threads=3).key == full.key != replace(full, recorded=False).key
    assert homes.home_of(tmp_path, full).data != homes.home_of(tmp_path, homes.QUICK).data
    assert homes.home_of(tmp_path, full, tmp_path / "mine").data == tmp_path / "mine"
    assert home.is_finished and home.codec == "//sig/c0dec000" and home.sets == ("synth",)
    assert not homes.Home(tmp_path / "none").is_finished
    assert {"rvq.q_dropout=true", "quantiser.refit=0.4"} <= set(homes.codec_argv(full)), "no fair peer"
    assert "continue_from=//sig/aa" in homes.refit_argv(full, "aa")
    (home.data / "dset" / "audio").mkdir(parents=True)
    (home.data / "dset" / "audio" / "breaks.yaml").write_text("")
    assert home.sets == ("synth", "breaks")


def test_both_data_sets_make_one_and_keep_their_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_musicgen import paths
    from micro_musicgen.audio.io import write_wav
    from micro_musicgen.data.manifest import read_manifest

    def few(folder: Path, *, seed: int, minutes: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(4):
            rng = np.random.default_rng([seed, number, len(folder.name)])
            write_wav(folder / f"{number}.wav", rng.uniform(-0.5, 0.5, (1, RATE * 2)).astype(np.float32), RATE)

    monkeypatch.setattr("micro_musicgen.audio.synth.write_breaks", few)
    few(tmp_path / "recorded", seed=5, minutes=0)
    monkeypatch.setattr(homes, "RECORDED", tmp_path / "recorded")
    found = homes.Home(tmp_path / "data")
    monkeypatch.setenv(paths.HOME_VARIABLE, str(found.data))
    homes._make_data_sets(found, replace(homes.FULL, valid_fraction=0.3, collage_minutes=1.0))
    assert found.sets == ("synth", "breaks")
    for split in ("train", "valid"):
        wanted = (*found.sets, *(["collages"] if split == "train" else []))
        names = {name: {t.path for t in read_manifest(paths.manifests_dir(name) / split)} for name in wanted}
        both = {track.path for track in read_manifest(paths.manifests_dir("both") / split)}
        assert both == set().union(*names.values()) and all(names.values())


def test_collages_are_of_what_they_are_made_of_and_the_same_for_a_seed(tmp_path: Path) -> None:
    from micro_musicgen.audio.io import load_mono, write_wav

    tone = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE).astype(np.float32)
    write_wav(tmp_path / "tone.wav", 0.5 * tone[None], RATE)
    made = [
        collages.write_collages(tmp_path / name, [tmp_path / "tone.wav"], minutes=0.2, sample_rate=RATE, seed=3)
        for name in ("a", "b")
    ]
    assert len(made[0]) == 2
    for first, second in zip(*made, strict=True):
        wav = load_mono(first, RATE)
        assert np.array_equal(wav, load_mono(second, RATE)) and len(wav) == round(collages.CLIP_S * RATE)
        assert 0.3 < np.abs(wav).max() < 1
        spectrum = np.abs(np.fft.rfft(wav)) ** 2
        hz = np.fft.rfftfreq(len(wav), 1 / RATE)
        assert spectrum[(hz > 200) & (hz < 900)].sum() > 0.95 * spectrum.sum(), "an octave up and down of 440 Hz"


def test_decoder_and_twin_differ_by_objective_and_length_alone(home: homes.Home) -> None:
    plan = models.DecoderPlan(more=("sampling.noise_scale=0.8",))
    ours, twin = (set(models.decoder_argv(home, plan, name)) for name in models.DECODERS)
    lengths = {f"optim.epochs={plan.epochs}", f"optim.epochs={plan.twin_epochs}"}
    assert ours ^ twin == {"diffusion.objective=v", "diffusion.objective=regression", *lengths}
    assert "sampling.noise_scale=0.8" in ours


def test_the_few_codebooks_are_the_first_of_the_same_codec(home: homes.Home) -> None:
    plan = models.LMPlan()
    full, few = (models.lm_argv(home, plan, name) for name in ("full_tiny", "few"))
    assert "model/lm/model_scale=tiny" in full and "model/lm/model_scale=nano" in few
    assert "compression_model_checkpoint=//sig/c0dec000" in full
    assert {"compression_model_checkpoint=//sig/c0dec000:2", "codebooks_pattern.delay.delays=[0,1]"} <= set(few)
    assert {"transformer_lm.n_q=2", "codebooks_pattern.unroll.delays=[0,0]"} <= set(few)
    assert models.lm_argv(home, replace(plan, minutes=plan.minutes + 1), "few") != few


def test_plans_are_experiments(home: homes.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_musicgen import paths
    from micro_musicgen.train import main

    monkeypatch.setenv(paths.HOME_VARIABLE, str(home.data))
    (home.data / "dset" / "audio").mkdir(parents=True)
    lines = "\n".join(f"  {key}: nowhere" for key in ("train", "valid", "evaluate", "generate"))
    text = f"# @package _global_\ndatasource:\n  max_sample_rate: 32000\n  max_channels: 1\n{lines}\n"
    (home.data / "dset" / "audio" / "both.yaml").write_text(text)
    decoder, lm = models.DecoderPlan(), models.LMPlan()
    first, second = models.decoder_argv(home, decoder, "regression"), models.lm_argv(home, lm, "few")
    assert main.experiment(first).sig != main.experiment(second).sig


def test_a_trained_run_is_found_again(home: homes.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever and with however many threads: a run of so many minutes would go on if it were started again."""
    started: list[Any] = []

    def train(argv: list[str], timeout_s: float) -> float:
        data, overrides = json.loads(argv[-1])
        note = models.note_of(homes.Home(Path(data)), overrides)
        note.write_text(json.dumps({"signature": f"{len(started):08d}"}))
        started.append(overrides)
        return 0.0

    monkeypatch.setattr(models, "run_process", train)
    plan, language = models.DecoderPlan(), models.LMPlan()
    assert not models.are_trained(home, plan, language)
    found = models.train_decoders(home, plan)
    assert found == {"diffusion": "//sig/00000000", "regression": "//sig/00000001"}
    assert models.train_decoders(home, replace(plan, threads=4, device="cuda")) == found and len(started) == 2
    assert models.train_lms(home, language).keys() == {"few", "full_nano", "full_tiny"} and len(started) == 5
    assert models.are_trained(home, plan, language) and not models.are_trained(home, replace(plan, lr="1"), language)
    xp = home.data / "xps" / "00000000"
    xp.mkdir(parents=True)
    (xp / "summary.json").write_text(json.dumps({"updates_done": 7}))
    assert models.steps_of(home, "//sig/00000000") == 7


def clips(number: int = 4, seconds: float = 1.0) -> quality.Clips:
    generator = torch.Generator().manual_seed(0)
    wav = 0.3 * torch.randn(number, 1, round(seconds * RATE), generator=generator)
    codes = torch.randint(8, (number, 2, 50), generator=generator)
    return quality.Clips("synth", wav, codes, torch.randn(number, 4, 50, generator=generator), RATE)


class Fake:
    """A codec that gives the originals back, the worse the fewer codebooks it is told."""

    def __init__(self, wanted: quality.Clips, error: float) -> None:
        self.wanted, self.error = wanted, error

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        rows = [next(i for i, each in enumerate(self.wanted.codes) if torch.equal(each[: len(c)], c)) for c in codes]
        return self.wanted.wav[rows] * (1 + self.error / codes.shape[1])

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return self.wanted.wav[: len(latents)]


@pytest.fixture(scope="module")
def table() -> quality.Table:
    held = clips()
    codec: Any = Fake(held, 0.5)
    return quality.compare(codec, {quality.OURS: Fake(held, 0.1), quality.TWIN: Fake(held, 0.2)}, held)


def test_scores_are_what_a_gain_makes_them(table: quality.Table) -> None:
    """A gain of 1.5 everywhere is a log-mel distance of ln 1.5, and no distance at all for the bound."""
    assert table[quality.PLAIN, 1].mean_mel == pytest.approx(np.log(1.5), rel=0.01)
    assert table[quality.OURS, 2].mean_mel == pytest.approx(np.log(1.05), rel=0.01)
    assert table[quality.BOUND, 0].mean_mel == 0 and table[quality.BOUND, 0].frechet == pytest.approx(0, abs=1e-6)
    assert table[quality.OURS, 1].frechet < table[quality.PLAIN, 1].frechet


def test_rows_have_peers_ratios_intervals_and_aims(
    table: quality.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {row.name: row for row in quality.table_rows(table, "", 2)}
    assert set(rows) >= {f"{a}_{b}_k{k}" for a in ("decoder", "regression") for b in ("mel", "frechet") for k in (1, 2)}
    row = rows["decoder_mel_k1"]
    assert row.peer == "plain decoder" and row.ratio == pytest.approx(np.log(1.5) / np.log(1.1), rel=0.02)
    assert aim_met(row) and row.n == 4 and row.spread is not None and row.spread[0] <= row.value <= row.spread[1]
    assert "95 %" in row.note and rows["latents_mel"].peer is None and rows["regression_mel_k1"].aim is None
    worse = {**table, (quality.OURS, 1): table[quality.PLAIN, 1], (quality.PLAIN, 1): table[quality.OURS, 1]}
    assert aim_met({row.name: row for row in quality.table_rows(worse, "", 0)}["decoder_frechet_k1"]) is False
    assert {row.name for row in quality.table_rows(table, "breaks", 0)} >= {"decoder_mel_k2_breaks"}
    quality.print_table("synth", table)
    print_table(list(rows.values()), machine())
    said = capsys.readouterr().out
    assert "plain" in said and "latents" in said and "decoder_mel_k1" in said
    pytest.importorskip("matplotlib")
    assert plots.draw_decoder({"synth": table, "breaks": table}, tmp_path / "a.png").stat().st_size > 5000


def test_settings_are_chosen_on_other_clips_by_the_worse_of_both_distances(tmp_path: Path) -> None:
    first, second = quality.halves(clips(5))
    assert (len(first.wav), len(second.codes)) == (3, 2) and torch.equal(second.wav, clips(5).wav[1::2])

    class Player(Fake):
        """Nearest at noise 0.6; twice the steps help a little."""

        codec: Any = Fake(first, 0.5)

        def with_params(self, *, steps: int, noise_scale: float) -> Player:
            return Player(first, 0.1 + abs(noise_scale - 0.6) + 0.01 / steps)

    decoder: Any = Player(first, 0.4)
    play, found = tuning.tune(decoder, first, quick=False)
    assert play == tuning.Play(20, 0.6) and len(found) == len(tuning.STEPS) * len(tuning.NOISES)
    assert all(share < 1 for share in found[play])
    assert tuning.best({tuning.Play(2, 1.0): (0.5, 1.1), tuning.Play(4, 1.0): (0.9, 0.9)}) == tuning.Play(4, 1.0)
    tuning.write_play(tmp_path / "play.json", play, found)
    assert tuning.read_play(tmp_path / "play.json") == play


def test_few_steps_against_many(table: quality.Table, tmp_path: Path) -> None:
    many, few = table[quality.OURS, 1], table[quality.TWIN, 1]
    curve = {number: (few.frechet / number, few.mean_mel) for number in steps.SWEEP}
    found = steps.Found((many, many, few), many, {"ddim": curve, "dpm": curve})
    rows = {row.name: row for row in steps.rows(found, clips())}
    row = rows["steps20_vs_800"]
    assert row.ratio == 1 and aim_met(row) and row.spread is not None and row.spread[1] > row.spread[0]
    assert row.peer == "ancestral, 800 steps" and "steps20_vs_800_mel" in rows and "frechet_dpm_20" in rows
    far = {row.name: row for row in steps.rows(replace(found, few=(few,), curves={}), clips())}
    assert aim_met(far["steps20_vs_800"]) is False and far["steps20_vs_800"].spread is None
    pytest.importorskip("matplotlib")
    assert plots.draw_steps(found, tmp_path / "b.png").stat().st_size > 5000


def test_calls_are_counted_where_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    row = speed.network_calls("cpu")
    assert (row.value, row.peer_value, row.ratio) == (40, 1600, 40) and aim_met(row)


@pytest.mark.slow
def test_speed_rows_have_their_share_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LATENTS", 32)
    monkeypatch.setattr(speed, "PUBLISHED", "dit_nano")
    monkeypatch.setattr(speed, "STEPS", 2)
    monkeypatch.setattr(speed, "GEMM_SIZE", 64)
    rows = {row.name: row for row in speed.realtime_rows("cpu", 1)}
    assert rows["realtime_factor"].value > 0 and "GFLOP a call" in rows["realtime_factor"].note
    assert 0 < rows["share_of_limit"].value
    assert list(speed.variants("cpu")) == ["eager"] and {"compile", "graph"} < set(speed.variants("cuda:0"))


def test_local_attention_needs_memory_in_proportion() -> None:
    assert memory.full_mb(2048) == 4 * memory.full_mb(1024)
    found = memory.attend("local", 256)
    assert found["seconds"] > 0 and found["mb"] >= 0


def test_the_plot_of_memory_shows_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(memory, "_measured", lambda kind, frames: {"mb": frames / 10, "seconds": 0.1})
    rows = memory.rows(quick=False)
    assert [row.name for row in rows] == [f"local_attention_memory_{frames}" for frames in memory.LENGTHS]
    assert rows[-1].peer_value == pytest.approx(memory.full_mb(65536), rel=1e-4) and "calculated" in rows[-1].note
    assert plots.draw_memory(rows, tmp_path / "c.png").stat().st_size > 5000


def test_quick_takes_the_full_models_where_they_are(home: homes.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    given: Any = SimpleNamespace(quick=True, home=home.data, threads=1, device="cpu")
    found, plans = diffusion.plans_for(given, home.data)
    assert plans.decoder.epochs == models.QUICK_DECODER.epochs and found.data != home.data
    monkeypatch.setattr(models, "are_trained", lambda *_: True)
    found, plans = diffusion.plans_for(given, home.data)
    assert plans.decoder.epochs == models.DecoderPlan().epochs and found.data == home.data
    assert plans.lm.threads == 1


def test_parts_that_need_no_models_train_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise WorkerFailure("trained")

    monkeypatch.setattr(homes, "prepare", refuse)
    plans: Any = SimpleNamespace(home=None)
    assert diffusion.train(homes.Home(Path("none")), plans, ("speed", "memory")).decoders == {}
    with pytest.raises(WorkerFailure):
        diffusion.train(homes.Home(Path("none")), plans, ("decoder",))
    assert wanted_parts("speed,lm", diffusion.PARTS) == ("speed", "lm")
    with pytest.raises(SystemExit):
        wanted_parts("speed,song", diffusion.PARTS)


@pytest.mark.parametrize("script", ["diffusion.py", "diffusion_home.py", "diffusion_memory.py"])
def test_help_is_there_and_loads_no_torch(script: str) -> None:
    code = f"import sys, runpy; sys.argv = ['x', '--help']; sys.path.insert(0, {str(BENCH)!r})\n"
    code += f"try: runpy.run_path({str(BENCH / script)!r}, run_name='__main__')\n"
    code += "except SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
