"""Sound prompts of training crops: from the same track, never of what is to be predicted, the same on every call."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from token_oracle import HOP, RATE, BlockCodec, build, level_steps

from micro_musicgen.data.code_crops import CodeCrops
from micro_musicgen.data.crop_batch import GAP_S, Cut, PromptPlan
from micro_musicgen.data.crops import AudioCrops
from micro_musicgen.data.live_codes import LiveCodes
from micro_musicgen.data.slots import uniform

SEGMENT, WANTED = 50, 60
GAP = round(GAP_S * BlockCodec.frame_rate)


@pytest.fixture
def tracks(make_track):
    """Levels tell the place of every frame, and those of two tracks are never compared."""
    return [
        make_track("long.wav", level_steps(700, 0)),
        make_track("tight.wav", level_steps(SEGMENT + GAP + 30, 1), weight=4.0),
        make_track("loop.wav", level_steps(30, 2), weight=8.0),
        make_track("exact.wav", level_steps(SEGMENT, 3), weight=8.0),
    ]


@pytest.fixture(params=["store", "live"])
def source(request, tmp_path, tracks):
    """Gives the two ways to codes, by seed."""
    if request.param == "store":
        store = build(tmp_path / "store", tracks)
        assert [track.path for track in store.tracks] == [track.path for track in tracks]
        return lambda seed=5: CodeCrops(store, segment_frames=SEGMENT, seed=seed)

    def live(seed: int = 5) -> LiveCodes:
        crops = AudioCrops(tracks, sample_rate=RATE, segment_s=SEGMENT * HOP / RATE, seed=seed)
        return LiveCodes(crops, BlockCodec(), "cpu")

    return live


def same(a, b) -> bool:
    prompts = all(
        (x is None) == (y is None) and (x is None or torch.equal(x, y))
        for x, y in zip(a.prompts, b.prompts, strict=True)
    )
    return prompts and torch.equal(a.codes, b.codes) and (a.tracks, a.places) == (b.tracks, b.places)


def place_in(whole: np.ndarray, part: torch.Tensor) -> int:
    """Gives the one frame of [T, K] at which codes [K, P] begin."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape[1], axis=0)
    [place] = np.flatnonzero((windows == part.numpy()).all(axis=(1, 2)))
    return int(place)


@pytest.mark.parametrize("grain", [1, 7])
def test_prompts_never_come_near_the_crop(grain):
    """Thousands of draws: inside the track, outside of the gap, a whole number of grains, as long as there is room."""
    draws = np.random.default_rng(0)
    kinds = Counter()
    for place in range(-2000, 4000):
        segment, gap, wanted = (int(draws.integers(low, high)) for low, high in ((1, 60), (0, 30), (1, 90)))
        wanted *= grain
        length = segment + int(draws.integers(0, 250))
        start = int(draws.integers(0, length - segment + 1))
        plan = PromptPlan(segment=segment, wanted=wanted, gap=gap, grain=grain, seed=3)
        found = plan.choose(length, Cut(0, start, place))
        room = max(start - gap, length - start - segment - gap, 0) // grain * grain
        if found is None:
            assert 3 * min(room, wanted) < wanted
            kinds["none"] += 1
            continue
        first, size = found
        assert 0 <= first and first + size <= length and size == min(wanted, room) and 3 * size >= wanted
        assert first + size <= start - gap or first >= start + segment + gap
        kinds["whole" if size == wanted else "short"] += 1
    assert min(kinds.values()) > 300 and len(kinds) == 3


def test_every_place_with_room_is_drawn_alike():
    plan = PromptPlan(segment=10, wanted=5, gap=2, seed=1)
    counts = Counter(plan.choose(40, Cut(0, 12, place)) for place in range(4500))
    assert set(counts) == {(first, 5) for first in (*range(6), *range(24, 36))}
    assert all(180 < count < 320 for count in counts.values())


def test_prompts_differ_by_seed_and_place_but_those_of_validation_by_place_alone():
    cuts = {place: Cut(0, 500, place) for place in (0, 1, -1, -2)}
    chosen = [
        [PromptPlan(segment=50, wanted=9, gap=3, seed=seed).choose(100_000, cut) for cut in cuts.values()]
        for seed in (1, 2)
    ]
    assert len({*chosen[0][:2], *chosen[1][:2]}) == 4
    assert chosen[0][2:] == chosen[1][2:] and chosen[0][2] != chosen[0][3]


def test_no_prompt_was_asked_for():
    assert PromptPlan(segment=5, wanted=0, gap=1).choose(100, Cut(0, 50, 0)) is None


def test_negative_places_have_numbers_of_their_own():
    found = {uniform(7, index) for index in range(-500, 500)}
    assert len(found) == 1000 and all(0 <= each < 1 for each in found)


def test_frames_of_the_crop_are_never_in_its_prompt(source):
    """Every frame has a code of its own, so a prompt that holds one of the crop's frames would show."""
    crops, sizes, given = source(), Counter(), Counter()
    for step in range(30):
        batch = crops.crops(step, 20, prompt_frames=WANTED)
        assert batch.codes.shape == (20, 2, SEGMENT) and len(batch.prompts) == len(batch.tracks) == 20
        for codes, track, prompt in zip(batch.codes, batch.tracks, batch.prompts, strict=True):
            given[track, prompt is not None] += 1
            if prompt is not None:
                assert prompt.dtype == torch.int64 and prompt.shape[0] == 2
                # Live crops start between frames, where means of two levels meet by chance: see the ramp below.
                assert isinstance(crops, LiveCodes) or not np.isin(prompt[0], codes[0]).any()
                sizes[track, prompt.shape[1]] += 1
    assert {track for track, has in given if has} == {0, 1}
    assert not given[0, False] and given[1, True] and given[1, False], "one without room to both sides"
    assert given[2, False] and given[3, False], "a loop, and a track as long as a crop"
    assert {size for track, size in sizes if track == 0} == {WANTED}
    assert {size for track, size in sizes if track == 1} <= set(range(WANTED // 3, 31))


def test_stored_prompts_are_the_tracks_codes_at_a_distance(tmp_path, tracks):
    store = build(tmp_path / "store", tracks)
    crops = CodeCrops(store, segment_frames=SEGMENT, seed=5)
    sides = Counter()
    for batch in [
        *(crops.crops(step, 20, prompt_frames=WANTED) for step in range(20)),
        *crops.valid_crops(4, 99, WANTED),
    ]:
        for codes, track, prompt in zip(batch.codes, batch.tracks, batch.prompts, strict=True):
            if prompt is None:
                continue
            whole = np.array(store.codes(track))
            start, first = (place_in(whole, part) for part in (codes, prompt))
            assert first + prompt.shape[1] + GAP <= start or first >= start + SEGMENT + GAP
            sides[track, first < start] += 1
    assert len(sides) == 4, "before and after, of either track"


def test_live_prompts_hear_nothing_of_the_crop(tracks):
    """Each goes through the codec in a call of its own: what lies around it is cut off before."""
    crops = AudioCrops(tracks[:1], sample_rate=RATE, segment_s=SEGMENT * HOP / RATE, seed=5)
    [cut] = crops.cuts(3, 1, prompt=WANTED * HOP, grain=HOP)
    codec = BlockCodec(reach=10)
    batch = LiveCodes(crops, codec, "cpu").crops(3, 1, prompt_frames=WANTED)
    assert codec.calls == 2
    alone = BlockCodec(reach=10).encode(torch.from_numpy(cut.prompt)[None, None])[0]
    assert torch.equal(batch.prompts[0], alone) and alone.shape[-1] == WANTED


def test_audio_prompts_are_far_from_their_crop(make_track):
    """A ramp tells every sample's place; also from the files, where nothing is kept in memory."""
    length = 12 * RATE
    track = make_track("ramp.wav", np.arange(length) / length)
    for ram_gb in (2.0, 0.0):
        crops = AudioCrops([track], sample_rate=RATE, segment_s=1.0, seed=0, ram_gb=ram_gb)
        for cut in crops.cuts(0, 40, prompt=3 * RATE, grain=HOP):
            (start, end), (first, last) = (
                (round(w[0] * length), round(w[-1] * length) + 1) for w in (cut.wav, cut.prompt)
            )
            assert end - start == RATE and last - first == 3 * RATE
            assert last + GAP_S * RATE <= start or first >= end + GAP_S * RATE


def test_a_step_is_a_pure_function_of_the_seed(source):
    crops = source()
    batches = [crops.crops(step, 6, prompt_frames=WANTED) for step in range(5)]
    again = source()
    for step in (4, 0, 2):  # as after a resume
        assert same(again.crops(step, 6, prompt_frames=WANTED), batches[step])
    assert batches[2].places == tuple(range(12, 18))
    assert not same(source(6).crops(2, 6, prompt_frames=WANTED), batches[2])


def test_asking_for_prompts_changes_no_crop(source):
    crops = source()
    for step in range(4):
        plain = crops.crops(step, 6)
        assert plain.prompts == (None,) * 6
        assert torch.equal(plain.codes, crops.batch(step, 6))
        assert torch.equal(plain.codes, crops.crops(step, 6, prompt_frames=WANTED).codes)
    pairs = zip(crops.valid_batches(4, 99), crops.valid_crops(4, 99, WANTED), strict=True)
    assert all(torch.equal(codes, batch.codes) for codes, batch in pairs)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_together_take_what_one_takes(source, world_size):
    crops = source()
    for step in range(3):
        alone = crops.crops(step, 6, prompt_frames=WANTED)
        for rank in range(world_size):
            share = crops.crops(step, 6, rank, world_size, WANTED)
            mine = slice(rank, None, world_size)
            assert (share.tracks, share.places) == (alone.tracks[mine], alone.places[mine])
            assert torch.equal(share.codes, alone.codes[mine])
            for ours, theirs in zip(share.prompts, alone.prompts[mine], strict=True):
                assert (ours is None) == (theirs is None) and (ours is None or torch.equal(ours, theirs))


def test_validation_is_the_same_for_every_seed_and_batch_size(source):
    batches = list(source().valid_crops(4, 99, WANTED))
    assert all(same(a, b) for a, b in zip(batches, source(9).valid_crops(4, 99, WANTED), strict=True))
    places = [place for batch in batches for place in batch.places]
    assert places == [-1 - n for n in range(len(places))]
    single = list(source().valid_crops(1, 99, WANTED))
    flat = [(track, prompt) for batch in batches for track, prompt in zip(batch.tracks, batch.prompts, strict=True)]
    for one, (track, prompt) in zip(single, flat, strict=True):
        assert one.tracks == (track,) and (one.prompts[0] is None) == (prompt is None)
        assert prompt is None or torch.equal(one.prompts[0], prompt)
    assert {track for track, prompt in flat if prompt is not None} == {0, 1}
