"""A whole evaluation on tiny models: what it finds, what it leaves out and why, how it goes on, what it refuses."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from fixtures_models import CARD, write_models

from micro_musicgen import cli
from micro_musicgen.audio.io import write_wav
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.engine.scoring import code_cross_entropy
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.evaluation import copying, evaluate
from micro_musicgen.evaluation.clips import MadeClips
from micro_musicgen.evaluation.findings import measures, ordered
from micro_musicgen.evaluation.likelihood import track_nll
from micro_musicgen.evaluation.request import EvaluationRequest
from micro_musicgen.evaluation.subject import Subject

RATE = 32000


def _write_sounds(folder, count, duration_s, seed):
    """Writes bursts of noise in two colours: files called dark_* and bright_*."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind = ("dark", "bright")[number % 2]
        wav = rng.standard_normal(round(duration_s * RATE))
        if kind == "dark":
            wav = np.convolve(wav, np.ones(64) / 8, mode="same")
        pulse = (np.arange(len(wav)) % (RATE // 4)) < RATE // 16
        write_wav(folder / f"{kind}_{number}.wav", (0.05 * wav * (0.1 + pulse)).astype(np.float32), RATE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data home with a model and its codec, and folders of sounds."""
    folder = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICRO_MUSICGEN_HOME", str(folder / "home"))
        write_models()
        _write_sounds(folder / "real", 4, 1.5, 0)
        _write_sounds(folder / "learned", 4, 1.2, 1)
        names = [path.stem for path in sorted((folder / "real").iterdir())]
        lines = ["file,genre", *(f"{name},{name.partition('_')[0]}" for name in names)]
        (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
        yield folder


def _request(place, **changes):
    given = {
        "release": "abcd0123",
        "reference": str(place / "real"),
        "training": str(place / "learned"),
        "num_clips": 3,
        "duration_s": 0.6,
        "out": place / "out",
        "labels_file": place / "labels.csv",
    }
    return EvaluationRequest(**{**given, **changes})


@pytest.fixture
def no_plot(monkeypatch):
    monkeypatch.setattr("micro_musicgen.evaluation.report.plot_rows", lambda *given, **more: None)


@pytest.fixture(scope="module")
def plan(place):
    return evaluate.plan(_request(place))


@pytest.fixture(scope="module")
def report(place, plan):
    return evaluate.evaluate(plan)


def test_every_measure_is_there_or_has_a_reason(place, report):
    found = json.loads((place / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert (found["format"], found["version"]) == ("micro_musicgen_evaluation", 1)
    assert set(found["metrics"]) == set(ordered())
    assert {name for name, finding in found["metrics"].items() if finding is None} == set(found["missing"])
    assert set(found["missing"]) == {"clap_score", "consistency"} and "--text" in found["missing"]["clap_score"]
    assert found["model"]["codec"] and len(found["model"]["hash"]) == 16 and found["reference"]["tracks"] == 4
    assert (place / "out" / "evaluation.png").read_bytes()[:4] == b"\x89PNG"
    table = (place / "out" / "evaluation.txt").read_text(encoding="utf-8")
    for row in report.rows:
        assert row.label in table
        if row.low is not None and "frechet" not in row.name:
            assert row.low - 1e-9 <= row.value <= row.high + 1e-9, row
    assert len(list((place / "out" / "clips").glob("clip_*.wav"))) == 3


def test_the_rows_agree_with_each_other(report):
    rows = {row.name: row for row in report.rows}
    nats = sum(rows[f"nll_q{k}"].value for k in range(1, 5))
    assert rows["bits_per_s"].value == pytest.approx(nats / math.log(2) * 50) and nats / 4 < 2 * math.log(CARD)
    assert rows["bits_per_s"].n == 4 and rows["copies"].n == 3
    details = report.findings["accuracy"].details["log_mel"]
    assert details["real_cross_validated"] == 1 and details["classes"] == {"bright": 8, "dark": 8}


def test_likelihood_is_that_of_the_engine(plan):
    codes = torch.randint(0, CARD, (4, 50), generator=torch.Generator().manual_seed(0))
    nats, frames = track_nll(plan.model, codes)
    assert frames == 50
    assert float(nats.mean()) / 50 == pytest.approx(code_cross_entropy(plan.model, codes[None]), rel=1e-6)
    longer, frames = track_nll(plan.model, torch.cat([codes, codes, codes[:, :3]], dim=1))
    assert frames == 100 and torch.allclose(longer, 2 * nats)


def test_goes_on_with_the_clips_that_are_there(place, plan, report, monkeypatch, no_plot):
    made = []
    codes = MicroMusicGen.codes

    def counted(self, count, **options):
        made.append((options["first_clip"], count))
        return codes(self, count, **options)

    monkeypatch.setattr(MicroMusicGen, "codes", counted)
    (place / "out" / "clips" / "clip_0001.npy").unlink()
    again = evaluate.evaluate(plan)
    assert made == [(1, 1)] and again.facts["clips"]["found_from_before"] == 2
    assert again.rows == report.rows


def test_clips_of_another_request_are_not_mixed(place, report):
    other = evaluate.plan(_request(place, seed=5))
    with pytest.raises(MicroMusicGenError, match="clips of another seed; choose another --out"):
        evaluate.evaluate(other)


def test_a_decoder_makes_other_clips_of_the_same_codes(place, report, no_plot):
    from fixtures_decoders import SIGNATURE, write_decoder_run

    write_decoder_run()
    plan = evaluate.plan(_request(place, decoder=SIGNATURE, out=place / "refined", embedders=("log_mel",)))
    assert plan.model.codec.source.endswith("checkpoint.th")
    evaluate.evaluate(plan)
    plain, refined = (sorted((place / name).rglob("*.wav")) for name in ("out", "refined"))
    assert len(plain) == len(refined) == 3
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(plain, refined, strict=True))
    with pytest.raises(MicroMusicGenError, match="clips of another model; choose another --out"):
        evaluate.evaluate(evaluate.plan(_request(place, out=place / "refined")))


def test_one_broken_measure_costs_no_other(place, plan, report, monkeypatch, no_plot):
    def breaks(subject):
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(measures._entries, "codes", breaks)
    monkeypatch.setitem(measures._entries, "frechet", breaks)
    again = evaluate.evaluate(plan)
    assert again.missing["codes"] == "failed (RuntimeError: two lines)" and again.to_dict()["metrics"]["codes"] is None
    assert set(again.findings) == set(report.findings) - {"codes", "frechet"}


def test_a_planted_copy_is_flagged_and_nothing_else(plan, report):
    def subject(codes, wavs):
        made = MadeClips(codes, wavs, (), 0)
        return Subject(plan.request, plan.model, made, embedders=plan.embedders, reference=plan.reference,
                       training=plan.training)  # fmt: skip

    plain = subject(torch.zeros(1, 4, 30, dtype=torch.long), torch.zeros(1, 1, 19200))
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, CARD, (3, 4, 60), generator=generator)
    codes[1, :, :55] = plain.training_codes[2][:, :55]
    wavs = torch.cat([0.02 * torch.randn(2, 1, 19200, generator=generator), plain.training_clips.wavs[5:6]])
    found = copying.novelty(subject(codes, wavs))
    why = {suspect["clip"]: " ".join(suspect["why"]) for suspect in found.details["suspects"]}
    assert set(why) == {1, 2}
    assert "codes: 1.10 s are track 2 from 0.00 s on" in why[1] and "to track 2" in why[2]
    assert next(row.value for row in found.rows if row.name == "copies") == pytest.approx(2 / 3)


def test_statistics_stand_in_for_the_sounds(place, report, no_plot):
    saved = place / "stats.npz"
    first = evaluate.evaluate(evaluate.plan(_request(place, embedders=("log_mel",), save_statistics=saved)))
    second = evaluate.evaluate(evaluate.plan(_request(place, reference=str(saved), training=None, labels_file=None)))
    wanted, found = ({row.name: row.value for row in each.rows} for each in (first, second))
    assert found["frechet_log_mel_all"] == pytest.approx(wanted["frechet_log_mel_all"], rel=1e-9)
    assert "statistics file" in second.missing["nll"] and "--training" in second.missing["novelty"]
    with pytest.raises(MicroMusicGenError, match="made by embedder log_mel"):
        evaluate.plan(_request(place, reference=str(saved), embedders=("codec",)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": "nowhere"}, "'nowhere' is no folder and no prepared data set"),
        ({"reference": "gone.npz"}, "gone.npz does not exist"),
        ({"reference": "EMPTY"}, "holds no sound that can be read"),
        ({"reference": "SINGLE"}, "gives 1 clip of 0.6 s, and 2 are needed"),
        ({"--embedder": "ears"}, "unknown embedder 'ears'; known: clap, codec, log_mel"),
        ({"--embedder": "clap"}, "embedder clap needs a CLAP model"),
        ({"release": "EMPTY"}, "holds no release"),
        ({"release": "c0dec000"}, "no language model"),
        ({"-n": "1"}, "give -n 2 or more"),
        ({"--text": "a fast beat"}, "trained without text"),
        ({"--split": "half"}, "none of train, valid, both"),
        ({"--labels": "LABELS", "--label": "mood"}, "has no column 'mood' (columns: file, genre)"),
        ({"--prompts": "nothing.txt"}, "nothing.txt does not exist"),
        ({"--duration": "0"}, "duration 0 s"),
    ],
)
def test_bad_input_is_one_line(place, monkeypatch, capfd, changes, said):
    (place / "EMPTY").mkdir(exist_ok=True)
    if not (place / "SINGLE").exists():
        _write_sounds(place / "SINGLE", 1, 0.7, 3)
    made_up = {"EMPTY": place / "EMPTY", "SINGLE": place / "SINGLE", "LABELS": place / "labels.csv"}
    given = {"--reference": str(place / "real"), "--duration": "0.6", "--out": str(place / "none")}
    for name, value in changes.items():
        given["--reference" if name == "reference" else name] = str(made_up.get(value, value))
    release = given.pop("release", "abcd0123")
    pairs = [word for pair in given.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["micro-musicgen", "evaluate", release, *pairs])
    with pytest.raises(SystemExit) as stop:
        cli.run()
    out, err = capfd.readouterr()
    assert stop.value.code == 2 and said in err and len(err.strip().splitlines()) == 1 and not out
    assert not (place / "none").exists()


def test_the_command_plans_and_reports(place, report, monkeypatch, capfd, no_plot):
    words = ["evaluate", "abcd0123", "--reference", str(place / "real"), "--duration", "0.6", "-n", "3"]
    monkeypatch.setattr(sys, "argv", ["micro-musicgen", *words, "--out", str(place / "cli"), "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        cli.run()
    out = capfd.readouterr().out
    assert stop.value.code == 0 and "real: 4 tracks" in out and "nothing was made" in out
    assert not (place / "cli").exists()
    monkeypatch.setattr(sys, "argv", ["micro-musicgen", *words, "--out", str(place / "out"), "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.run()
    found = json.loads(capfd.readouterr().out)
    assert stop.value.code == 0 and found["clips"]["found_from_before"] == 3 and "novelty" in found["missing"]
