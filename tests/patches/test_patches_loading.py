"""Patches of everything that reads a torch file: it opens, and what is hidden in it does not run."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.upstream import audiocraft_module

CONFIG = {
    "optim": {"epochs": 2, "lr": 1e-4, "adam": {"betas": [0.9, 0.95]}, "name": "adamw", "rate": "${optim.lr}"},
    "conditioners": None,
    "show": False,
}


class Burglar:
    """Unpickling it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.trace),)


def _training_state() -> dict[str, Any]:
    average: Any = collections.defaultdict(dict)
    average["model"]["weight"] = torch.ones(2)
    return {
        "history": [{"train": {"ce": 1.5}}],
        "xp.cfg": OmegaConf.create(CONFIG),
        "best_state": {"model": {"weight": torch.ones(2)}},
        "fsdp_best_state": {},
        "ema": {"state": average, "count": 1.0},
    }


@pytest.fixture
def state_path(tmp_path: Path) -> Path:
    torch.save(_training_state(), tmp_path / "checkpoint.th")
    return tmp_path / "checkpoint.th"


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Path, Path]:
    """A file, and the trace that is there once something in the file has run."""
    torch.save({"best_state": Burglar(tmp_path / "trace"), "xp.cfg": ""}, tmp_path / "trap.th")
    return tmp_path / "trap.th", tmp_path / "trace"


def test_load_checkpoint_reads_training_state(state_path: Path, unpatched: Any) -> None:
    checkpoint = audiocraft_module("utils.checkpoint")
    with (
        unpatched("audiocraft.utils.checkpoint:load_checkpoint"),
        pytest.raises(pickle.UnpicklingError, match="Weights only load failed"),
    ):
        checkpoint.load_checkpoint(state_path)
    state = checkpoint.load_checkpoint(state_path)
    assert state["xp.cfg"] == OmegaConf.create(CONFIG) and state["xp.cfg"].optim.rate == 1e-4
    assert torch.equal(state["ema"]["state"]["model"]["weight"], torch.ones(2))
    assert state["history"] == [{"train": {"ce": 1.5}}]


def test_load_checkpoint_runs_nothing(trap: tuple[Path, Path]) -> None:
    path, trace = trap
    with pytest.raises(MicroMusicGenError, match="more than weights and a config"):
        audiocraft_module("utils.checkpoint").load_checkpoint(path)
    assert not trace.exists()


def test_the_list_of_types_is_put_away_again(state_path: Path) -> None:
    audiocraft_module("utils.checkpoint").load_checkpoint(state_path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(state_path, weights_only=True)


@pytest.mark.parametrize("name", ["export_lm", "export_encodec"])
def test_load_for_export_reads_training_state(name: str, state_path: Path, tmp_path: Path, unpatched: Any) -> None:
    export = audiocraft_module("utils.export")
    out = tmp_path / "out" / "package.bin"
    with unpatched(f"audiocraft.utils.export:{name}"), pytest.raises(pickle.UnpicklingError):
        getattr(export, name)(state_path, out)
    getattr(export, name)(state_path, out)
    package = torch.load(out, weights_only=True)
    assert torch.equal(package["best_state"]["weight"], torch.ones(2))
    assert OmegaConf.create(package["xp.cfg"]) == OmegaConf.create(CONFIG)


def test_load_for_export_runs_nothing(trap: tuple[Path, Path], tmp_path: Path) -> None:
    path, trace = trap
    with pytest.raises(MicroMusicGenError, match="more than weights and a config"):
        audiocraft_module("utils.export").export_pretrained_compression_model(str(path), tmp_path / "out.bin")
    assert not trace.exists()


def test_load_package_reads_a_config_object(tmp_path: Path, unpatched: Any) -> None:
    """The published diffusion decoders hold one."""
    loaders = audiocraft_module("models.loaders")
    torch.save({"sample_rate": 32000, 0: {"cfg": OmegaConf.create(CONFIG)}}, tmp_path / "mbd.th")
    with unpatched("audiocraft.models.loaders:_get_state_dict"), pytest.raises(pickle.UnpicklingError):
        loaders.load_mbd_ckpt(tmp_path, filename="mbd.th")
    assert loaders.load_mbd_ckpt(tmp_path, filename="mbd.th")[0]["cfg"].optim.epochs == 2


def test_load_package_runs_nothing_from_a_url(
    trap: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unpatched: Any
) -> None:
    path, trace = trap
    loaders = audiocraft_module("models.loaders")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, dst, *a, **k: Path(dst).write_bytes(path.read_bytes())
    )
    with unpatched("audiocraft.models.loaders:_get_state_dict"):
        loaders.load_lm_model_ckpt("https://example.org/trap.th")
    assert trace.exists(), "upstream runs what is in the file"
    trace.unlink()
    with pytest.raises(MicroMusicGenError, match="more than weights and a config"):
        loaders.load_lm_model_ckpt("https://example.org/trap.th")
    assert not trace.exists()
