"""The conditioner `bars`: what it says, what it refuses, and that training and playing hear the same."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fixtures_models as models
import pytest
import torch
from hydra import compose, initialize_config_dir

from micro_musicgen import paths
from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.conditioners.bars import BarsConditioner, BarsSettings, make_bars
from micro_musicgen.conditioners.base import Surroundings
from micro_musicgen.conditioners.fusing import fuse, read_fuser
from micro_musicgen.contracts import BeatTime, GenerationParams
from micro_musicgen.data.beat_grid import BarPlace, settle_beats
from micro_musicgen.data.crop_batch import Crops
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.engine.inputs import OwnConditioner
from micro_musicgen.engine.loops import told_bars
from micro_musicgen.engine.request import Wish, make_request
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import build_lm, lm_config
from micro_musicgen.lm.losses import code_losses
from micro_musicgen.solvers.lm_conditions import RunConditions

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from beat_models import TIME, WINDOW_S

AROUND = Surroundings(dim=32, num_codebooks=4, card=64)


def bars_config(**changes: Any) -> dict[str, Any]:
    """Facts of an LM that listens to bars, as `conditioner=bars` makes it."""
    config = deepcopy(models.lm_config())
    config["fuser"] = {**config["fuser"], "sum": ["bars"]}
    config["conditioners"] = {"bars": {"model": "bars", "bars": {"beats_per_bar": 4, "max_bars": 8, **changes}}}
    config["classifier_free_guidance"] = {"training_dropout": 0.1, "inference_coef": 1.0}
    return config


def test_an_embedding_is_that_of_the_beat_plus_that_of_the_loop() -> None:
    bars = BarsConditioner(BarsSettings(4, 8), AROUND)
    found, mask = bars(bars.prepare([(0, 4), (3, 0), None, (1, 99)]))
    assert found.shape == (4, 1, 32) and mask.tolist() == [[True], [True], [False], [True]]
    torch.testing.assert_close(found[0, 0], bars.beats.weight[0] + bars.loops.weight[4])
    torch.testing.assert_close(found[1, 0], bars.beats.weight[3] + bars.loops.weight[0])
    torch.testing.assert_close(found[3, 0], bars.beats.weight[1] + bars.loops.weight[8])  # told as the longest
    null, null_mask = bars.null(1)
    assert (found[2] == null[0]).all() and (mask[2] == null_mask[0]).all()
    assert found[0].requires_grad


@pytest.mark.parametrize("bars", [(4, 0), (-1, 2), (0, -1), (0.5, 1), "0", (1,), (True, 2, 3)])
def test_bars_that_are_none_are_refused(bars: Any) -> None:
    with pytest.raises(MicroMusicGenError, match="bars are .* the first below 4"):
        BarsConditioner(BarsSettings(4, 8), AROUND).prepare([bars])


def test_settings_are_checked() -> None:
    with pytest.raises(MicroMusicGenError, match="it has no 'beat'"):
        make_bars({"beat": 3}, AROUND)
    with pytest.raises(MicroMusicGenError, match="beats_per_bar 0"):
        make_bars({"beats_per_bar": 0}, AROUND)


def test_the_shipped_config_builds_and_takes_the_meter_of_the_run() -> None:
    data = [f"datasource.{key}=/nowhere" for key in ("train", "valid", "evaluate", "generate")]
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        cfg = compose(
            "config",
            ["solver=musicgen/debug", "conditioner=bars", "dset.time=beats", "dset.beats_per_bar=3", *data]
            + ["datasource.max_sample_rate=32000", "datasource.max_channels=1"],
        )
    settle_beats(cfg)
    config = lm_config(cfg)
    model = build_lm(config, window_s=1.0)
    bars = model.condition_provider.conditioners["bars"]
    assert bars.settings.beats_per_bar == 3 and config["fuser"]["sum"] == ["bars"]


def run_conditions(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> RunConditions:
    from micro_musicgen.data.manifest import Track
    from micro_musicgen.solvers import lm_conditions

    config = bars_config(**changes)
    provider = build_lm(config, window_s=1.0).condition_provider
    monkeypatch.setattr(lm_conditions, "known_tracks", lambda cfg, split: [Track("/a.wav", 2.0, 32000)])
    section = {"time": "beats", "frames_per_beat": 16, "beats_per_bar": 4, "align": "bar"}
    cfg: Any = SimpleNamespace(seed=3, get=lambda name: section if name == "dset" else None)
    return RunConditions(cfg, config, provider)


def batch(places: list[int], bars: tuple[BarPlace | None, ...]) -> Crops:
    codes = torch.zeros(len(places), 4, 8, dtype=torch.int64)
    return Crops(codes, (0,) * len(places), tuple(places), (None,) * len(places), bars)


def test_crops_are_told_their_place_and_now_and_then_not_their_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = run_conditions(monkeypatch, loop_dropout=0.25)
    told = conditions.said(batch([-1, -2, -3], (BarPlace(0, 4), None, BarPlace(2, 0))), "valid")
    assert told == {"bars": [(0, 4), None, (2, 0)]}
    places = list(range(2000))
    told = conditions.said(batch(places, (BarPlace(1, 4),) * 2000), "train")["bars"]
    assert set(told) == {None, (1, 4), (1, 0)}
    assert 0.07 < told.count(None) / 2000 < 0.13 and 0.19 < told.count((1, 0)) / 1800 < 0.31
    assert told[7:9] == conditions.said(batch([7, 8], (BarPlace(1, 4),) * 2), "train")["bars"]
    assert conditions.said(batch([5], ()), "train") == {"bars": [None]}


def test_clock_time_has_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_musicgen.data import beat_grid

    monkeypatch.setattr(beat_grid.BeatGrid, "parse", classmethod(lambda cls, config: None))
    with pytest.raises(MicroMusicGenError, match="clock time has none; add dset.time=beats"):
        run_conditions(monkeypatch)


# Playing.


@pytest.fixture(scope="module")
def model() -> MicroMusicGen:
    config = bars_config()
    lm = models.make_lm(config)
    with torch.no_grad():
        for table in (
            lm.condition_provider.conditioners["bars"].beats,
            lm.condition_provider.conditioners["bars"].loops,
        ):
            table.weight.mul_(4)
    codec = EncodecCodec(models.make_codec_model(), models.codec_config())
    made = MicroMusicGen(
        config,
        lm.state_dict(),
        codec,
        window_s=WINDOW_S,
        device="cpu",
        beat_time=TIME,
        conditioner=OwnConditioner(lm.condition_provider),
    )
    made.lm = lm  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize(
    ("params", "told"),
    [
        (GenerationParams(bars=4, loop=True), (0, 4)),
        (GenerationParams(bars=4), (0, 0)),
        (GenerationParams(duration_s=6 * 60 / 172, loop=True), (0, 0)),  # six beats are no bars
        (GenerationParams(duration_s=8 * 60 / 172, loop=True), (0, 2)),
    ],
)
def test_clips_start_with_a_bar_and_are_told_how_long_they_loop(
    params: GenerationParams, told: tuple[int, int]
) -> None:
    assert told_bars(TIME, params) == told and told_bars(None, params) is None


def test_training_and_playing_hear_the_same(model: MicroMusicGen) -> None:
    """The engine's logits under what a loop is told are those of the training pass under the same."""
    from micro_musicgen.engine.scoring import step_logits

    model.set_generation_params(bars=2, loop=True, seed=1, loop_tries=0)
    request = make_request(model, Wish(params=model.params, num_clips=2))
    codes = torch.randint(0, 64, (2, 4, 64), generator=torch.Generator().manual_seed(0))
    lm = model.lm  # type: ignore[attr-defined]
    provider = lm.condition_provider
    tensors = provider(provider.prepare({"bars": [(0, 2), (0, 2)]}))
    fused = fuse(read_fuser(bars_config()), tensors, device=torch.device("cpu"), dtype=torch.float32)
    torch.testing.assert_close(request.conditions.added, fused.added)
    logits = step_logits(model.runner, codes, request.conditions)
    losses = torch.nn.functional.cross_entropy(logits.permute(0, 3, 1, 2), codes, reduction="none")
    # While training, the frames that a codebook says after the last one of the first are not counted.
    played = torch.stack([losses[:, k, : 64 - k].mean() for k in range(4)])
    with torch.no_grad():
        trained = code_losses(lm, codes, fused)
    torch.testing.assert_close(played, trained, atol=1e-4, rtol=1e-4)


def test_what_is_told_changes_what_is_played(model: MicroMusicGen) -> None:
    made = []
    for loop in (True, False):
        model.set_generation_params(bars=2, loop=loop, seed=1, loop_tries=0)
        made.append(model.codes(1))
    assert (made[0] != made[1]).any()
    other = BeatTime(frames_per_beat=16, bpm=100.0, bpm_range=(90.0, 110.0))
    assert told_bars(other, model.params) == (0, 0)


def test_a_release_keeps_the_conditioner(home: Path, tmp_path: Path) -> None:
    from beat_models import beat_section

    from micro_musicgen.release.export import export

    codec = models.write_codec_run()
    config = bars_config()
    manifests = paths.manifests_dir("jungle")
    models.write_manifests(manifests)
    full = {
        **deepcopy(config),
        "solver": "musicgen",
        "sample_rate": 32000,
        "channels": 1,
        "compression_model_checkpoint": f"//sig/{codec.name}",
        "compression_model_n_q": None,
        "dataset": {"segment_duration": WINDOW_S},
        "datasource": {"train": str(manifests / "train"), "valid": str(manifests / "valid")},
        "dset": beat_section(),
        "seed": 1,
    }
    models.write_run("beefab13", "musicgen", full, models.make_lm(config))
    release = export("beefab13", tmp_path / "rel")
    found = MicroMusicGen.get_pretrained(release, device="cpu")
    assert found.generate_loop(1, bars=1, bpm=200).shape == (1, 1, round(4 * 60 / 200 * 32000))
    assert found.conditioner.provider.names("bars") == ("bars",)  # type: ignore[attr-defined]
