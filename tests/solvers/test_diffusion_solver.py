"""The diffusion solver through Dora, on synthesised breaks and a toy codec: stages, resume, every kind of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from solver_runs import losses

from micro_musicgen import checkpoints, references, storage
from micro_musicgen.diffusion.builder import build_diffusion, diffusion_config
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.diffusion_decoder import DiffusionDecoderSolver
from micro_musicgen.train import get_solver, main, run_xp

CODEC = "compression_model_checkpoint=//sig/c0dec000"
DEBUG = ("solver=diffusion_decoder/debug", "dset=audio/toy", CODEC, "num_threads=1")
QUIET = (*DEBUG, "generate.every=never", "generate.every_minutes=null")


def checkpoint(folder: Path) -> dict[str, Any]:
    return checkpoints.load(folder / references.CHECKPOINT_NAME)


def opened(*overrides: str) -> DiffusionDecoderSolver:
    xp = main.experiment(list(overrides))
    main.init_xp(xp)
    with xp.enter():
        solver = get_solver(xp.cfg)
    assert isinstance(solver, DiffusionDecoderSolver)
    return solver


def test_a_run_leaves_all_that_it_takes_to_play_and_to_judge_it(toy_home: Path) -> None:
    folder = run_xp([*DEBUG, "evaluate.every=2", "generate.every=2"])
    state = checkpoint(folder)
    valid = state["history"][-1]["valid"]
    assert {"loss", "mse", "mse_k1", "mse_k2", "mse_k3", "mse_k4"} <= set(valid)
    heard = state["training"]["extra"]["decoder"]
    assert heard["window_frames"] == 40 and len(set(heard["codec_hashes"])) == 4
    names = {path.name for path in (folder / "samples").iterdir()}
    assert {"0002_0_k1.wav", "0002_0_k4.wav", "plain_0_k1.wav", "original_0.wav"} <= names
    assert (folder / "loss.png").is_file() and (folder / "diffusion.png").is_file()
    history = storage.read_json(folder / "history.json")
    found = history[-1]["evaluate"]
    assert {f"{kind}_k{k}" for kind in ("mel", "plain") for k in range(1, 5)} | {"mel_latents"} <= set(found)
    summary = storage.read_json(folder / "summary.json")
    assert summary["codebooks"] == [1, 2, 3, 4] and summary["objective"] == "v"


def test_config_and_weights_are_enough_to_build_it_again(toy_home: Path) -> None:
    from omegaconf import OmegaConf

    state = checkpoint(run_xp(list(QUIET)))
    model = build_diffusion(diffusion_config(OmegaConf.create(state["config"])))
    model.load_state_dict(state["best"]["model"], strict=True)
    assert model.normaliser.fitted and model.residual and model.schedule.num_timesteps == 1000


@pytest.mark.parametrize("killed_at", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_killed_and_resumed_is_bit_equal(killed_at: int, toy_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [*QUIET, "checkpoint.every_minutes=0.00001", f"label=killed{killed_at}"]
    whole = checkpoint(run_xp([*argv[:-1], "label=whole"]))

    class Killed(BaseException):
        pass

    step = DiffusionDecoderSolver.train_step

    def dies(self: DiffusionDecoderSolver, number: int) -> Any:
        if number == killed_at:
            raise Killed
        return step(self, number)

    monkeypatch.setattr(DiffusionDecoderSolver, "train_step", dies)
    with pytest.raises(Killed):
        run_xp(argv)
    monkeypatch.undo()
    monkeypatch.setenv("MICRO_MUSICGEN_HOME", str(toy_home))
    resumed = checkpoint(run_xp(argv))
    assert losses(resumed["history"]) == losses(whole["history"])
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value), name


@pytest.mark.parametrize(
    "overrides",
    [
        ("diffusion.objective=regression",),
        pytest.param(
            (
                "diffusion.objective=eps",
                "diffusion.schedule=linear",
                "diffusion.loss_weight=min_snr",
                "optim.accumulate=2",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("diffusion.objective=x0", "decoder.codebooks=[1,4]", "sampling.guidance=2"), marks=pytest.mark.slow
        ),
        ("frames.condition=mel_32k", "diffusion.residual=false"),
        pytest.param(
            ("frames.target=mel_32k", "diffusion.residual=false", "frames.condition=none", "sampling.sampler=ddim"),
            marks=pytest.mark.slow,
        ),
        pytest.param(("model=denoiser/soft_alignment_unet", "generate.every=1"), marks=pytest.mark.slow),
    ],
    ids=["regression", "eps", "x0", "mel-to-latents", "mel-alone", "unet"],
)
def test_every_kind_of_frames_objective_and_network_trains(overrides: tuple[str, ...], toy_home: Path) -> None:
    if overrides[0].startswith("model="):
        argv = [
            "solver=diffusion_decoder/codes",
            *DEBUG[1:],
            "denoiser.soft_alignment_unet.base_channels=16",
            "denoiser.soft_alignment_unet.heads=2",
            "dataset.batch_size=2",
            "dataset.segment_duration=0.8",
            "dataset.valid.num_samples=2",
            "optim.epochs=1",
            "optim.updates_per_epoch=2",
            "sampling.steps=2",
            *overrides,
        ]
    else:
        argv = [*QUIET, "optim.epochs=1", "optim.updates_per_epoch=2", *overrides]
    history = checkpoint(run_xp(argv))["history"]
    assert np.isfinite(history[0]["train"]["loss"]) and np.isfinite(history[0]["valid"]["mse"])


def test_frames_that_others_encoded(toy_home: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "accomp.npy", rng.standard_normal((6, 8, 16), np.float32))
    np.save(tmp_path / "vocal.npy", rng.standard_normal((6, 8, 16), np.float32))
    argv = [
        "solver=diffusion_decoder/samuel",
        f"frames.files.target='{tmp_path / 'accomp.npy'}'",
        f"frames.files.condition='{tmp_path / 'vocal.npy'}'",
        "denoiser.soft_alignment_unet.base_channels=16",
        "denoiser.soft_alignment_unet.heads=2",
        "dataset.batch_size=2",
        "optim.epochs=1",
        "optim.updates_per_epoch=2",
        "num_threads=1",
    ]
    state = checkpoint(run_xp(argv))
    assert state["training"]["extra"]["decoder"] == {"codec_hashes": [], "window_frames": 16}


def test_it_learns(toy_home: Path) -> None:
    solver = opened(
        *QUIET, "diffusion.residual=false", "optim.lr=5e-3", "denoiser.dit.dropout=0", "dataset.batch_size=8"
    )
    solver.schedule = lambda step: 1.0

    batch = solver.crops["train"].batch(0, 16)
    t, noise = torch.arange(16) * 60, torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(0))

    def error() -> float:
        with torch.no_grad():
            return float(solver._loss(batch, [4] * 16, t=t, noise=noise).mse.mean())

    before = error()
    for _ in range(80):
        solver.training_update()
    after = error()
    assert after < 0.85 * before, (before, after)


def test_what_is_dropped_and_drawn_follows_the_seed(toy_home: Path) -> None:
    solver = opened(*QUIET, "diffusion.condition_dropout=0.5")
    solver.model.eval()
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(float(solver.train_step(0)["loss"]))
        solver.model.load_state_dict(opened(*QUIET, "diffusion.condition_dropout=0.5").model.state_dict())
    assert found[0] == found[1]


def test_normalisers_are_fitted_to_training_frames(toy_home: Path) -> None:
    solver = opened(*QUIET)
    frames = torch.cat([solver.crops["train"].batch(index, 16).target for index in range(2)])
    assert bool(solver.model.normaliser.fitted)
    plain = opened(*QUIET, "diffusion.residual=false")
    made = plain.model.normaliser(frames)
    assert abs(float(made.mean())) < 0.2 and 0.8 < float(made.std()) < 1.2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("compression_model_checkpoint=null",), "no codec given; add compression_model_checkpoint="),
        (("decoder.codebooks=[0,5]",), "decoder.codebooks=[0, 5] must be numbers from 1 to 4"),
        (("dataset.segment_duration=0.82",), "41 frames are not a multiple of the network's stride 2; use 40"),
        (("frames.target=files",), "frames.condition=codes can't be made for frames.target=files"),
        (("frames.target=files", "frames.condition=none"), "needs frames.files.target=FILE"),
        (("diffusion.objective=noise",), "unknown objective 'noise'; known: eps, v, x0"),
        (("diffusion.schedule=sine",), "unknown noise schedule 'sine'"),
        (("sample_rate=16000",), "add sample_rate=32000"),
        (("frames.condition=none",), "diffusion.residual=true needs a condition"),
    ],
)
def test_bad_config_is_refused_in_one_line(overrides: tuple[str, ...], message: str, toy_home: Path) -> None:
    with pytest.raises(MicroMusicGenError) as caught:
        run_xp([*QUIET, *overrides])
    assert message in str(caught.value) and "\n" not in str(caught.value)
