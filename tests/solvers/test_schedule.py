import math

import pytest
from omegaconf import OmegaConf

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.optimise.schedule import Plan, build_schedule, cosine, wsd


def test_plan_counts_epochs_and_finds_segments() -> None:
    plan = Plan(10, [25])
    assert plan.total_updates == 25 and plan.epochs == 3
    plan.segments.append(45)
    assert [plan.segment(step) for step in (0, 24, 25, 44, 99)] == [(0, 25), (0, 25), (25, 20), (25, 20), (25, 20)]
    assert Plan(**plan.state_dict()) == plan


def test_wsd_warms_up_holds_and_decays() -> None:
    factor = wsd(Plan(10, [1000]), warmup=0.1, decay=0.25, lr_min_ratio=0.1)
    assert factor(0) == pytest.approx(1 / 101)
    assert factor(50) == pytest.approx(51 / 101)
    assert factor(100) == factor(749) == 1.0
    assert factor(875) == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor(1000) == pytest.approx(0.1)


def test_extending_starts_a_new_wave_at_the_full_rate() -> None:
    plan = Plan(10, [1000])
    factor = wsd(plan, warmup=0.0, decay=0.5, lr_min_ratio=0.0)
    before = [factor(step) for step in range(1000)]
    plan.segments.append(1400)
    assert [factor(step) for step in range(1000)] == before, "what was done stays as it was done"
    assert factor(1000) == 1.0 and factor(1300) == pytest.approx(0.5)


def test_cosine_closed_form() -> None:
    factor = cosine(Plan(10, [110]), warmup=10, lr_min_ratio=0.2, cycle_length=1.0)
    assert factor(10) == pytest.approx(1.0)
    assert factor(60) == pytest.approx(0.2 + 0.8 * 0.5)
    assert factor(35) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert factor(110) == pytest.approx(0.2)


def test_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(MicroMusicGenError, match=r"'sawtooth'; known: null, cosine, wsd"):
        build_schedule(OmegaConf.create({"lr_scheduler": "sawtooth"}), Plan(1, [1]))


def test_no_schedule_is_constant() -> None:
    assert build_schedule(OmegaConf.create({"lr_scheduler": None}), Plan(1, [1]))(7) == 1.0


@pytest.mark.parametrize("length", [7, 137, 90_001])
def test_warmup_as_a_share_follows_the_real_length_of_a_run_that_was_planned_by_minutes(length: int) -> None:
    from micro_musicgen.solvers.running.clockplan import planned

    plan = planned(minutes=5, speed=length / (60 * 5 * 0.88) + 1e-9)
    assert plan.total_updates == length
    config = {"lr_scheduler": "cosine", "cosine": {"warmup": 0.1, "lr_min_ratio": 0.0, "cycle_length": 1.0}}
    factor = build_schedule(OmegaConf.create(config), plan)
    ramp = 0.1 * length
    factors = [factor(step) for step in range(length)]
    for step in range(math.ceil(ramp)):
        assert factors[step] == pytest.approx((step + 1) / (ramp + 1))
    peak = math.ceil(ramp)
    assert factors.index(max(factors)) in (peak - 1, peak)
    halfway = round(ramp + (length - ramp) / 2)
    assert factors[halfway] == pytest.approx(0.5, abs=2 / (length - ramp) + 1e-9)
    assert factor(length) == pytest.approx(0.0)
    plan.segments.append(3 * length)
    assert factor(length) == pytest.approx(1 / (0.2 * length + 1)), "what is added warms up over its own length"


@pytest.mark.parametrize(
    "config",
    [
        {"lr_scheduler": "cosine", "cosine": {"warmup": -1, "lr_min_ratio": 0.0, "cycle_length": 1.0}},
        {"lr_scheduler": "wsd", "wsd": {"warmup": -0.1, "decay": 0.2, "lr_min_ratio": 0.0}},
    ],
)
def test_impossible_warmup_is_refused_in_one_line(config: dict) -> None:
    with pytest.raises(MicroMusicGenError, match="warmup=-[0-9.]+ must be") as caught:
        build_schedule(OmegaConf.create(config), Plan(1, [10]))
    assert "\n" not in str(caught.value)
