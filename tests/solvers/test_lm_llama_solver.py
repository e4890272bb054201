"""A llama through Dora: trained, killed, resumed, continued, exported, described and played."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from solver_runs import LM_DEBUG, losses

from micro_musicgen import checkpoints, references
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.release.export import export
from micro_musicgen.release.info import describe
from micro_musicgen.release.load import load_release
from micro_musicgen.solvers.lm import LMSolver
from micro_musicgen.train import run_xp

LLAMA = (*LM_DEBUG, "model=lm/llama_lm", "transformer_lm.num_kv_heads=1", "transformer_lm.qk_norm=true")
QUIET = (*LLAMA, "generate.every=never")


def checkpoint(folder: Path) -> dict[str, Any]:
    return checkpoints.load(folder / references.CHECKPOINT_NAME)


def test_a_run_learns_and_leaves_what_every_run_leaves(toy_home: Path) -> None:
    folder = run_xp([*LLAMA, "optim.epochs=4", "optim.lr=3e-3"])
    history = json.loads((folder / "history.json").read_text())
    assert history[-1]["valid"]["ce"] < history[0]["valid"]["ce"]
    assert {path.suffix for path in (folder / "samples").iterdir()} == {".wav"}
    assert checkpoint(folder)["training"]["updates_done"] == 16


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_bit_equal_to_not_killed(
    optimizer: str, toy_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*QUIET, f"optim.optimizer={optimizer}", "transformer_lm.dropout=0.1", "optim.accumulate=2",
            "checkpoint.every_minutes=0.0001"]  # fmt: skip
    folder = run_xp(argv)
    whole = checkpoint(folder)
    shutil.rmtree(folder)
    train_step = LMSolver.train_step

    def dying(self: LMSolver, step: int) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return train_step(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(LMSolver, "train_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run_xp(argv)
    torch.manual_seed(99)
    run_xp(argv)
    again = checkpoint(folder)
    assert losses(again["history"]) == losses(whole["history"])
    assert all(torch.equal(again["best"]["model"][n], x) for n, x in whole["best"]["model"].items())


def test_batch_sizes_are_found_by_themselves(toy_home: Path) -> None:
    folder = run_xp([*QUIET, "dataset.batch_size=auto", "optim.effective_batch=4", "optim.epochs=1", "seed=4"])
    settled = json.loads((folder / "summary.json").read_text())
    assert settled["updates_done"] == 4


def test_evaluation_is_that_of_every_model(toy_home: Path) -> None:
    argv = [*QUIET, "evaluate.every=1", "dataset.evaluate.num_samples=4", "optim.epochs=1", "seed=11"]
    (epoch,) = json.loads((run_xp(argv) / "history.json").read_text())
    assert epoch["evaluate"]["ce"] == pytest.approx(epoch["valid"]["ce"], rel=1e-6)
    assert epoch["evaluate"]["frechet"] > 0


@pytest.fixture(scope="module")
def run(toy_home: Path) -> Path:
    return run_xp([*QUIET, "seed=5"])


def test_it_goes_on_from_its_own_weights_and_not_from_a_transformers(run: Path, toy_home: Path) -> None:
    from micro_musicgen.train import get_solver, main

    xp = main.experiment([*QUIET, f"continue_from=//sig/{run.name}", "label=more"])
    with xp.enter():
        solver = get_solver(xp.cfg)
        assert not solver.restore()
        best = checkpoint(run)["best"]["model"]
        assert all(torch.equal(value, best[name]) for name, value in solver.model.state_dict().items())
    with pytest.raises(MicroMusicGenError) as caught:
        run_xp([*LM_DEBUG, f"continue_from=//sig/{run.name}", "label=other"])
    assert "\n" not in str(caught.value)


def test_from_takes_the_backbone_and_its_shape(run: Path, toy_home: Path) -> None:
    from micro_musicgen.train import main
    from micro_musicgen.training import TrainingRequest, lm_overrides

    request = TrainingRequest(dataset="toy", start_from=f"//sig/{run.name}")
    cfg = main.experiment(lm_overrides(request, "//sig/c0dec000", None)).cfg
    assert cfg.lm_model == "llama" and cfg.continue_from == f"//sig/{run.name}"
    shape = cfg.transformer_lm
    assert (shape.dim, shape.num_layers, shape.num_kv_heads, shape.qk_norm) == (32, 2, 1, True)


def test_a_release_plays_the_same_and_says_what_it_is(run: Path, toy_home: Path, tmp_path: Path) -> None:
    release = export(str(run), tmp_path / "release")
    assert "llama, 2 layers, width 32, 2 heads on 1 of keys and values" in (release / "README.md").read_text()
    facts = describe(release)
    assert (facts["backbone"], facts["heads"], facts["kv_heads"]) == ("llama", 2, 1)
    assert facts["parameters"] == load_release(release).spec.num_parameters
    codes = []
    for reference in (release, f"//sig/{run.name}"):
        model = MicroMusicGen.get_pretrained(reference, device="cpu")
        model.set_generation_params(duration=2.5, seed=3)
        codes.append(model.codes(2))
    assert codes[0].shape == (2, 4, 125) and torch.equal(*codes), "longer than the window: the cache rolls"
    model.set_generation_params(duration=2.5, seed=3)
    chunks = list(model.stream(duration=2.5, chunk_s=0.5))
    assert torch.cat(chunks, dim=-1).shape[-1] == 80_000


@pytest.mark.parametrize("form", ["audiocraft", "transformers"])
def test_forms_that_have_no_llama_refuse_it(form: str, run: Path, toy_home: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MicroMusicGenError, match="audiocraft has no language model llama|unknown release form"
    ) as error:
        export(str(run), tmp_path / form, form=form)
    assert "\n" not in str(error.value) and not (tmp_path / form).exists()
