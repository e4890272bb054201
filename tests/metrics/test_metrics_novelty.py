"""Memorised clips show: distances and copied runs, against brute force and planted copies."""

import numpy as np
import pytest

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.novelty import copied_runs, nearest


def _brute_force(clip, training):
    best = 0
    for track in training:
        for at in range(clip.shape[1]):
            for source in range(track.shape[1]):
                length = 0
                while (
                    at + length < clip.shape[1]
                    and source + length < track.shape[1]
                    and (clip[:, at + length] == track[:, source + length]).all()
                ):
                    length += 1
                best = max(best, length)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    card = (2, 3, 2, 8, 1, 2)[seed]
    training = [rng.integers(0, card, (2, rng.integers(1, 40))) for _ in range(4)]
    clips = [rng.integers(0, card, (2, rng.integers(1, 40))) for _ in range(5)]
    found = copied_runs(clips, training)
    for clip, run in zip(clips, found, strict=True):
        assert run.frames == _brute_force(clip, training)
        if run.frames:
            theirs = training[run.track][:, run.track_at : run.track_at + run.frames]
            assert np.array_equal(clip[:, run.at : run.at + run.frames], theirs)


def test_a_planted_copy_is_found_with_its_place():
    rng = np.random.default_rng(0)
    training = [rng.integers(0, 64, (4, 500)) for _ in range(3)]
    clip = rng.integers(0, 64, (4, 300))
    clip[:, 70:190] = training[1][:, 200:320]
    own, copy = copied_runs([rng.integers(0, 64, (4, 300)), clip], training)
    assert own.frames <= 1
    assert (copy.frames, copy.at, copy.track, copy.track_at) == (120, 70, 1, 200)


def test_a_run_ends_where_its_track_does_and_where_one_codebook_differs():
    track = np.arange(20).reshape(2, 10)
    across = np.concatenate([track, track], axis=1)
    assert copied_runs([across], [track])[0].frames == 10
    spoilt = track.copy()
    spoilt[1, 4] += 1
    assert copied_runs([spoilt], [track])[0].frames == 5


def test_distances_are_in_units_of_the_training_set():
    rng = np.random.default_rng(0)
    training = rng.standard_normal((400, 50)) * np.logspace(-2, 2, 50)
    found = nearest(training[[7, 3]], training)
    assert found.distance.tolist() == [0, 0] and found.index.tolist() == [7, 3]
    others = nearest(rng.standard_normal((100, 50)) * np.logspace(-2, 2, 50), training)
    assert 0.9 < np.median(others.distance) < 1.4
    scaled = nearest(training[[7]] * 3 + 1e-3, training * 3)
    assert scaled.index.tolist() == [7]


def test_nearest_agrees_with_brute_force():
    rng = np.random.default_rng(1)
    clips, training = rng.random((9, 4)), rng.random((31, 4))
    scale = training.std(axis=0) * 2
    wanted = np.linalg.norm((clips[:, None] - training[None]) / scale, axis=-1)
    found = nearest(clips, training)
    assert np.allclose(found.distance, wanted.min(axis=1)) and (found.index == wanted.argmin(axis=1)).all()


def test_a_constant_dimension_does_not_divide_by_zero():
    training = np.column_stack([np.ones(5), np.arange(5.0)])
    assert np.isfinite(nearest([[1.0, 2.5]], training).distance).all()


def test_bad_input_is_named():
    with pytest.raises(MicroMusicGenError, match="no distance"):
        nearest(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(MicroMusicGenError, match="NaN"):
        nearest([[np.nan]], [[1.0]])
    with pytest.raises(MicroMusicGenError, match="cannot be compared"):
        copied_runs([], [np.zeros((2, 3))])
    with pytest.raises(MicroMusicGenError, match="cannot be compared"):
        copied_runs([np.zeros((1, 3))], [np.zeros((2, 3))])


def test_a_copy_is_near_one_track_and_a_blur_is_near_all():
    rng = np.random.default_rng(0)
    training = rng.standard_normal((40, 30))
    tracks = (np.arange(40) // 4).tolist()
    copy, blur = training[13] + 0.02 * rng.standard_normal(30), training.mean(axis=0)
    other = rng.standard_normal(30)
    found = nearest(np.stack([copy, blur, other]), training, tracks)
    assert found.relative[0] < 0.1 < 0.6 < min(found.relative[1:])
    assert found.distance[1] < found.distance[2]  # the distance alone would call the blur the more copied one
    assert np.isnan(nearest(training[:2], training, [3] * 40).relative).all()
    shuffled = rng.permutation(40)
    again = nearest(np.stack([copy, blur]), training[shuffled], [tracks[i] for i in shuffled])
    assert np.allclose(again.relative, found.relative[:2])
