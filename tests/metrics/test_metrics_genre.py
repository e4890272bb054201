"""The label classifier, against scipy's optimum, Bayes' accuracy, and leaks between folds."""

import numpy as np
import pytest

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.genre import cross_validated, fit_classifier


def test_finds_the_optimum_that_scipy_finds():
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 3)), rng.integers(0, 3, 60)
    x[:, 0] += y
    found = fit_classifier(x, [f"c{label}" for label in y], strength=0.05)
    z = (x - x.mean(0)) / x.std(0)
    shares = (1 / np.bincount(y) / 3)[y]

    def loss(flat):
        logits = z @ flat[:9].reshape(3, 3) + flat[9:]
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -(shares * log_p[np.arange(60), y]).sum() + 0.025 * np.square(flat[:9]).sum()

    wanted = optimize.minimize(loss, np.zeros(12), method="BFGS", options={"gtol": 1e-9}).x
    assert np.allclose(found.weights, wanted[:9].reshape(3, 3), atol=1e-5)


def test_reaches_bayes_accuracy_on_two_gaussians():
    rng = np.random.default_rng(1)
    y = np.arange(2000) % 2
    x = rng.standard_normal((2000, 5))
    x[:, 2] += 2 * y  # one standard deviation to either side: Phi(1) = 0.841
    model = fit_classifier(x[:1000], [str(v) for v in y[:1000]])
    accuracy = np.mean([said == str(v) for said, v in zip(model.predict(x[1000:]), y[1000:], strict=True)])
    assert accuracy == pytest.approx(0.841, abs=0.03)
    assert np.allclose(model.probabilities(x).sum(axis=1), 1)


def test_a_rare_label_is_not_forgotten():
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.standard_normal((190, 2)), rng.standard_normal((10, 2)) + [2.5, 0]])
    said = fit_classifier(x, ["often"] * 190 + ["rare"] * 10).predict(x[190:])
    assert said.count("rare") >= 8


def test_clips_of_one_track_never_lie_on_both_sides():
    # Each track has a mark of its own and labels are drawn: whoever hears the track's other clips knows the answer.
    rng = np.random.default_rng(3)
    marks, of_track = rng.standard_normal((40, 60)), rng.permutation(np.arange(40) % 2)
    groups = np.repeat(np.arange(40), 5)
    x = marks[groups] + 0.01 * rng.standard_normal((200, 60))
    labels = [str(of_track[g]) for g in groups]
    assert np.mean(cross_validated(x, labels, groups.tolist())) < 0.75
    assert np.mean(cross_validated(x, labels, list(range(200)))) == 1


def test_learnable_labels_are_learnt_across_tracks():
    rng = np.random.default_rng(4)
    labels = [("jungle", "house", "dub")[i % 3] for i in range(60)]
    x = rng.standard_normal((60, 8)) + 4 * np.eye(8)[[i % 3 for i in range(60)]]
    hits = cross_validated(x, labels, [i // 3 * 3 + i % 3 for i in range(60)])
    assert len(hits) == 60 and np.mean(hits) > 0.95
    assert hits == cross_validated(x, labels, list(range(60)))


def test_bad_input_is_named():
    with pytest.raises(MicroMusicGenError, match="only label is 'a'"):
        fit_classifier(np.zeros((3, 2)), ["a"] * 3)
    with pytest.raises(MicroMusicGenError, match=r"'b' has 1 track"):
        cross_validated(np.eye(4), ["a", "a", "a", "b"], [0, 1, 2, 3])
    with pytest.raises(MicroMusicGenError, match="2 labels"):
        fit_classifier(np.zeros((3, 2)), ["a", "b"])
    with pytest.raises(MicroMusicGenError, match="NaN"):
        fit_classifier([[np.nan], [1.0]], ["a", "b"])
    with pytest.raises(MicroMusicGenError, match="3 groups"):
        cross_validated(np.eye(4), ["a", "a", "b", "b"], [0, 1, 2])
