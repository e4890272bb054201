"""The grid of backbones: rows that compose, weigh the same, and differ by nothing else."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dora.conf import SlurmConfig
from dora.explore import Herd, Launcher
from fixtures_models import write_codec_run
from omegaconf import DictConfig, OmegaConf

from micro_musicgen import paths, storage
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import build_lm, lm_config
from micro_musicgen.lm.scales import SCALES
from micro_musicgen.train import main

grid: Any = import_module("micro_musicgen.grids.lm_backbone")


class Listing:
    """Stands where Dora's shepherd does and composes nothing."""

    main = main

    def get_sheep_from_argv(self, argv: list[str]) -> Any:
        """One run."""
        return SimpleNamespace(xp=SimpleNamespace(sig=" ".join(argv), argv=argv))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (
        grid._choices.DATASET_VARIABLE, grid._choices.CODEC_VARIABLE, grid.MINUTES_VARIABLE, grid.STEPS_VARIABLE,
        grid.SCALE_VARIABLE,
    ):  # fmt: skip
        monkeypatch.delenv(variable, raising=False)


def scheduled(home: Path) -> tuple[Herd, dict[str, DictConfig]]:
    """The grid's runs as Dora would compose them, on a data set and a codec of 2 x 64 codes."""
    keys = "".join(f"  {key}: /nowhere/{key}\n" for key in ("train", "valid", "evaluate", "generate"))
    text = f"# @package _global_\ndatasource:\n  max_sample_rate: 32000\n  max_channels: 1\n{keys}"
    storage.write_text(paths.dset_dir() / "audio" / "breaks.yaml", text)
    facts = {"solver": "compression", "dataset": "breaks", "updates_done": 5, "total_updates": 5}
    storage.write_json(write_codec_run("c0dec000") / "summary.json", {**facts, "cardinality": 64, "num_codebooks": 2})
    main.dora.dir = paths.runs_dir()
    herd = Herd()
    grid.explorer(Launcher(Listing(), SlurmConfig(), herd))
    found = [main.experiment(sheep.xp.argv).cfg for sheep in herd.sheeps.values()]
    return herd, dict(zip(grid.ROWS, found, strict=True))


def test_rows_differ_by_their_backbone_alone_and_weigh_the_same(home: Path) -> None:
    herd, configs = scheduled(home)
    assert sorted(len(array) for array in herd.job_arrays if array) == [3], "one array"
    facts = {name: grid.explorer.facts(cfg) for name, cfg in configs.items()}
    assert [facts[name]["backbone"] for name in grid.ROWS] == ["transformer_lm", "llama", "llama"]
    assert [facts[name]["kv heads"] for name in grid.ROWS] == ["4", "4", "2"]
    counts = {name: sum(p.numel() for p in build_lm(lm_config(cfg), window_s=8.0).parameters())
              for name, cfg in configs.items()}  # fmt: skip
    assert {name: f"{number / 1e6:.3f}" for name, number in counts.items()} == {n: f["M"] for n, f in facts.items()}
    assert max(counts.values()) < 1.01 * min(counts.values())
    rest = []
    for cfg in configs.values():
        plain = OmegaConf.to_container(cfg)
        assert isinstance(plain, dict)
        alike = {key: plain["transformer_lm"][key] for key in ("dim", "num_layers", "dropout", "attention_dropout")}
        plain["codebooks_pattern"] = plain["codebooks_pattern"]["delay"]
        rest.append({**plain, "lm_model": None, "transformer_lm": alike})
    assert rest[0] == rest[1] == rest[2]
    assert rest[0]["optim"]["minutes"] == 20 and rest[0]["label"] == "equal-time-20"


def test_equal_steps_are_asked_for_by_their_number(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(grid.STEPS_VARIABLE, "500")
    monkeypatch.setenv(grid.SCALE_VARIABLE, "tiny")
    _, configs = scheduled(home)
    for cfg in configs.values():
        assert (cfg.optim.epochs * cfg.optim.updates_per_epoch, cfg.optim.minutes, cfg.label) == (500, None, None)
        assert cfg.transformer_lm.dim == SCALES["tiny"].dim


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"STEPS": "5"}, "STEPS=5 is no number of steps"),
        ({"STEPS": "many"}, "STEPS=many is no number of steps"),
        ({"MINUTES": "soon"}, "MINUTES=soon is no number of minutes"),
        ({"MINUTES": "-1"}, "MINUTES=-1 is no number of minutes"),
        ({"MINUTES": "5", "STEPS": "500"}, "are set; unset one of them"),
    ],
)
def test_lengths_that_are_none(given: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"MICRO_MUSICGEN_GRID_{name}", value)
    with pytest.raises(MicroMusicGenError, match=words):
        grid._length()
