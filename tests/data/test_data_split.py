import numpy as np
import pytest

from micro_musicgen.data.manifest import Track
from micro_musicgen.data.split import split
from micro_musicgen.errors import MicroMusicGenError


def make_tracks(durations):
    return [Track(f"/{i}.wav", float(d), 44_100, audio_hash=f"hash-{i}") for i, d in enumerate(durations)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_share_of_duration(seed, fraction):
    tracks = make_tracks(np.random.default_rng(seed).uniform(1, 30, 100))
    train, valid = split(tracks, valid_fraction=fraction, seed=seed)
    assert sorted(train + valid, key=tracks.index) == tracks
    share = sum(t.duration for t in valid) / sum(t.duration for t in tracks)
    assert abs(share - fraction) < 0.01


@pytest.mark.parametrize("durations", [[1, 1], [100, 1], [1, 100], [5, 5, 5], [1e-3, 1000, 1000]])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_neither_is_empty_and_they_share_nothing(durations, fraction):
    tracks = make_tracks(durations)
    for seed in range(4):
        train, valid = split(tracks, valid_fraction=fraction, seed=seed)
        assert train and valid and not set(train) & set(valid) and len(train) + len(valid) == len(tracks)


def test_a_long_mix_does_not_swallow_the_validation_set():
    tracks = make_tracks([3600] + [10] * 100)
    for seed in range(10):
        train, _ = split(tracks, valid_fraction=0.1, seed=seed)
        assert tracks[0] in train


def test_single_file_is_both():
    tracks = make_tracks([3])
    assert split(tracks, valid_fraction=0.1, seed=0) == (tracks, tracks)


def test_a_new_file_moves_hardly_anything():
    tracks = make_tracks(np.random.default_rng(0).uniform(1, 8, 120))
    moved = []
    for new in range(20):
        for seed in range(5):
            before = set(split(tracks, valid_fraction=0.1, seed=seed)[1])
            grown = [*tracks, Track(f"/new{new}.wav", 4.0, 44_100, audio_hash=f"new-{new}")]
            after = set(split(grown, valid_fraction=0.1, seed=seed)[1]) - {grown[-1]}
            moved.append(len(before ^ after))
    assert np.mean(moved) < 1.5 and max(moved) <= 4


def test_seed_decides_and_order_of_files_does_not():
    tracks = make_tracks([5] * 40)
    valid = {seed: set(split(tracks, valid_fraction=0.1, seed=seed)[1]) for seed in range(3)}
    assert valid[0] != valid[1] != valid[2]
    assert set(split(tracks[::-1], valid_fraction=0.1, seed=0)[1]) == valid[0]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_bad_fraction(fraction):
    with pytest.raises(MicroMusicGenError, match="valid fraction .* must lie between 0 and 1"):
        split(make_tracks([1, 1]), valid_fraction=fraction, seed=0)
