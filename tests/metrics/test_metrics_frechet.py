"""The Frechet distance, against the closed form for Gaussians and against scipy's matrix square root."""

import numpy as np
import pytest

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.frechet import codec_embeddings, frechet_distance


def _with_moments(mean, covariance, num=400, seed=0):
    """Gives embeddings whose sample mean and covariance are exactly those asked for."""
    white = np.random.default_rng(seed).standard_normal((num, len(mean)))
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_diagonal_gaussians_have_a_closed_form():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    shift = np.array([1.0, -2.0, 0.5])
    wanted = np.square(shift).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    found = frechet_distance(_with_moments(np.zeros(3), np.diag(a)), _with_moments(shift, np.diag(b), seed=1))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_one_dimension():
    first = np.array([[0.0], [2.0], [4.0]])
    assert frechet_distance(first, 3 * first + 1) == pytest.approx(5.0**2 + (2.0 * 2) ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scipy(seed):
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12))
    second = rng.standard_normal((150, 12)) @ rng.standard_normal((12, 12)) + 1
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    apart = np.square(first.mean(0) - second.mean(0)).sum()
    wanted = apart + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-8)


def test_is_symmetric_and_zero_for_itself():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((50, 6)), rng.standard_normal((70, 6)) * 2
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))


def test_fewer_embeddings_than_dimensions_are_fine():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((5, 64))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + 1) == pytest.approx(64)


def test_bad_input_is_named():
    with pytest.raises(MicroMusicGenError, match="too few"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(MicroMusicGenError, match="width 3 and 4"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(MicroMusicGenError, match="NaN"):
        frechet_distance(np.full((5, 3), np.nan), np.zeros((5, 3)))


def test_codec_embeddings_are_one_a_frame():
    torch = pytest.importorskip("torch")

    class Frames:
        latent_dim = 3

        def encode_latents(self, wav):
            return torch.arange(24.0).reshape(2, 3, 4)

    found = codec_embeddings(Frames(), torch.zeros(2, 1, 4 * 640))
    assert found.shape == (8, 3) and found.dtype == np.float64
    assert found[1].tolist() == [1, 5, 9]
