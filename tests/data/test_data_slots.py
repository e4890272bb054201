import numpy as np
import pytest

from micro_musicgen.data.slots import SlotPlan, evenly_spaced, segment_starts
from micro_musicgen.errors import MicroMusicGenError


def test_pure_function_of_seed_and_index():
    masses = [10.0, 3.0, 7.5]
    items = [SlotPlan(masses, 1.0, 5).locate(index) for index in range(100)]
    plan = SlotPlan(masses, 1.0, 5)
    for index in np.random.default_rng(0).permutation(100):
        assert plan.locate(int(index)) == items[index]
    assert items != [SlotPlan(masses, 1.0, 6).locate(index) for index in range(100)]


def test_series_is_frozen():
    """Resuming an old run must give its old order, with any version of numpy."""
    plan = SlotPlan([3.0, 0.5, 4.0], 1.0, 2036)
    found = [(track, round(position, 6)) for track, position in map(plan.locate, (0, 1, 2, 9, 10**9))]
    assert found == [(0, 0.754107), (0, 0.396166), (1, 0.357082), (2, 0.40952), (0, 0.257624)]


def test_every_slot_once_per_pass():
    plan = SlotPlan([16.0], 1.0, 0)
    assert plan.num_slots == 16
    orders = []
    for pass_index in range(4):
        slots = [int(plan.locate(pass_index * 16 + place)[1] * 16) for place in range(16)]
        assert sorted(slots) == list(range(16))
        orders.append(slots)
    assert len({tuple(order) for order in orders}) == 4


def test_draws_are_proportional_to_mass():
    masses = [40.0, 0.0, 8.0, 1.0, 1.0, 0.0]
    plan = SlotPlan(masses, 1.0, 3)
    tracks = [plan.locate(index)[0] for index in range(20 * plan.num_slots)]
    assert list(np.bincount(tracks, minlength=6) / 20) == masses


def test_short_loops_in_one_slot_are_all_heard_soon():
    plan = SlotPlan([0.1] * 100, 1.0, 0)
    assert plan.num_slots == 10
    counts = np.bincount([plan.locate(index)[0] for index in range(30 * 10)], minlength=100)
    assert counts.min() >= 1 and counts.max() <= 5


def test_positions_cover_a_track_evenly():
    plan = SlotPlan([0.3], 1.0, 1)
    assert plan.num_slots == 1
    positions = np.sort([plan.locate(index)[1] for index in range(500)])
    assert positions[0] >= 0 and positions[-1] < 1
    assert np.diff(positions).max() < 4 / 500


@pytest.mark.parametrize("masses", [[], [0.0], [0.0, 0.0]])
def test_nothing_to_draw(masses):
    with pytest.raises(MicroMusicGenError, match="no track to draw from"):
        SlotPlan(masses, 1.0, 0)


def test_negative_and_huge_seeds():
    for seed in (-1, 2**70):
        assert 0 <= SlotPlan([5.0], 1.0, seed).locate(3)[1] < 1


def test_evenly_spaced_and_segment_starts():
    assert evenly_spaced(range(10), 4) == [0, 2, 5, 7]
    assert evenly_spaced(range(3), 9) == [0, 1, 2] and evenly_spaced([], 3) == [] and evenly_spaced([1], 0) == []
    assert segment_starts(35, 10) == [0, 10, 20] and segment_starts(20, 10) == [0, 10] and segment_starts(5, 10) == [0]
