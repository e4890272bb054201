"""The recipes of the two systems that the diffusion decoder follows: `optim=m1` and `optim=samuel`."""

from __future__ import annotations

import functools

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import micro_musicgen.train  # noqa: F401  (registers the resolver)
from micro_musicgen import paths
from micro_musicgen.solvers.optimise.schedule import Plan, build_schedule

CODES, SAMUEL = "solver=diffusion_decoder/codes", "solver=diffusion_decoder/samuel"
DATA = [f"datasource.{split}=/nowhere" for split in ("train", "valid", "evaluate", "generate")]
SOUND = ["compression_model_checkpoint=//sig/c0dec000", "datasource.max_sample_rate=32000", "datasource.max_channels=1"]


@functools.cache
def composed(*overrides: str) -> DictConfig:
    sound = [] if SAMUEL in overrides else [*DATA, *SOUND]
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        return compose("config", [*overrides, *sound])


def rates(cfg: DictConfig, *steps: int) -> list[float]:
    """Gives the learning rates at these steps; negative ones count from behind the last."""
    plan = Plan(cfg.optim.updates_per_epoch, [cfg.optim.epochs * cfg.optim.updates_per_epoch])
    schedule = build_schedule(cfg.schedule, plan)
    return [cfg.optim.lr * schedule(step if step >= 0 else plan.total_updates + step + 1) for step in steps]


@pytest.mark.parametrize("order", [(CODES, "optim=m1"), ("optim=m1", CODES)])
def test_m1_is_128_clips_a_step_a_thousand_steps_of_warm_up_and_100k_steps(order: tuple[str, str]) -> None:
    cfg = composed(*order)
    assert (cfg.dataset.batch_size, cfg.optim.accumulate, cfg.optim.effective_batch) == (32, 4, None)
    assert (cfg.optim.lr, cfg.optim.optimizer) == (1e-4, "adamw")
    assert cfg.optim.epochs * cfg.optim.updates_per_epoch == 100_000
    assert cfg.schedule.cosine.warmup == 1000
    first, before_peak, peak, last = rates(cfg, 0, 999, 1000, -1)
    assert first == pytest.approx(1e-4 / 1001) and before_peak == pytest.approx(1e-4 * 1000 / 1001)
    assert peak == pytest.approx(1e-4) and last == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("solver", [CODES, SAMUEL])
def test_samuel_is_800_timesteps_and_a_cosine_down_to_1e_7_over_100_epochs(solver: str) -> None:
    for cfg in (composed(solver, "optim=samuel"), composed("optim=samuel", solver)):
        assert cfg.diffusion.num_timesteps == 800
        assert (cfg.dataset.batch_size, cfg.optim.accumulate, cfg.optim.effective_batch) == (32, 1, None)
        assert (cfg.optim.lr, cfg.optim.optimizer) == (3.5e-4, "adamw")
        assert (cfg.optim.epochs, cfg.optim.patience) == (100, 30)
        assert (cfg.optim.ema.use, cfg.optim.ema.decay) == (True, 0.995)
        first, last = rates(cfg, 0, -1)
        assert first == pytest.approx(3.5e-4) and last == pytest.approx(1e-7, rel=1e-5)
    assert rates(composed(solver, "optim=samuel", "optim.updates_per_epoch=7"), -1) == pytest.approx([1e-7], rel=1e-5)


def test_what_is_typed_wins_over_the_recipes_and_without_one_the_solver_decides() -> None:
    typed = composed(CODES, "optim.lr=2e-4", "dataset.batch_size=4", "diffusion.num_timesteps=100", "optim=samuel")
    assert (typed.optim.lr, typed.dataset.batch_size, typed.diffusion.num_timesteps) == (2e-4, 4, 100)
    plain = composed(CODES)
    assert (plain.optim.patience, plain.optim.accumulate, plain.schedule.lr_scheduler) == (None, 1, "wsd")
    assert plain.diffusion.num_timesteps == 1000


@pytest.mark.parametrize("solver", [CODES, SAMUEL])
@pytest.mark.parametrize("recipe", ["m1", "samuel"])
def test_every_pair_resolves_and_changes_nothing_but_how_it_learns(solver: str, recipe: str) -> None:
    found = OmegaConf.to_container(composed(solver, f"optim={recipe}"), resolve=True, throw_on_missing=True)
    bare = OmegaConf.to_container(composed(solver), resolve=True, throw_on_missing=True)
    assert isinstance(found, dict) and isinstance(bare, dict) and set(found) == set(bare)
    changed = {key for key in found if found[key] != bare[key]}
    assert changed <= {"dataset", "optim", "schedule", "diffusion"}
