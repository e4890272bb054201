"""Intervals, against closed forms, against scipy, and by how often they hold the truth."""

import numpy as np
import pytest

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.bootstrap import bootstrap, proportion, ratio


def test_a_large_sample_has_the_normal_interval():
    values = np.random.default_rng(0).standard_normal(2000) * 3 + 5
    found = bootstrap(values, num_resamples=4000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(2000)
    assert found.value == pytest.approx(values.mean()) and found.n == 2000
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_holds_the_truth_as_often_as_it_says(draw):
    rng = np.random.default_rng(1)
    samples = getattr(rng, draw)(size=(300, 40))
    truth = {"normal": 0.0, "exponential": 1.0}[draw]
    found = [bootstrap(row, seed=i, num_resamples=400) for i, row in enumerate(samples)]
    held = np.mean([e.low <= truth <= e.high for e in found])
    assert 0.88 <= held <= 0.98


def test_agrees_with_scipy_on_a_skewed_sample():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(2).exponential(size=25)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0))
    ours = bootstrap(values, num_resamples=20_000)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_a_ratio_of_sums_weighs_each_clip():
    rows = np.array([[2.0, 1.0], [30.0, 10.0], [4.0, 2.0]])
    found = bootstrap(rows, ratio)
    assert found.value == pytest.approx(36 / 13) and 2 <= found.low <= found.value <= found.high <= 3


def test_the_seed_decides():
    values = np.random.default_rng(3).random(10)
    assert bootstrap(values, seed=4) == bootstrap(values, seed=4) != bootstrap(values, seed=5)


def test_equal_values_and_single_ones():
    same = bootstrap([2.0] * 5)
    assert (same.value, same.low, same.high) == (2.0, 2.0, 2.0)
    one = bootstrap([3.0])
    assert (one.value, one.low, one.high, one.n) == (3.0, None, None, 1)
    all_hits = bootstrap([1.0] * 9 + [0.0])
    assert 0.5 <= all_hits.low < 0.9 < all_hits.high <= 1.0


def test_bad_input_is_named():
    with pytest.raises(MicroMusicGenError, match="at least one clip"):
        bootstrap([])
    with pytest.raises(MicroMusicGenError, match="NaN"):
        bootstrap([1.0, float("nan")])
    with pytest.raises(MicroMusicGenError, match="level 1 "):
        bootstrap([1.0, 2.0], level=1)


def test_a_proportion_has_wilsons_interval():
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for hits, n in ((0, 32), (32, 32), (7, 20), (1, 1)):
        wanted = binomtest(hits, n).proportion_ci(method="wilson")
        found = proportion([True] * hits + [False] * (n - hits))
        assert found.value == hits / n and found.n == n
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    with pytest.raises(MicroMusicGenError, match="no share"):
        proportion([])
