import itertools

import numpy as np
import pytest
import torch
from token_oracle import BlockCodec, level_steps
from token_oracle import build as build_tokens

from micro_musicgen.data.code_crops import CodeCrops
from micro_musicgen.data.frame_crops import FrameCrops
from micro_musicgen.data.frame_store import build_frame_store
from micro_musicgen.diffusion.representation import CodecFrames
from micro_musicgen.errors import MicroMusicGenError


@pytest.fixture
def tracks(make_track):
    return [
        make_track("long.wav", level_steps(400.5, 0)),
        make_track("loop.wav", level_steps(30, 1)),
        make_track("exact.wav", level_steps(50, 2), weight=2.0),
    ]


@pytest.fixture
def store(tmp_path, tracks):
    codec = BlockCodec()
    return build_frame_store(tmp_path / "s", tracks, CodecFrames(codec), codec, CodecFrames(codec), segment_s=1.0)


def test_the_crops_are_those_of_a_token_store(store, tmp_path, tracks):
    tokens = build_tokens(tmp_path / "t" / "x", tracks)
    expected, found = (kind(it, segment_frames=50, seed=3) for kind, it in ((CodeCrops, tokens), (FrameCrops, store)))
    assert found.crops_per_pass == expected.crops_per_pass
    for step in (0, 5, 100):
        crops, batch = expected.crops(step, 4), found.batch(step, 4)
        assert torch.equal(batch.codes, crops.codes) and batch.codes.dtype == torch.int64
        assert (batch.tracks, batch.places) == (crops.tracks, crops.places)
    for crops, batch in zip(expected.valid_crops(2, 6), found.valid_batches(2, 6), strict=True):
        assert torch.equal(batch.codes, crops.codes)
        assert (batch.tracks, batch.places) == (crops.tracks, crops.places)


def test_what_is_in_a_batch_belongs_together(store):
    batch = FrameCrops(store, segment_frames=40, seed=0).batch(7, 6)
    assert batch.target.shape == batch.condition.shape == (6, 2, 40) and batch.codes.shape == (6, 2, 40)
    assert batch.target.dtype == batch.condition.dtype == torch.float32 and batch.target.is_contiguous()
    assert torch.equal(((batch.target + 1) * 499.9).long(), batch.codes) and torch.equal(batch.target, batch.condition)


def test_a_batch_depends_on_seed_and_step_only(store):
    crops = FrameCrops(store, segment_frames=40, seed=0)
    ahead = crops.batch(9, 4)
    crops.batch(2, 4)
    again = FrameCrops(store, segment_frames=40, seed=0).batch(9, 4)
    assert torch.equal(ahead.target, again.target)
    assert not torch.equal(ahead.target, FrameCrops(store, segment_frames=40, seed=1).batch(9, 4).target)
    ahead.target.zero_()  # a copy, not the file
    assert torch.equal(crops.batch(9, 4).target, again.target)


def test_ranks_share_the_batch(store):
    crops = FrameCrops(store, segment_frames=40, seed=0)
    shares = [crops.batch(3, 6, rank, 3) for rank in range(3)]
    whole = crops.batch(3, 6)
    for place in range(6):
        assert torch.equal(shares[place % 3].target[place // 3], whole.target[place])
    with pytest.raises(MicroMusicGenError, match="multiple of 4"):
        crops.batch(0, 6, 0, 4)


def test_validation_is_the_same_each_time_and_bounded(store):
    crops = FrameCrops(store, segment_frames=50, seed=0)
    sizes = [len(batch.target) for batch in crops.valid_batches(4, 9)]
    assert sizes == [4, 4, 1]
    twice = [torch.cat([batch.target for batch in crops.valid_batches(4, 9)]) for _ in range(2)]
    assert torch.equal(*twice)


def test_all_frames_are_each_frame_once(store):
    pieces = list(FrameCrops(store, segment_frames=50, seed=0).all_frames(max_frames=64))
    assert max(piece.target.shape[-1] for piece in pieces) == 64 and all(len(piece.target) == 1 for piece in pieces)
    joined = torch.cat([piece.target[0] for piece in pieces], dim=1).T.numpy()
    assert np.array_equal(joined, store.arrays["target"])
    assert {k: sum(p.target.shape[-1] for p in g) for k, g in itertools.groupby(pieces, lambda p: p.tracks[0])} == {
        0: 400,
        1: 100,
        2: 50,
    }


def test_a_store_without_codes_and_condition(tmp_path, tracks):
    bare = build_frame_store(tmp_path / "bare", tracks, CodecFrames(BlockCodec()), segment_s=1.0)
    batch = FrameCrops(bare, segment_frames=50, seed=0).batch(0, 2)
    assert batch.codes is None and batch.condition is None


@pytest.mark.parametrize("segment_frames", [0, 51])
def test_segments_that_do_not_fit(store, segment_frames):
    with pytest.raises(MicroMusicGenError, match=f"segment of {segment_frames} frames does not fit into exact"):
        FrameCrops(store, segment_frames=segment_frames, seed=0)
