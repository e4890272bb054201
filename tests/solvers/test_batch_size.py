"""How `auto` finds its batch: the rule against made-up memory and speed, the probe against real steps."""

from __future__ import annotations

import math
import mmap
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.optimise import memory_probe
from micro_musicgen.solvers.optimise.batch_size import MEMORY_SHARE, fill_batch, recorded_batch, settle_batch
from micro_musicgen.solvers.optimise.memory_probe import StepProbe, available_bytes
from micro_musicgen.solvers.optimise.trial import Trial


def config(batch: Any = "auto", *, device: str = "cuda", accumulate: int = 1, effective: int | None = None) -> Any:
    return OmegaConf.create(
        {
            "device": device,
            "solver": "musicgen",
            "dataset": {"batch_size": batch, "segment_duration": 8},
            "optim": {"accumulate": accumulate, "effective_batch": effective},
        }
    )


def linear_memory(per_crop: float, tried: list[int] | None = None, fixed: float = 0.0) -> Any:
    def memory(size: int) -> float:
        if tried is not None:
            tried.append(size)
        share = fixed + per_crop * size
        return share if share <= 1 else math.inf

    return memory


@pytest.mark.parametrize(
    ("per_crop", "effective", "expected", "tried"),
    [
        (0.001, None, (32, 1), [32]),
        (0.05, None, (16, 1), [32, 16]),
        (0.2, None, (4, 1), [32, 16, 8, 4]),
        (0.2, 32, (4, 8), [32, 16, 8, 4]),
        (0.001, 128, (128, 1), [128]),
        (0.02, 128, (32, 4), [128, 64, 32]),
        (0.001, 24, (16, 2), [16]),
        (0.8, 32, (1, 32), [32, 16, 8, 4, 2, 1]),
    ],
)
def test_cuda_takes_the_largest_power_of_two_by_halving(
    per_crop: float, effective: int | None, expected: tuple[int, int], tried: list[int]
) -> None:
    seen: list[int] = []
    cfg = config(effective=effective)
    assert settle_batch(cfg, linear_memory(per_crop, seen)) == expected
    assert seen == tried
    assert cfg.dataset.batch_size == "auto", "nothing is changed"


def test_a_batch_is_shared_by_the_processes_of_a_run() -> None:
    assert settle_batch(config(effective=32), linear_memory(0.02), world_size=3) == (24, 2)
    assert settle_batch(config(effective=32), linear_memory(0.02), world_size=4) == (32, 1)
    assert settle_batch(config(effective=2), linear_memory(0.02), world_size=4) == (4, 1)


def test_a_cpu_takes_the_fastest_from_below_and_the_smaller_of_equals() -> None:
    cfg = config(device="cpu", effective=32)
    memory = linear_memory(0.001)
    assert settle_batch(cfg, memory, lambda size: 0.5 + 0.1 * size) == (32, 1), "overhead: the larger the better"
    assert settle_batch(cfg, memory, lambda size: 0.1 * size) == (1, 32), "no gain: small batches"
    assert settle_batch(cfg, memory, lambda size: 0.1 * size if size < 8 else 0.2 * size) == (1, 32)
    falls = {1: 1.0, 2: 1.1, 4: 1.5, 8: 4.0, 16: 9.0, 32: 20.0}
    assert settle_batch(cfg, memory, falls.__getitem__) == (4, 8)


def test_a_cpu_never_tries_what_would_not_fit_and_ends_at_long_steps() -> None:
    seen: list[int] = []
    assert settle_batch(config(device="cpu"), linear_memory(0.2, seen), lambda size: 1.0) == (4, 1)
    assert seen == [1, 2, 4] and 8 * 0.2 > MEMORY_SHARE
    seen.clear()
    assert settle_batch(config(device="cpu"), linear_memory(0.001, seen), lambda size: 3.0 * size) == (1, 1)
    assert seen == [1, 2, 4]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_not_even_one_crop_is_told_in_one_line(device: str) -> None:
    with pytest.raises(MicroMusicGenError, match=r"1 crop\(s\) of 8 s does not fit into the memory of") as caught:
        settle_batch(config(device=device), lambda size: math.inf, lambda size: math.inf)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        (config(16), (16, 1)),
        (config(16, accumulate=3), (16, 3)),
        (config(8, effective=32), (8, 4)),
        (config(3, effective=32), (3, 11)),
        (config(64, effective=32), (64, 1)),
        (config(8, effective=32, accumulate=4), (8, 4)),
    ],
)
def test_a_given_batch_stays_and_accumulate_follows(cfg: Any, expected: tuple[int, int]) -> None:
    assert fill_batch(cfg) == expected
    assert (cfg.dataset.batch_size, cfg.optim.accumulate) == expected
    assert fill_batch(cfg) == expected, "filling twice changes nothing"


def test_a_resumed_run_keeps_what_its_checkpoint_says() -> None:
    cfg = config(effective=32)
    assert fill_batch(cfg, recorded=[4, 8]) == (4, 8) == (cfg.dataset.batch_size, cfg.optim.accumulate)
    kept = yaml.safe_load(OmegaConf.to_yaml(cfg, resolve=True))
    assert fill_batch(config(effective=32), recorded_batch(kept)) == (4, 8)
    del kept["optim"]["accumulate"]
    assert recorded_batch(kept) == (4, 1), "checkpoints from before there was accumulation"


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (config(8, effective=32, accumulate=3), "optim.accumulate=3 times 8 crops is not optim.effective_batch=32"),
        (config("large"), "dataset.batch_size=large is not possible; use auto or a number"),
        (config(0), "dataset.batch_size=0"),
        (config(4, accumulate=0), "optim.accumulate=0"),
        (config(4, effective=-1), "optim.effective_batch=-1"),
    ],
)
def test_impossible_numbers_are_told_in_one_line(cfg: Any, message: str) -> None:
    with pytest.raises(MicroMusicGenError, match=message) as caught:
        fill_batch(cfg)
    assert "\n" not in str(caught.value)


def test_auto_is_refused_for_a_solver_whose_step_is_unknown() -> None:
    cfg = OmegaConf.merge(config(device="cpu"), {"solver": "musicgen_upstream", "num_threads": 1})
    with pytest.raises(MicroMusicGenError, match="auto is not for solver=musicgen_upstream"):
        fill_batch(cfg)


def trial(mb_per_crop: float, *, most: int = 1 << 30) -> Trial:
    """A trial whose steps hold `mb_per_crop` MB a crop, and are refused above `most` crops as CUDA would."""
    model = nn.Linear(1, 1)

    def loss(batch: int) -> torch.Tensor:
        if batch > most:
            raise torch.cuda.OutOfMemoryError("pretended")
        # Mapped by itself: memory from the heap may have been held since another test.
        ballast = torch.frombuffer(mmap.mmap(-1, int(batch * mb_per_crop * 1e6) // 4 * 4), dtype=torch.float32).fill_(1)
        return model(torch.ones(1, 1)).sum() + ballast[0]

    return Trial(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, 100, torch.device("cpu"))


@pytest.mark.skipif(not memory_probe._CLEAR_REFS.exists(), reason="this system keeps no peak that can be reset")
def test_the_probe_measures_growth_against_what_is_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_probe, "available_bytes", lambda: 1e9)
    probe = StepProbe(trial(100))
    assert probe.memory(1) == pytest.approx(0.1, abs=0.02)
    assert probe.memory(4) == pytest.approx(0.4, abs=0.03)
    assert probe.memory(2) == pytest.approx(0.2, abs=0.03), "the peak of the larger one is forgotten"
    assert 0 < probe.seconds(4) < 10


def test_the_probe_takes_running_out_of_memory_for_an_answer() -> None:
    probe = StepProbe(trial(0.1, most=8), world_size=2)
    assert probe.memory(32) == math.inf == probe.seconds(32)
    assert probe.memory(16) < 1
    assert settle_batch(config(effective=64), probe.memory, world_size=2) == (16, 4)


def test_available_memory_is_some_and_heeds_a_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    assert 1e6 < available_bytes() < 1e15
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text("3000000\n")
    used.write_text("1000000\n")
    monkeypatch.setattr(memory_probe, "_GROUP_LIMITS", ((limit, used),))
    assert available_bytes() == 2e6
    limit.write_text("max\n")
    assert available_bytes() > 2e6
    monkeypatch.setattr(memory_probe, "_MEMINFO", tmp_path / "none")
    assert available_bytes() > 2e6
