"""Patches of audiocraft.solvers and audiocraft.environment."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from micro_musicgen import paths
from micro_musicgen.upstream import audiocraft_module


def _should_run(every: Any, epoch: int, epochs: int = 4) -> bool:
    cfg = OmegaConf.create({"generate": {"every": every}, "optim": {"epochs": epochs}})
    solver = SimpleNamespace(cfg=cfg, epoch=epoch)
    return bool(audiocraft_module("solvers.base").StandardSolver.should_run_stage(solver, "generate"))


SHOULD_RUN = "audiocraft.solvers.base:StandardSolver.should_run_stage"


def test_run_stage_never_holds_on_the_last_epoch(unpatched: Any) -> None:
    with unpatched(SHOULD_RUN):
        assert _should_run(None, 4)
        with pytest.raises(TypeError):
            _should_run("never", 2)
    assert not any(_should_run(every, epoch) for every in (None, "never") for epoch in range(1, 5))


def test_run_stage_never_leaves_a_number_alone() -> None:
    assert [_should_run(3, epoch) for epoch in range(1, 5)] == [False, False, True, True]


class Saver:
    """As much of a solver as saving needs."""

    def __init__(self, folder: Path, keep_last: int | None) -> None:
        checkpoint = {"save_every": 1, "save_last": True, "keep_last": keep_last, "keep_every_states": None}
        self.cfg = OmegaConf.create({"fsdp": {"use": False}, "checkpoint": checkpoint})
        self.folder, self.model, self.epoch = folder, torch.nn.Linear(1, 1), 2
        self.logger = logging.getLogger(__name__)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.th"

    def epoch_checkpoint_path(self, epoch: int) -> Path:
        return self.folder / f"checkpoint_{epoch}.th"

    def run(self, epochs: int) -> set[str]:
        for self.epoch in range(2, epochs + 2):
            audiocraft_module("solvers.base").StandardSolver.save_checkpoints(self)
        return {path.stem for path in self.folder.iterdir()}


def test_keep_last_prunes(tmp_path: Path, unpatched: Any) -> None:
    for name in ("before", "after", "all"):
        (tmp_path / name).mkdir()
    with unpatched("audiocraft.solvers.base:StandardSolver.save_checkpoints"):
        assert len(Saver(tmp_path / "before", keep_last=2).run(12)) == 13
    assert Saver(tmp_path / "after", keep_last=2).run(12) == {"checkpoint", "checkpoint_11", "checkpoint_12"}
    assert len(Saver(tmp_path / "all", keep_last=None).run(3)) == 4


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """audiocraft's environment class as it is in a fresh process, and forgotten afterwards."""
    for name in [name for name in os.environ if name.startswith("AUDIOCRAFT_")]:
        monkeypatch.delenv(name)
    found = audiocraft_module("environment").AudioCraftEnvironment
    found.reset()
    yield found
    found.reset()


TEAM_CONFIG = "audiocraft.environment:AudioCraftEnvironment.__init__"


def test_team_config_goes_on_without_a_file(environment: Any, home: Path, unpatched: Any) -> None:
    with unpatched(TEAM_CONFIG), pytest.raises(FileNotFoundError, match="default.yaml"):
        environment.apply_dataset_mappers("a.wav")
    assert environment.apply_dataset_mappers("a.wav") == "a.wav"
    assert environment.get_dora_dir() == paths.runs_dir() == home
    assert environment.resolve_reference_path("plain/path") == Path("plain/path")


def test_team_config_of_ones_own_wins(environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "team.yaml"
    own.write_text("here:\n  dora_dir: /somewhere\n  dataset_mappers:\n    ^/old: /new\n", encoding="utf-8")
    monkeypatch.setenv("AUDIOCRAFT_CONFIG", str(own))
    monkeypatch.setenv("AUDIOCRAFT_CLUSTER", "here")
    assert environment.get_dora_dir() == Path("/somewhere")
    assert environment.apply_dataset_mappers("/old/a.wav") == "/new/a.wav"


def test_cluster_type_without_uname(monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_musicgen.patches.cluster_type import PATCH

    cluster = audiocraft_module("utils.cluster")
    monkeypatch.setattr(cluster, "_guess_cluster_type", cluster._guess_cluster_type)  # put back afterwards
    monkeypatch.delattr(os, "uname", raising=False)
    assert PATCH.needed()
    with pytest.raises(AttributeError, match="uname"):
        cluster._guess_cluster_type()
    PATCH.apply(cluster)
    assert cluster._guess_cluster_type() is cluster.ClusterType.DEFAULT
