"""A diffusion run's diagnostics: numbers by closed forms, and pictures that no odd input can break."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from micro_musicgen.data.frame_crops import FrameBatch
from micro_musicgen.diffusion.denoiser import Denoiser, Told
from micro_musicgen.diffusion.mel_frames import make_mel_16k
from micro_musicgen.diffusion.model import LatentDiffusion, Loss
from micro_musicgen.diffusion.objective import loss_weight, objectives
from micro_musicgen.diffusion.samplers import samplers, times
from micro_musicgen.diffusion.schedule import make_schedule
from micro_musicgen.metrics.spectral import MEL
from micro_musicgen.solvers import diffusion_plots
from micro_musicgen.solvers.diffusion_diagnostics import Looked, Trace, by_timestep, curves, plain, snr_table, spread
from micro_musicgen.solvers.diffusion_plots import Diagnostics, _band_ticks, _Shown

SCHEDULE = make_schedule("cosine", 100)
CHANNELS, FRAMES = 4, 16


class Share(Denoiser):
    """Says `share` times the mean of all v that are possible for x0 = 0.8 u + 0.6 w, told u; u, w are unit noise."""

    share = 1.0

    def hear(self, told: Told) -> Any:
        return told.aligned

    def forward(self, x: torch.Tensor, t: torch.Tensor, heard: Any) -> torch.Tensor:
        a, s = (values[:, None, None] for values in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
        known = 0.8 * heard
        x0 = known + 0.36 * a / (0.36 * a.square() + s.square()) * (x - a * known)
        return self.share * (a * x - x0) / s


def model_of(objective: str | None = "v", weight: str = "min_snr") -> LatentDiffusion:
    model = LatentDiffusion(
        Share(),
        channels=CHANNELS,
        condition_channels=CHANNELS,
        schedule=SCHEDULE,
        objective=objectives.get(objective) if objective else None,
        loss_weight=loss_weight(weight, objective or "v"),
    )
    for normaliser in (model.normaliser, model.condition_normaliser):
        assert normaliser is not None
        normaliser.fitted.fill_(True)
    return model


def drawn(number: int, frames: int = FRAMES) -> tuple[torch.Tensor, Told]:
    told = torch.randn(number, CHANNELS, frames)
    return 0.8 * told + 0.6 * torch.randn(number, CHANNELS, frames), Told(told)


def batch_of(target: torch.Tensor) -> FrameBatch:
    nothing = (0,) * len(target)
    return FrameBatch(target, None, None, nothing, nothing, nothing)


def solver_of(folder: Path, **changed: Any) -> Any:
    history = [
        {"train": {"loss": 1.0, "mse": 1.5}, "valid": {"loss": 1.1, "mse": 1.6, "mse_k1": 1.7, "mse_k2": 1.5}},
        {"train": {"loss": 0.5, "mse": math.nan}, "valid": {"loss": None, "mse": 0.9, "mse_k1": 1.0, "mse_k2": 0.8}},
    ]
    return SimpleNamespace(**{"model": model_of(), "target": None, "history": history, "folder": folder, **changed})


def numbers_of(folder: Path, epoch: int = 2) -> dict[str, Any]:
    """Gives the JSON, which has to be strict: no NaN in it."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (folder / "plots" / f"{epoch:04d}_diagnostics.json").read_text()
    return json.loads(text, parse_constant=refuse)


def test_bins_hold_means_and_deviations_of_their_clips_and_empty_ones_are_gaps() -> None:
    looked = Looked()
    prediction = torch.tensor([[[1.0, -1.0]], [[2.0, -2.0]], [[5.0, 5.0]]])
    errors = {"mse": torch.tensor([0.5, 0.7, 2.0]), "loss": torch.tensor([1.0, 2.0, 3.0])}
    looked.add(Loss(t=torch.tensor([3, 4, 99]), prediction=prediction, **errors))
    table = by_timestep(looked, model_of(), SCHEDULE)
    assert table is not None
    assert (table["first_t"][:2], table["last_t"][:2], table["last_t"][-1]) == ([0, 5], [4, 9], 99)
    assert table["clips"] == [2, *[0] * 18, 1]
    assert table["mse"][0] == pytest.approx(0.6) and table["loss"][0] == pytest.approx(1.5)
    assert table["prediction_std"][0] == pytest.approx(math.sqrt((1 + 4) / 2)), "a deviation of all frames together"
    assert table["prediction_std"][-1] == 0 and math.isnan(table["mse"][1])
    assert table["fair_std"][0] == pytest.approx(math.sqrt(1 - 0.6)) and table["fair_std"][-1] == 0


@pytest.mark.parametrize("name", ["v", "eps", "x0"])
def test_targets_of_unit_data_have_unit_deviation_under_every_objective(name: str) -> None:
    looked = Looked([50], [0.5], [0.5], [0.5])
    table = by_timestep(looked, model_of(name), SCHEDULE)
    assert table is not None and table["target_std"] == pytest.approx([1.0] * 20, abs=1e-9)


def test_a_network_that_says_the_mean_is_as_sure_as_its_error_allows_and_a_louder_one_is_surer() -> None:
    torch.manual_seed(0)
    found = {}
    for share in (1.0, 1.3):
        model, looked = model_of(), Looked()
        model.denoiser.share = share  # type: ignore[assignment]
        clean, told = drawn(400, 256)
        looked.add(model.loss(clean, told, t=torch.arange(400) % 100))
        found[share] = by_timestep(looked, model, SCHEDULE)
    fair, loud = ({k: torch.tensor(v) for k, v in (found[share] or {}).items()} for share in (1.0, 1.3))
    torch.testing.assert_close(fair["prediction_std"].square(), fair["fair_std"].square(), atol=0.03, rtol=0)
    assert (loud["prediction_std"] > loud["fair_std"] + 0.05)[2:].all()


def test_bins_are_never_more_than_steps() -> None:
    schedule = make_schedule("cosine", 7)
    table = by_timestep(Looked([0, 6, 6], [1.0] * 3, [1.0] * 3, [1.0] * 3), model_of(), schedule)
    assert table is not None
    assert table["first_t"] == table["last_t"] == list(range(7)) and table["clips"] == [1, 0, 0, 0, 0, 0, 2]


def test_the_snr_table_is_the_schedules() -> None:
    looked = Looked([0, 50, 99], [1.0] * 3, [1.0] * 3, [1.0] * 3)
    table = snr_table(looked, model_of(), SCHEDULE)
    assert table is not None and table["t"] == list(range(100))
    snr = SCHEDULE.snr(torch.arange(100)).double()
    torch.testing.assert_close(torch.tensor(table["log10_snr"]).double(), snr.log10(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(table["weight"]).double(), snr.clamp(max=5) / (snr + 1), atol=1e-6, rtol=0)
    assert table["unit_t"] == int(snr.log().abs().argmin()) == 49
    cleanest, middle, noisiest = snr[[0, 50, 99]].tolist()
    expected = {"clips": 3, "mean": (cleanest + middle + noisiest) / 3, "median": middle}
    assert table["looked_at"] == pytest.approx({**expected, "min": noisiest, "max": cleanest}, rel=1e-5)
    assert "looked_at" not in (snr_table(Looked(), model_of(), SCHEDULE) or {})


@pytest.mark.parametrize("calls", [1, 2, 9, 20, 800])
def test_a_trace_counts_every_call_and_keeps_a_few_guesses_spread_over_them(calls: int) -> None:
    trace = Trace()
    for place in range(calls):
        trace(calls - 1 - place, torch.tensor([[[-2.0, 2.0]]]), torch.full((3, 1, 2), float(place)))
    assert trace.numbers() == {"t": list(range(calls))[::-1], "x_std": [2.0] * calls, "x0_std": [0.0] * calls}
    assert len(trace.kept) <= 16
    moments = trace.moments(6)
    steps = [t for t, _ in moments]
    assert len(moments) == min(6, max(1, calls - 1)) and steps[0] == calls - 1
    assert all(float(x0[0, 0]) == calls - 1 - t and x0.shape == (1, 2) for t, x0 in moments)
    gaps = [here - then for here, then in zip(steps, steps[1:], strict=False)]
    assert calls < 9 or (steps[-1] > 0 and max(gaps) <= calls / 4)


def test_curves_keep_an_epoch_each_and_plain_numbers_are_strict_json() -> None:
    history = solver_of(Path()).history + [{"train": None}, {"valid": {"mse_k10": 1, "note": "text"}}]
    found = curves(history)
    assert list(found) == ["loss", "mse", "mse_k1", "mse_k2", "mse_k10"]
    assert found["loss"] == {"train": [1.0, 0.5, None, None], "valid": [1.1, None, None, None]}
    assert found["mse"]["train"] == [1.5, None, None, None]
    assert plain({1: (math.inf, [2, None, "a"])}) == {"1": [None, [2, None, "a"]]}
    assert spread([], 3) == [] and spread([1, 2], 3) == [1, 2] and spread(range(9), 3) == [0, 4, 8]


def test_everything_that_is_shown_is_in_the_json_and_the_latest_picture_lies_in_the_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    solver = solver_of(tmp_path)
    model, diagnostics = solver.model, Diagnostics(SCHEDULE)
    clean, told = drawn(3)
    diagnostics.add(model.loss(clean, told))
    diagnostics.begin()
    diagnostics.add(model.loss(clean, told))
    made = {}
    for number in (1, 2, 4):

        def guess(x: torch.Tensor, t: int) -> torch.Tensor:
            return clean  # an oracle

        made[number] = samplers.get("ddim")(
            guess,
            torch.randn_like(clean),
            SCHEDULE,
            times(SCHEDULE, 10, "trailing"),
            noise=lambda: torch.zeros(()),
            on_step=diagnostics.on_step(number),
        )
    diagnostics.draw(solver, batch_of(clean), made)
    numbers = numbers_of(tmp_path)
    assert {"curves", "timesteps", "snr", "sampling", "denoising"} <= set(numbers)
    assert sum(numbers["timesteps"]["clips"]) == 3, "begin forgets the validation before"
    assert list(numbers["sampling"]) == ["1", "2", "4"]
    assert numbers["sampling"]["2"]["t"] == times(SCHEDULE, 10, "trailing")
    assert numbers["sampling"]["2"]["x0_std"] == pytest.approx([numbers["sampling"]["2"]["original_std"]] * 10)
    rows = numbers["denoising"]["rows"]
    assert list(rows) == ["1", "4"], "the fewest and the most"
    assert [picture["title"] for picture in rows["4"]][0] == "t = 99" and len(rows["4"]) == 6 + 2
    assert [picture["title"] for picture in rows["4"]][-2:] == ["result", "original"]
    assert rows["1"][-2]["distance"] == 0 and rows["1"][-1]["distance"] is None
    picture = tmp_path / "plots" / "0002_diagnostics.png"
    assert picture.read_bytes() == (tmp_path / "diffusion.png").read_bytes()
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.size == (1600, 2 * 370 + 2 * 250 + 40)
    assert diagnostics.traces == {}


def test_a_regression_has_neither_steps_nor_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion_plots, "draw_figure", lambda numbers, strip: None)
    solver = solver_of(tmp_path, model=model_of(None))
    diagnostics = Diagnostics(SCHEDULE)
    clean, told = drawn(2)
    diagnostics.add(Loss(torch.ones(2), torch.ones(2), torch.zeros(2, dtype=torch.long), clean))
    diagnostics.on_step(1)
    diagnostics.draw(solver, batch_of(clean), {1: clean + 1})
    numbers = numbers_of(tmp_path)
    assert set(numbers) == {"epoch", "objective", "curves", "denoising"}
    assert numbers["objective"] is None
    row = numbers["denoising"]["rows"]["1"]
    assert [picture["title"] for picture in row] == ["result", "original"]
    deviations = clean[0].std(dim=1, correction=0)
    assert row[0]["distance"] == pytest.approx(float((1 / deviations).mean()), rel=1e-5)


def test_nan_is_a_gap_and_what_fails_has_no_panel(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        frame_rate, sample_rate = 50.0, 32000

        def decode(self, frames: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no sound")

    solver = solver_of(tmp_path, target=Broken())
    diagnostics = Diagnostics(SCHEDULE)
    nan = torch.full((2, CHANNELS, FRAMES), math.nan)
    diagnostics.add(Loss(torch.full((2,), math.nan), torch.full((2,), math.inf), torch.tensor([0, 99]), nan))
    trace = diagnostics.on_step(1)
    trace(99, nan, nan)
    diagnostics.draw(solver, batch_of(nan), {1: nan})
    numbers = numbers_of(tmp_path)
    assert "denoising" not in numbers and "denoising strip failed" in caplog.text
    assert numbers["timesteps"]["mse"] == numbers["timesteps"]["prediction_std"] == [None] * 20
    assert numbers["sampling"] == {"1": {"t": [99], "x_std": [None], "x0_std": [None], "original_std": None}}
    assert (tmp_path / "diffusion.png").is_file()

    solver.target = None
    diagnostics.draw(solver_of(tmp_path, history=[]), batch_of(nan), {1: nan})
    assert numbers_of(tmp_path, 0)["denoising"]["rows"]["1"][0] == {"title": "result", "distance": None}


def test_with_nothing_to_show_there_is_no_picture(tmp_path: Path) -> None:
    solver = solver_of(tmp_path, history=[], model=model_of(None))
    Diagnostics(SCHEDULE).draw(solver, batch_of(torch.zeros(0, CHANNELS, FRAMES)), {})
    assert set(numbers_of(tmp_path, 0)) == {"epoch", "objective"}
    assert not list(tmp_path.rglob("*.png"))


class Tone:
    """Frames that sound as a sine of `hertz`, as loud as their first value says."""

    frame_rate, sample_rate, hop_samples = 50.0, 32000, 640

    def __init__(self, hertz: float) -> None:
        self.hertz = hertz
        self.lengths: list[int] = []

    def decode(self, frames: torch.Tensor) -> torch.Tensor:
        self.lengths.append(frames.shape[-1])
        seconds = torch.arange(frames.shape[-1] * 640) / 32000
        return frames[:, :1, :1] * torch.sin(2 * math.pi * self.hertz * seconds)


@pytest.mark.parametrize(("label", "hertz"), [("0.25", 250), ("1", 1000), ("4", 4000), ("12", 12000)])
def test_spectra_are_decibels_of_the_decoded_sound_with_frequencies_where_the_axis_says(
    label: str, hertz: float
) -> None:
    model, tone = model_of(), Tone(hertz)
    model.normaliser.mean.fill_(1.0)
    model.normaliser.std.fill_(2.0)
    softer, louder = torch.full((CHANNELS, 500), 2.0), torch.full((CHANNELS, 500), 20.0)
    shown = _Shown(SimpleNamespace(model=model, target=tone), softer)  # type: ignore[arg-type]
    assert tone.lengths == [100], "two seconds at most"
    middle = shown.original[:, shown.original.shape[1] // 2]
    assert abs(float(middle.argmax()) - _band_ticks(MEL, 32000)[label]) <= 1
    assert float(shown.image(louder).max() - shown.original.max()) == pytest.approx(20, abs=0.01)
    assert 0 < (shown.picture("x", louder).distance or 0) <= 20
    torch.testing.assert_close(shown.undone(torch.full((CHANNELS, 500), 0.5)), softer)


def test_what_residual_models_denoise_is_shown_with_what_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion_plots, "draw_figure", lambda numbers, strip: None)
    model, clean = model_of(), torch.randn(2, CHANNELS, FRAMES)
    model.residual = True
    model.normaliser.mean.fill_(1.0)
    model.normaliser.std.fill_(2.0)
    solver = solver_of(tmp_path, model=model, told=lambda batch, used: Told(batch.target * used[0] / 4))
    diagnostics, lacks = (
        Diagnostics(SCHEDULE),
        {number: model.normaliser(clean * (1 - number / 4)) for number in (1, 3)},
    )
    for number, x0 in lacks.items():
        hear = diagnostics.on_step(number)
        for t in (99, 50, 0):
            hear(t, x0, x0)
    diagnostics.draw(solver, batch_of(clean), {})
    numbers = numbers_of(tmp_path)
    for number, x0 in lacks.items():
        assert numbers["sampling"][str(number)]["original_std"] == pytest.approx(float(x0.std(correction=0)), rel=1e-5)
        guesses = numbers["denoising"]["rows"][str(number)][:-1]
        assert [picture["title"] for picture in guesses] == ["t = 99", "t = 50"]
        assert [picture["distance"] for picture in guesses] == pytest.approx([0, 0], abs=1e-5)


def test_mel_frames_are_shown_as_they_are_without_making_up_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    mel = make_mel_16k(None)
    monkeypatch.setattr(type(mel), "decode", None)
    model = LatentDiffusion(
        Share(),
        channels=80,
        condition_channels=0,
        schedule=SCHEDULE,
        objective=None,
        loss_weight=loss_weight("uniform", "v"),
    )
    model.normaliser.fitted.fill_(True)
    frames = torch.full((80, 7), math.log(10.0))
    shown = _Shown(SimpleNamespace(model=model, target=mel), frames)  # type: ignore[arg-type]
    torch.testing.assert_close(shown.original, torch.full((80, 7), 20.0))
    axes = shown.axes()
    assert (
        axes.width == pytest.approx(7 * 256 / 16000) and axes.low < axes.high and set(axes.ticks) == {"0.25", "1", "4"}
    )
