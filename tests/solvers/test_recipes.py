"""The Hydra group `optim`: a recipe wins over the solver, what is typed over both, and old runs keep their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from micro_musicgen import paths
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.estimate import estimate
from micro_musicgen.solvers.optimise.batch_size import fill_batch
from micro_musicgen.train import main

LM = ("solver=musicgen/micro_32khz", "dset=audio/toy")
TOY = (
    "solver=musicgen/debug",
    "dset=audio/toy",
    "transformer_lm.dim=16",
    "transformer_lm.num_layers=1",
    "device=cpu",
    "num_threads=1",
)

# Signatures from before there were recipes, accumulation, Muon and precision `auto`: runs of those days are resumed.
RECORDED = {
    "solver=musicgen/micro_32khz dset=audio/toy": "8cc5eced",
    "solver=musicgen/micro_32khz model/lm/model_scale=micro conditioner=none dset=audio/toy dataset.batch_size=3": (
        "048e7ed6"
    ),
    "solver=musicgen/debug dset=audio/toy compression_model_checkpoint=//sig/c0dec000 optim.lr=2e-3 "
    "optim.optimizer=adam": "55367af5",
    "solver=musicgen/micro_32khz dset=audio/toy schedule.lr_scheduler=cosine schedule.cosine.warmup=0.1 "
    "optim.adam.betas=[0.9,0.99]": "8f3c3f43",
    "solver=musicgen/micro_32khz dset=audio/toy autocast=true autocast_dtype=float16 optim.ema.use=false": "f2dc512e",
    "solver=musicgen/upstream_32khz dset=audio/toy": "4f80efdf",
    "solver=compression/micro_32khz model=encodec/nano_32khz dset=audio/toy seed=7": "14da8300",
    "solver=compression/debug dset=audio/toy checkpoint.save_every=5 autocast=auto": "7b4cd0e5",
}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data home with the data set `toy`, which holds no sound."""
    root = tmp_path_factory.mktemp("home")
    keys = {**dict.fromkeys(("train", "valid", "evaluate", "generate"), "/nowhere"), "max_sample_rate": 32000}
    target = root / "dset" / "audio" / "toy.yaml"
    target.parent.mkdir(parents=True)
    target.write_text("# @package _global_\n" + OmegaConf.to_yaml({"datasource": {**keys, "max_channels": 1}}))
    kept = main.dora.dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.HOME_VARIABLE, str(root))
        yield root
    main.dora.dir = kept


@pytest.mark.parametrize("line", RECORDED)
def test_old_runs_keep_their_signatures(line: str) -> None:
    assert main.experiment(line.split()).sig == RECORDED[line]


@pytest.mark.parametrize("argv", [(*LM, "optim=lite"), ("optim=lite", *LM)])
def test_lite_is_the_reference_recipe_and_wins_over_the_solver(argv: tuple[str, ...]) -> None:
    plain, cfg = main.experiment(LM).cfg, main.experiment(argv).cfg
    assert (cfg.optim.optimizer, list(cfg.optim.adam.betas), cfg.optim.adam.weight_decay) == ("adamw", [0.9, 0.99], 0.1)
    assert list(plain.optim.adam.betas) == [0.9, 0.95] and plain.schedule.lr_scheduler == "wsd"
    assert (cfg.schedule.lr_scheduler, cfg.schedule.cosine.warmup, cfg.optim.max_norm) == ("cosine", 0.1, 1.0)
    assert (cfg.optim.ema.use, cfg.checkpoint.keep_best) == (False, 3)
    assert cfg.optim.epochs == plain.optim.epochs, "length stays the solver's"
    assert fill_batch(cfg) == (8, 4)


def test_what_is_typed_wins_over_the_recipe() -> None:
    typed = ("optim.lr=5e-4", "dataset.batch_size=4", "optim.ema.use=true", "schedule.cosine.warmup=20")
    cfg = main.experiment([*LM, *typed, "optim=lite"]).cfg
    assert (cfg.optim.lr, cfg.optim.ema.use, cfg.schedule.cosine.warmup) == (5e-4, True, 20)
    assert fill_batch(cfg) == (4, 8), "still 32 crops a step"
    cfg = main.experiment([*LM, "optim=lite", "optim.effective_batch=null", "optim.accumulate=2"]).cfg
    assert fill_batch(cfg) == (8, 2)


def test_a_recipe_is_part_of_the_signature_and_default_is_none() -> None:
    plain, lite = main.experiment(LM).sig, main.experiment([*LM, "optim=lite"]).sig
    assert plain != lite != main.experiment([*LM, "optim=lite", "optim.lr=5e-4"]).sig
    assert OmegaConf.to_container(main.experiment([*LM, "optim=default"]).cfg) == OmegaConf.to_container(
        main.experiment(LM).cfg
    )


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(MicroMusicGenError, match=r"optim=heavy is not there; known: .*lite"):
        main.experiment([*LM, "optim=heavy"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_estimate_tells_batch_precision_speed_and_memory(optimizer: str) -> None:
    cfg = main.experiment([*TOY, "optim=lite", f"optim.optimizer={optimizer}", "dataset.batch_size=16"]).cfg
    found = estimate(cfg, 1.0)
    assert (found["device"], found["batch_size"], found["accumulate"]) == ("cpu", 16, 2)
    assert found["precision"] in ("fp32", "bf16") and found["memory_is"] == "estimated"
    assert found["tokens_per_s"] == pytest.approx(found["steps_per_s"] * 32 * 4 * 50, rel=0.02)
    assert found["memory_mb"] >= found["activations_mb"] > 0


def test_activations_grow_with_the_batch() -> None:
    from micro_musicgen.solvers.machine import settle
    from micro_musicgen.solvers.optimise.trial import build_trial

    trial = build_trial(settle(main.experiment(TOY).cfg))
    one, two, four = (trial.activation_bytes(batch) for batch in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=1e-3)
    dim, steps, width = 16, 54, 64
    assert one > 4 * steps * (4 * width + 8 * dim), "logits, and several vectors of each step"


def test_a_trial_counts_the_frames_of_the_runs_own_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec of beats has three frames a second, not fifty."""
    from types import SimpleNamespace

    from micro_musicgen.solvers.machine import settle
    from micro_musicgen.solvers.optimise import trial

    monkeypatch.setattr(trial, "load_codec", lambda reference: SimpleNamespace(frame_rate=3.125))
    cfg = settle(main.experiment([*TOY, "dataset.segment_duration=8"]).cfg)
    usual = trial.build_trial(cfg).tokens_per_crop
    cfg.compression_model_checkpoint = "//sig/abc"
    assert (usual, trial.build_trial(cfg).tokens_per_crop) == (4 * 400, 4 * 25)


def test_auto_settles_on_a_real_step_and_leaves_random_numbers_alone() -> None:
    import torch

    from micro_musicgen.solvers.machine import settle

    cfg = settle(main.experiment([*TOY, "dataset.batch_size=auto", "optim.effective_batch=4"]).cfg)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    batch, accumulate = fill_batch(cfg)
    assert torch.rand(1) == expected
    assert batch in (1, 2, 4) and batch * accumulate == 4
    assert (cfg.dataset.batch_size, cfg.optim.accumulate) == (batch, accumulate)
