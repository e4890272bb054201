"""The grids that ship: what they schedule, on what, and that looking at one makes nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dora import Explorer
from dora.conf import SlurmConfig
from dora.explore import Herd, Launcher
from fixtures_models import write_codec_run
from omegaconf import DictConfig

from micro_musicgen import paths, storage
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.scales import SCALES
from micro_musicgen.train import main

_choices: Any = import_module("micro_musicgen.grids._choices")
GRIDS = sorted(
    path.stem for path in Path(import_module("micro_musicgen.grids").__file__ or "").parent.glob("[a-z]*.py")
)


class Listing:
    """Stands where Dora's shepherd does and composes nothing: a run is its overrides."""

    main = main

    def get_sheep_from_argv(self, argv: list[str]) -> Any:
        """One run, of which Dora keeps those with different signatures."""
        return SimpleNamespace(xp=SimpleNamespace(sig=" ".join(argv), argv=argv))


def scheduled(grid: str) -> Herd:
    """What a grid would run."""
    main.dora.dir = paths.runs_dir()
    herd = Herd()
    import_module(f"micro_musicgen.grids.{grid}").explorer(Launcher(Listing(), SlurmConfig(), herd))
    return herd


def overrides(herd: Herd) -> list[dict[str, str]]:
    """The overrides of every run."""
    return [dict(argument.split("=", 1) for argument in sheep.xp.argv) for sheep in herd.sheeps.values()]


def last_config(herd: Herd) -> DictConfig:
    """The config of the last run, composed as Dora would."""
    return main.experiment(list(herd.sheeps.values())[-1].xp.argv).cfg


def write_dataset(name: str) -> None:
    keys = "".join(f"  {key}: /nowhere/{name}/{key}\n" for key in ("train", "valid", "evaluate", "generate"))
    text = f"# @package _global_\ndatasource:\n  max_sample_rate: 32000\n  max_channels: 1\n{keys}"
    storage.write_text(paths.dset_dir() / "audio" / f"{name}.yaml", text)


def write_finished_codec(signature: str, dataset: str, **changes: Any) -> None:
    folder = write_codec_run(signature)
    facts = {"solver": "compression", "dataset": dataset, "updates_done": 5, "total_updates": 5}
    storage.write_json(folder / "summary.json", {**facts, "cardinality": 64, "num_codebooks": 4, **changes})


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_choices.DATASET_VARIABLE, raising=False)
    monkeypatch.delenv(_choices.CODEC_VARIABLE, raising=False)


def test_there_are_the_promised_grids_and_each_has_an_explorer() -> None:
    assert set(GRIDS) == {"micro_scale", "codec_32khz", "demo", "lite_ab", "lm_backbone"}
    for grid in GRIDS:
        assert isinstance(import_module(f"micro_musicgen.grids.{grid}").explorer, Explorer)


def test_micro_scale_is_every_scale_at_every_rate_on_the_codec_there_is(home: Path) -> None:
    write_dataset("breaks")
    write_finished_codec("c0dec000", "breaks")
    herd = scheduled("micro_scale")
    found = {(run["model/lm/model_scale"], float(run["optim.lr"])) for run in overrides(herd)}
    assert found == {(scale, lr) for scale in SCALES for lr in (3e-4, 1e-3, 3e-3)} and len(herd.sheeps) == 15
    assert sorted(len(array) for array in herd.job_arrays if array) == [3] * len(SCALES)
    cfg = last_config(herd)
    assert cfg.transformer_lm.dim == list(SCALES.values())[-1].dim and cfg.optim.lr == 3e-3
    assert cfg.compression_model_checkpoint == "//sig/c0dec000"
    assert (cfg.transformer_lm.card, cfg.transformer_lm.n_q) == (64, 4)


def test_codec_grid_is_the_product_of_its_choices(home: Path) -> None:
    write_dataset("breaks")
    herd = scheduled("codec_32khz")
    found = {(run["seanet.n_filters"], run["rvq.n_q"], run["rvq.bins"]) for run in overrides(herd)}
    assert len(herd.sheeps) == len(found) == 18
    cfg = last_config(herd)
    assert (cfg.solver, cfg.sample_rate) == ("compression", 32000)
    assert (cfg.seanet.n_filters, cfg.rvq.n_q, cfg.rvq.bins) == (32, 8, 1024)


def test_dataset_is_named_or_the_only_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MicroMusicGenError, match="micro-musicgen prepare"):
        _choices.dataset()
    write_dataset("a")
    assert _choices.dataset() == "a"
    write_dataset("b")
    with pytest.raises(MicroMusicGenError, match="several data sets: a, b"):
        _choices.dataset()
    monkeypatch.setenv(_choices.DATASET_VARIABLE, "b")
    assert _choices.dataset() == "b"
    monkeypatch.setenv(_choices.DATASET_VARIABLE, "c")
    with pytest.raises(MicroMusicGenError, match="known: a, b"):
        _choices.dataset()


def test_codec_is_named_or_the_only_finished_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_finished_codec("c0dec001", "other")
    write_finished_codec("c0dec002", "breaks", updates_done=4)
    with pytest.raises(MicroMusicGenError, match="dora grid codec_32khz"):
        _choices.codec("breaks")
    write_finished_codec("c0dec003", "breaks", num_codebooks=2)
    assert _choices.codec("breaks") == _choices.GridCodec("//sig/c0dec003", 64, 2)
    write_finished_codec("c0dec004", "breaks")
    with pytest.raises(MicroMusicGenError, match="several codecs .* c0dec003, c0dec004"):
        _choices.codec("breaks")
    monkeypatch.setenv(_choices.CODEC_VARIABLE, "//sig/c0dec004")
    assert _choices.codec("breaks").reference == "//sig/c0dec004"
    monkeypatch.setenv(_choices.CODEC_VARIABLE, "c0dec002")
    with pytest.raises(MicroMusicGenError, match="not trained to its end"):
        _choices.codec("breaks")


@pytest.mark.parametrize(
    "arguments, expected",
    [(["grid", "demo"], False), (["grid", "demo", "--dry_run"], True), (["grid", "demo", "-C"], True), (["-r"], False)],
)
def test_a_look_or_a_cancel_is_told_from_a_call(arguments: list[str], expected: bool) -> None:
    assert _choices.only_looking(arguments) is expected


def test_demo_makes_nothing_for_a_look(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dora", "grid", "demo", "--dry_run"])
    assert not scheduled("demo").sheeps
    assert "the first real call makes" in capsys.readouterr().err
    assert not (home / "dset").exists() and not (home / "sounds").exists() and not (home / "xps").exists()


@pytest.mark.slow
def test_demo_runs_where_nothing_is_prepared(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != paths.HOME_VARIABLE}
    environment |= {"DORA_LOCAL": "1", "DORA_LOCAL_JOBS": "2"}

    def demo(*flags: str) -> str:
        command = (sys.executable, "-m", "dora", "-P", "micro_musicgen", "grid", "demo", *flags)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=600, **pipes)
        assert done.returncode == 0, done.stdout[-3000:]
        return re.sub(r"\x1b\[[\d;]*m", "", done.stdout)

    demo("--dry_run", "--no_monitoring")
    said = demo("-i", "0.05")
    assert "making 2 minutes of breaks" in said and "training a toy codec" in said
    assert re.search(r"^3 .* COM .* 300/300 ", said, re.MULTILINE)
    again = demo("--no_monitoring")
    assert "making" not in again and len(re.findall(r"^\d .* COM ", again, re.MULTILINE)) == 4
