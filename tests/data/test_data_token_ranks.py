"""Ranks share the batches of one: nothing twice, nothing left out, whatever their number."""

from collections import Counter

import pytest
import torch
from token_oracle import build, level_steps

from micro_musicgen.data.code_crops import CodeCrops
from micro_musicgen.data.slots import SlotPlan, rank_places
from micro_musicgen.errors import MicroMusicGenError

BATCH = 12
WORLDS = (1, 2, 3, 4, 6, 12)


@pytest.fixture
def crops(tmp_path, make_track) -> CodeCrops:
    tracks = [make_track("a.wav", level_steps(480, 0)), make_track("b.wav", level_steps(240, 1), weight=2.0)]
    return CodeCrops(build(tmp_path / "store", tracks), segment_frames=20, seed=5)


def whole(crops: CodeCrops, step: int, world_size: int) -> torch.Tensor:
    """Gives the global batch put together from what each rank took."""
    taken = torch.empty(BATCH, 2, 20, dtype=torch.int64)
    for rank in range(world_size):
        taken[rank::world_size] = crops.batch(step, BATCH, rank, world_size)
    return taken


@pytest.mark.parametrize("world_size", WORLDS)
def test_ranks_together_take_the_batch_of_one(crops, world_size):
    for step in (0, 1, 7, 1000):
        assert torch.equal(whole(crops, step, world_size), crops.batch(step, BATCH))
    assert crops.batch(0, BATCH, world_size - 1, world_size).shape == (BATCH // world_size, 2, 20)


@pytest.mark.parametrize("world_size", WORLDS)
def test_places_are_shared_out_without_overlap(world_size):
    shares = [set(rank_places(BATCH, rank, world_size)) for rank in range(world_size)]
    assert set.union(*shares) == set(range(BATCH)) and sum(map(len, shares)) == BATCH


def test_another_number_of_ranks_goes_on_in_the_same_order(crops):
    alone = [crops.batch(step, BATCH) for step in range(6)]
    changing = [whole(crops, step, world_size) for step, world_size in enumerate(WORLDS)]
    assert all(torch.equal(a, b) for a, b in zip(alone, changing, strict=True))


@pytest.mark.parametrize("world_size", WORLDS)
def test_every_slot_once_per_pass_over_all_ranks_and_as_weighted(crops, world_size, monkeypatch):
    drawn = []
    locate = SlotPlan.locate
    monkeypatch.setattr(
        SlotPlan, "locate", lambda plan, index: drawn.append((index, *locate(plan, index))) or drawn[-1][1:]
    )
    assert crops.crops_per_pass == 48  # 480 + 2 * 240 frames in slots of 20
    for rank in range(world_size):
        for step in range(48 // BATCH):
            crops.batch(step, BATCH, rank, world_size)
    assert sorted(index for index, _, _ in drawn) == list(range(48))
    assert Counter(track for _, track, _ in drawn) == {0: 24, 1: 24}  # half the length, twice the weight
    assert sorted(int(24 * position) for _, track, position in drawn if track == 0) == list(range(24))


@pytest.mark.parametrize(("batch_size", "world_size"), [(12, 5), (1, 2), (7, 4)])
def test_a_batch_that_cannot_be_shared_evenly(crops, batch_size, world_size):
    with pytest.raises(
        MicroMusicGenError, match=f"dataset.batch_size={batch_size} cannot be shared by {world_size} processes"
    ) as error:
        crops.batch(0, batch_size, 0, world_size)
    assert "\n" not in str(error.value)
