"""The LM solver through Dora, on codes of real (synthesised) audio: stages, state, resume, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from solver_runs import LM_DEBUG, losses

from micro_musicgen import checkpoints, references
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.lm import LMSolver
from micro_musicgen.solvers.optimise.schedule import build_schedule
from micro_musicgen.solvers.running.clockplan import trial_updates_per_s
from micro_musicgen.train import get_solver, main, run_xp

FIVE_EPOCHS = [*LM_DEBUG, "optim.epochs=5", "generate.every=never", "optim.lr=3e-3"]


def checkpoint(folder: Path) -> dict[str, Any]:
    return checkpoints.load(folder / references.CHECKPOINT_NAME)


def test_a_run_leaves_history_plot_samples_and_summary(toy_home: Path) -> None:
    folder = run_xp(list(LM_DEBUG))
    history = json.loads((folder / "history.json").read_text())
    assert len(history) == 2 and {"train", "valid", "generate"} <= set(history[-1])
    assert history[-1]["train"]["ce"] == pytest.approx(
        sum(history[-1]["train"][f"ce_q{k}"] for k in range(1, 5)) / 4, rel=1e-5
    )
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0001_0.wav", "0002_0.wav"]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["dataset"], summary["updates_done"], summary["total_updates"]) == ("toy", 8, 8)
    assert references.resolve("toy", solver="musicgen").path == folder
    assert references.resolve(folder.name).path == folder


def test_running_a_finished_run_again_changes_nothing(toy_home: Path) -> None:
    folder = run_xp(list(LM_DEBUG))
    before = checkpoint(folder)
    run_xp(list(LM_DEBUG))
    assert checkpoint(folder)["history"] == before["history"]


@pytest.mark.parametrize("killed_at", [pytest.param(n, marks=pytest.mark.slow) for n in (0, 3, 9)] + [4, 19])
def test_killed_and_resumed_is_bit_equal_to_not_killed(
    killed_at: int, toy_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_xp(FIVE_EPOCHS)
    whole = checkpoint(folder)
    shutil.rmtree(folder)

    train_step = LMSolver.train_step

    def dying(self: LMSolver, step: int) -> Any:
        if step == killed_at:
            raise KeyboardInterrupt
        return train_step(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(LMSolver, "train_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run_xp(FIVE_EPOCHS)
    torch.manual_seed(99)  # what happens to the process in between is of no account
    run_xp(FIVE_EPOCHS)
    again = checkpoint(folder)
    assert losses(again["history"]) == losses(whole["history"])
    for part in ("model", "best"):
        ours, theirs = (state["best"]["model"] if part == "best" else state["model"] for state in (again, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_best_weights_are_the_averaged_ones_and_reproduce_the_best_score(toy_home: Path) -> None:
    folder = run_xp(FIVE_EPOCHS)
    state = checkpoint(folder)
    assert state["best"]["score"] == min(epoch["valid"]["ce"] for epoch in state["history"])
    xp = main.experiment(FIVE_EPOCHS)
    with xp.enter():
        solver = get_solver(xp.cfg)
        solver.restore()
        solver.model.load_state_dict(state["best"]["model"])
        solver.model.eval()
        with torch.no_grad():
            assert solver.valid()["ce"] == pytest.approx(state["best"]["score"], rel=1e-6)


def test_training_reduces_the_loss(toy_home: Path) -> None:
    history = checkpoint(run_xp(FIVE_EPOCHS))["history"]
    assert history[-1]["valid"]["ce"] < history[0]["valid"]["ce"]


def test_a_failing_generate_stage_costs_the_clip_and_nothing_else(
    toy_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: LMSolver) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(LMSolver, "generate", fails)
    folder = run_xp([*LM_DEBUG, "seed=5"])
    assert checkpoint(folder)["training"]["updates_done"] == 8
    assert "disk full" in (folder / "solver.log.0").read_text()


def test_never_is_never_also_on_the_last_epoch(toy_home: Path) -> None:
    folder = run_xp([*LM_DEBUG, "generate.every=never", "evaluate.every=never", "seed=6"])
    assert not (folder / "samples").exists()
    assert all(set(epoch) == {"train", "valid"} for epoch in checkpoint(folder)["history"])


def test_kept_copies_are_pruned(toy_home: Path) -> None:
    folder = run_xp([*FIVE_EPOCHS, "checkpoint.save_every=1", "checkpoint.keep_last=2"])
    assert sorted(path.name for path in folder.glob("checkpoint_*.th")) == ["checkpoint_4.th", "checkpoint_5.th"]


def test_minutes_set_the_plan_once_and_extend_a_finished_run(toy_home: Path) -> None:
    argv = [*LM_DEBUG, "seed=7", "generate.every=never"]
    folder = run_xp([*argv, "optim.minutes=0.01"])
    first = checkpoint(folder)
    assert first["plan"]["segments"] == [first["training"]["updates_done"]]
    assert run_xp([*argv, "optim.minutes=0.01"]) == folder, "minutes are outside the signature"
    second = checkpoint(folder)
    assert second["plan"]["segments"][0] == first["plan"]["segments"][0] and len(second["plan"]["segments"]) == 2
    assert second["history"][: len(first["history"])] == first["history"]


def test_measuring_the_speed_leaves_no_trace(toy_home: Path) -> None:
    states = []
    for measured in (False, True):
        xp = main.experiment([*LM_DEBUG, "seed=8"])
        with xp.enter():
            solver = get_solver(xp.cfg)
            if measured:
                trial_updates_per_s(solver)
            solver.schedule = build_schedule(xp.cfg.schedule, solver.plan)
            for _ in range(3):
                solver.training_update()
            states.append(solver.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_continue_from_takes_the_best_weights_of_another_run(toy_home: Path) -> None:
    source = run_xp(list(LM_DEBUG))
    xp = main.experiment([*LM_DEBUG, f"continue_from=//sig/{source.name}"])
    with xp.enter():
        solver = get_solver(xp.cfg)
        assert not solver.restore()
        best = checkpoint(source)["best"]["model"]
        assert all(torch.equal(value, best[name]) for name, value in solver.model.state_dict().items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("transformer_lm.card=32", "codes per codebook: codec 64, LM 32 (transformer_lm.card=64)"),
        ("transformer_lm.n_q=2", "codebooks: codec 4, LM 2 (transformer_lm.n_q=4)"),
        ("compression_model_checkpoint=//sig/00000000", "00000000"),
        ("compression_model_checkpoint=null", "no codec given"),
        ("compression_model_n_q=2", "compression_model_n_q=2 is not supported"),
        ("device=tpu", "tpu"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(override: str, message: str, toy_home: Path) -> None:
    with pytest.raises(MicroMusicGenError) as caught:
        run_xp([*LM_DEBUG, override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_torn_checkpoint_without_another_is_named_and_left_alone(toy_home: Path) -> None:
    folder = run_xp([*LM_DEBUG, "seed=9", "generate.every=never", "checkpoint.keep_previous=false"])
    path = folder / references.CHECKPOINT_NAME
    torn = path.read_bytes()[:1000]
    path.write_bytes(torn)
    with pytest.raises(MicroMusicGenError, match="damaged"):
        run_xp([*LM_DEBUG, "seed=9", "generate.every=never"])
    assert path.read_bytes() == torn


def test_codes_made_while_training_are_those_of_the_crops(toy_home: Path) -> None:
    xp = main.experiment([*LM_DEBUG, "tokens.store=false", "label=live"])
    with xp.enter():
        solver = get_solver(xp.cfg)
        codes = solver.crops["train"].batch(3, 2)
        assert codes.shape == (2, 4, 50) and torch.equal(codes, solver.crops["train"].batch(3, 2))
        ranks = [solver.crops["train"].batch(3, 2, rank, 2) for rank in (0, 1)]
        assert torch.equal(torch.cat(ranks), codes)
    folder = run_xp([*LM_DEBUG, "tokens.store=false", "generate.every=never", "label=live"])
    assert checkpoint(folder)["training"]["updates_done"] == 8


def test_evaluation_measures_the_distance_of_generated_codes(toy_home: Path) -> None:
    quiet = ("generate.every=never", "evaluate.every=1", "dataset.evaluate.num_samples=4", "seed=11")
    history = json.loads((run_xp([*LM_DEBUG, *quiet]) / "history.json").read_text())
    for epoch in history:
        assert epoch["evaluate"]["ce"] == pytest.approx(epoch["valid"]["ce"], rel=1e-6)
        assert epoch["evaluate"]["frechet"] > 0
