"""Losses that are no number, optional work that fails, weights from elsewhere, snapshots, early stopping."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from solver_runs import LM_DEBUG

from micro_musicgen import checkpoints, references, snapshots
from micro_musicgen.data.crop_batch import Crops
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.solvers.lm import LMSolver
from micro_musicgen.solvers.optimise.descent import Descent, NotFinite
from micro_musicgen.solvers.running.runfiles import Policy, pick_best
from micro_musicgen.solvers.running.tally import Tally
from micro_musicgen.train import get_solver, main, run_xp

QUIET = ("generate.every=never", "checkpoint.snapshots=[]")


def checkpoint(folder: Path) -> dict[str, Any]:
    return checkpoints.load(folder / references.CHECKPOINT_NAME)


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float = math.nan) -> None:
    losses = LMSolver.losses

    def poisoned(self: LMSolver, crops: Crops, split: str) -> torch.Tensor:
        found = losses(self, crops, split)
        return found * value if self.model.training and self.updates_done in steps else found

    monkeypatch.setattr(LMSolver, "losses", poisoned)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_whose_loss_is_no_number_is_skipped_and_counted(
    value: float, toy_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {1, 2, 6}, value)
    folder = run_xp([*LM_DEBUG, *QUIET, f"label=skips{value}"])
    state = checkpoint(folder)
    assert [epoch["train"]["skipped"] for epoch in state["history"]] == [2, 1]
    assert all(math.isfinite(epoch["train"]["ce"]) for epoch in state["history"])
    assert state["training"]["guard"][0] == 3 and state["training"]["guard"][3] == 0.5**3
    assert all(value.isfinite().all() for value in state["model"].values())
    assert all(value.isfinite().all() for value in state["training"]["ema"]["average"].values())


def test_a_skipped_step_changes_no_weight_and_no_moment(toy_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {2})
    xp = main.experiment([*LM_DEBUG, *QUIET])
    with xp.enter():
        solver = get_solver(xp.cfg)
        solver.schedule = lambda step: 1.0
        for step in range(3):
            if step == 2:
                before = {k: v.clone() for k, v in solver.model.state_dict().items()}
                moments = [v.clone() for s in solver.descent.optimizer.state.values() for v in s.values()]
            solver.training_update()
    assert all(torch.equal(before[name], value) for name, value in solver.model.state_dict().items())
    after = [v for s in solver.descent.optimizer.state.values() for v in s.values()]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(moments, after, strict=True))


def test_too_many_in_a_row_end_the_run_with_the_last_good_state(
    toy_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*LM_DEBUG, *QUIET, "label=nan", "optim.epochs=5", "nonfinite.stop_after=2"]
    with monkeypatch.context() as patched:
        poison(patched, set(range(6, 100)))
        with pytest.raises(NotFinite) as caught:
            run_xp(argv)
    assert caught.value.exit_code == 1
    assert "for 2 steps in a row; stopped at step 6 of 20 with the last good state saved" in str(caught.value)
    assert "optim.lr than 0.001" in str(caught.value) and "\n" not in str(caught.value)
    state = checkpoint(Path(main.experiment(argv).folder))
    assert state["training"]["updates_done"] == 6 and state["training"]["tally"]["counted"] == 2
    assert checkpoint(run_xp(argv))["training"]["updates_done"] == 20, "without the cause the run goes on"


def test_back_off_is_taken_back() -> None:
    model = torch.nn.Linear(2, 2)
    descent = Descent(model, _config())
    for _ in range(2):
        descent.backward(model(torch.ones(1, 2)).sum() * math.nan)
        assert math.isnan(descent.step())
    assert (descent.skipped, descent.factor, descent.set_rate(1.0)) == (2, 0.25, 0.25e-3)
    for _ in range(200):
        descent.backward(model(torch.ones(1, 2)).square().sum())
        descent.step()
    assert descent.factor == 1.0 and not descent.last_was_skipped


def _config() -> Any:
    from omegaconf import OmegaConf

    adam = {"betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0}
    return OmegaConf.create(
        {
            "device": "cpu",
            "autocast": False,
            "autocast_dtype": "bfloat16",
            "optim": {"lr": 1e-3, "optimizer": "adamw", "max_norm": 1.0, "adam": adam},
            "nonfinite": {"stop_after": 20, "backoff": 0.5},
        }
    )


def test_accumulated_parts_give_the_gradient_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    whole, parts = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
    parts.load_state_dict(whole.state_dict())
    data = torch.randn(8, 4)
    one, many = Descent(whole, _config()), Descent(parts, _config())
    one.backward(whole(data).square().mean())
    for piece in data.chunk(4):
        many.backward(parts(piece).square().mean(), 4)
    assert torch.allclose(one.step(), many.step(), rtol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_accumulation_takes_the_crops_that_one_large_batch_would(toy_home: Path) -> None:
    found = []
    for size, accumulate in ((4, 1), (2, 2), (1, 4)):
        # In fp32, also where there are bf16 units: bf16 rounds otherwise at another batch size.
        parts = [f"dataset.batch_size={size}", f"optim.accumulate={accumulate}", "autocast=false", "label=parts"]
        folder = run_xp([*LM_DEBUG, *QUIET, *parts])
        found.append([epoch["train"]["ce"] for epoch in checkpoint(folder)["history"]])
    assert found[1] == pytest.approx(found[0], rel=1e-5) and found[2] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
def test_snapshots_and_best_epochs_hold_weights_that_play(toy_home: Path) -> None:
    folder = run_xp([*LM_DEBUG, "generate.every=never", "optim.epochs=5", "optim.lr=3e-3", "label=snapshots"])
    state = checkpoint(folder)
    steps = sorted(int(path.stem.rpartition("_")[2]) for path in (folder / "snapshots").iterdir())
    assert steps == [1, 2, 4, 8, 14, 20]
    scores = {n + 1: epoch["valid"]["ce"] for n, epoch in enumerate(state["history"])}
    best = sorted(sorted(scores, key=lambda epoch: scores[epoch])[:3])
    assert sorted(path.name for path in (folder / "best").iterdir()) == [f"epoch_{e:04d}.th" for e in best]

    last = snapshots.snapshot(folder.name, "100%")
    assert last == snapshots.snapshot(folder, "1.0") == folder / "snapshots" / "step_00000020.th"
    weights = checkpoints.load(last)["best"]["model"]
    average = state["training"]["ema"]["average"]
    assert all(torch.equal(weights[name], average[name]) for name in average)

    from micro_musicgen import MicroMusicGen

    model = MicroMusicGen.get_pretrained(snapshots.snapshot(folder.name, "20%"), device="cpu")
    model.set_generation_params(duration=0.5, seed=1)
    assert model.generate_unconditional(1).shape == (1, 1, 16000)
    with pytest.raises(MissingFileError, match="kept nothing at 55%; it has 5%, 10%, 20%, 40%, 70%, 100%"):
        snapshots.snapshot(folder.name, "55%")
    with pytest.raises(MicroMusicGenError, match="'soon' is no share"):
        snapshots.snapshot(folder.name, "soon")
    (folder / references.CHECKPOINT_NAME).unlink()
    (folder / "summary.json").unlink()
    assert snapshots.snapshot(folder.name, "20%"), "before the first commit too"


def test_patience_ends_a_run_that_learns_nothing_more(toy_home: Path) -> None:
    argv = [*LM_DEBUG, *QUIET, "optim.lr=0", "optim.epochs=50", "optim.patience=3", "label=patience"]
    folder = run_xp(argv)
    state = checkpoint(folder)
    assert 4 <= len(state["history"]) < 50 and len(state["history"]) - state["best"]["epoch"] == 3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["updates_done"] == summary["total_updates"] == state["plan"]["segments"][-1]
    run_xp(argv)
    assert len(checkpoint(folder)["history"]) == len(state["history"]), "it is finished"


def test_pick_best_prefers_low_scores_then_earlier_epochs() -> None:
    assert pick_best([(2.0, 1), (1.0, 2), (1.0, 3), (math.nan, 4), (3.0, 5)], 3) == [(1.0, 2), (1.0, 3), (2.0, 1)]


def test_snapshot_steps_round_up_and_refuse_what_is_no_share() -> None:
    assert Policy(snapshots=(0.05, 0.1, 1.0)).snapshot_steps(100) == {5, 10, 100}
    assert Policy(snapshots=(0.05, 1.0)).snapshot_steps(3) == {1, 3}
    with pytest.raises(MicroMusicGenError, match=r"checkpoint.snapshots has 1.5"):
        Policy(snapshots=(1.5,))


def test_a_tally_goes_on_where_it_was_saved() -> None:
    whole, first, second = Tally(), Tally(), Tally()
    values = torch.randn(7)
    for tally, part in ((whole, values), (first, values[:3])):
        tally.begin(7)
        for value in part:
            tally.add({"ce": value, "plain": 0.5}, counts=True, seconds=0.1)
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    for value in values[3:]:
        second.add({"ce": value, "plain": 0.5}, counts=True, seconds=0.1)
    assert second.means() == whole.means() and second.end == 7


@pytest.mark.slow
def test_continue_from_takes_releases_of_both_forms_and_refuses_another_codec(toy_home: Path, tmp_path: Path) -> None:
    from micro_musicgen.release.export import export

    source = run_xp([*LM_DEBUG, *QUIET, "label=source"])
    best = checkpoint(source)["best"]["model"]
    for form in ("micro", "audiocraft"):
        release = export(source, tmp_path / form, form=form)
        xp = main.experiment([*LM_DEBUG, f"continue_from={release}"])
        with xp.enter():
            solver = get_solver(xp.cfg)
            assert not solver.restore()
            assert all(torch.equal(value, best[name]) for name, value in solver.model.state_dict().items())
            average = solver.ema.average if solver.ema else {}
            assert all(torch.equal(average[name], best[name]) for name in best), "the average starts from it too"
    from fixtures_models import write_codec_run

    other = write_codec_run("0ddc0dec", n_filters=3)
    xp = main.experiment([*LM_DEBUG, f"compression_model_checkpoint=//sig/{other.name}", f"continue_from={release}"])
    with xp.enter(), pytest.raises(MicroMusicGenError, match="speaks the codes of codec"):
        get_solver(xp.cfg).restore()
    shutil.rmtree(other)


@pytest.mark.slow
def test_train_from_takes_codec_size_and_weights(toy_home: Path, tmp_path: Path) -> None:
    from micro_musicgen.release.export import export
    from micro_musicgen.training import TrainingRequest, dry_run, train

    source = run_xp([*LM_DEBUG, *QUIET, "label=source"])
    release = export(source, tmp_path / "a release")
    request = TrainingRequest(
        dataset="toy",
        minutes=None,
        start_from=str(release),
        patience=4,
        lm_overrides=("optim.epochs=1", "optim.updates_per_epoch=2", "dataset.segment_duration=1", *QUIET),
        overrides=("num_threads=1",),
    )
    assert dry_run(request)["lm"]["num_parameters"] == sum(v.numel() for v in checkpoint(source)["model"].values())
    folder = train(request)
    state = checkpoint(folder)
    assert {name: v.shape for name, v in state["model"].items()} == {
        name: v.shape for name, v in checkpoint(source)["model"].items()
    }
    with pytest.raises(MicroMusicGenError, match="brings its own codec"):
        TrainingRequest(dataset="toy", start_from=str(release), codec="x")


def test_provenance_is_in_every_checkpoint(toy_home: Path) -> None:
    folder = run_xp([*LM_DEBUG, "generate.every=never", "label=provenance"])
    for path in (folder / references.CHECKPOINT_NAME, *(folder / "best").iterdir(), *(folder / "snapshots").iterdir()):
        found = checkpoints.load(path)["provenance"]
        assert {"seed", "packages", "patches", "git_sha", "sounds"} <= set(found)
        assert found["sounds"]["hash"] and found["packages"]["torch"]
        assert "solver: musicgen" in checkpoints.load(path)["config"]


def test_the_second_signal_is_obeyed_at_once() -> None:
    import os
    import signal

    from micro_musicgen.solvers.running.interrupt import StopRequest

    request = StopRequest()
    before = signal.getsignal(signal.SIGINT)
    with request.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_file_that_vanishes_costs_no_more_than_the_epoch(toy_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_musicgen.data.manifest import read_manifest
    from micro_musicgen.solvers.codec import CodecSolver

    argv = ["solver=compression/debug", "dset=audio/toy", "num_threads=1", "dataset.ram_gb=0", "generate.every=never"]
    hidden = [Path(track.path) for track in read_manifest(toy_home / "egs" / "toy" / "train")]
    train_step = CodecSolver.train_step

    def losing(self: CodecSolver, step: int) -> Any:
        if step == 7:
            for path in hidden:
                path.rename(path.with_suffix(".gone"))
        return train_step(self, step)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(CodecSolver, "train_step", losing)
            with pytest.raises(MicroMusicGenError) as caught:
                run_xp(argv)
    finally:
        for path in hidden:
            path.with_suffix(".gone").rename(path)
    assert str(hidden[0].parent) in str(caught.value) and "\n" not in str(caught.value)
    assert checkpoint(Path(main.experiment(argv).folder))["training"]["updates_done"] == 5
    assert checkpoint(run_xp(argv))["training"]["updates_done"] == 10, "with the files back it goes on"
