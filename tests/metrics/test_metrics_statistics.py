"""Statistics in a file, added up in batches, and their distance against closed forms and scipy."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.metrics.frechet import frechet_distance, gaussian_distance
from micro_musicgen.metrics.statistics import (
    Accumulator,
    Statistics,
    frechet,
    read_statistics,
    statistics_of,
    write_statistics,
)


def _rows(num: int = 60, width: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num, width)) @ rng.standard_normal((width, width)) + rng.standard_normal(width)


def _gaussian(mean: list[float], covariance: np.ndarray, num: int = 1000) -> Statistics:
    return Statistics(embedder="e", num_embeddings=num, mean=np.array(mean), covariance=np.asarray(covariance, float))


def test_batches_add_up_to_numpys_moments() -> None:
    rows = _rows()
    for cuts in ([], [1], [1, 2, 30], list(range(1, 60))):
        accumulator = Accumulator("e")
        for part in np.split(rows, cuts):
            accumulator.add(part)
        found = accumulator.statistics()
        np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-11)
        assert found.num_embeddings == 60 and found.width == 5


def test_a_small_spread_about_a_large_mean_keeps_its_digits() -> None:
    rows = _rows(1000) * 1e-4 + 1e6
    accumulator = Accumulator("e")
    for part in np.split(rows, 100):
        accumulator.add(part)
    np.testing.assert_allclose(accumulator.statistics().covariance, np.cov(rows - 1e6, rowvar=False), rtol=1e-4)
    squares = (rows.T @ rows - 1000 * np.outer(rows.mean(axis=0), rows.mean(axis=0))) / 999
    assert not np.allclose(squares, np.cov(rows - 1e6, rowvar=False), rtol=1e-1)  # what sums of squares would give


def test_commuting_gaussians_have_a_closed_form() -> None:
    rng = np.random.default_rng(3)
    axes, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    a, b = np.array([4.0, 1.0, 0.25, 9.0]), np.array([1.0, 1.0, 4.0, 0.0])
    found = frechet(_gaussian([0, 0, 0, 0], axes * a @ axes.T), _gaussian([1, 0, 2, 0], axes * b @ axes.T))
    assert found == pytest.approx(5 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-9)


def test_gaussians_that_do_not_commute_have_a_closed_form_in_two_dimensions() -> None:
    # tr (AB)^1/2 of 2 x 2 matrices is sqrt(tr AB + 2 sqrt(det AB)).
    a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 2.5]])
    assert not np.allclose(a @ b, b @ a)
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    wanted = 0.5 + np.trace(a) + np.trace(b) - 2 * cross
    assert frechet(_gaussian([0.5, 0.5], a), _gaussian([0, 0], b)) == pytest.approx(wanted, rel=1e-12)


def test_agrees_with_scipys_matrix_square_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    first, second = (statistics_of("e", _rows(300, 24, seed)) for seed in (0, 1))
    a, b = first.covariance, second.covariance
    apart = np.square(first.mean - second.mean).sum()
    wanted = apart + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet(first, second) == pytest.approx(wanted, rel=1e-8)
    assert frechet(first, second) == pytest.approx(frechet_distance(_rows(300, 24, 0), _rows(300, 24, 1)), rel=1e-9)


def test_singular_covariances() -> None:
    flat, line = np.diag([4.0, 0.0, 0.0]), np.diag([0.0, 9.0, 0.0])
    assert gaussian_distance(np.zeros(3), flat, np.zeros(3), line) == pytest.approx(13)
    assert gaussian_distance(np.zeros(3), flat, np.zeros(3), flat) == pytest.approx(0, abs=1e-12)
    zero = np.zeros((3, 3))
    assert gaussian_distance(np.zeros(3), zero, np.array([1.0, 2.0, 2.0]), zero) == pytest.approx(9)


def test_too_few_embeddings_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    few, many = statistics_of("e", _rows(8, 10)), statistics_of("e", _rows(11, 10))
    assert many.caution is None
    assert few.caution is not None and few.caution.startswith("8 embeddings of 10 numbers don't fix a covariance")
    with caplog.at_level(logging.WARNING):
        assert np.isfinite(frechet(few, many))
        assert [record.getMessage() for record in caplog.records] == [few.caution]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    wrote = statistics_of("clap-0123 ö", _rows())
    path = tmp_path / "a" / "stats.npz"
    write_statistics(path, wrote)
    found = read_statistics(path, "clap-0123 ö")
    assert (found.embedder, found.num_embeddings) == ("clap-0123 ö", 60)
    assert np.array_equal(found.mean, wrote.mean) and np.array_equal(found.covariance, wrote.covariance)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    first = path.read_bytes()
    write_statistics(path, wrote)
    assert path.read_bytes() == first


def test_another_embedder_is_refused_in_a_line_that_names_both(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    write_statistics(path, statistics_of("codec-aaaa", _rows()))
    with pytest.raises(MicroMusicGenError) as caught:
        read_statistics(path, "clap-bbbb")
    message = str(caught.value)
    assert all(word in message for word in ("codec-aaaa", "clap-bbbb", "stats.npz")) and "\n" not in message
    with pytest.raises(MicroMusicGenError, match="made by embedder a, and the other side by b"):
        frechet(statistics_of("a", _rows()), statistics_of("b", _rows()))


def _arrays(**changes: object) -> dict[str, np.ndarray]:
    good = {
        "format": np.array("micro_musicgen statistics"),
        "version": np.array(1),
        "embedder": np.array("e"),
        "num_embeddings": np.array(60),
        "mean": np.zeros(3),
        "covariance": np.eye(3),
    }
    return {name: np.asarray(value) for name, value in {**good, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedder": None}, "instead of format, version, embedder"),
        ({"mu": np.zeros(3)}, "instead of format"),
        ({"format": "other"}, "format 'other'"),
        ({"version": 2}, "version 2, which is not readable here; upgrade"),
        ({"num_embeddings": 1}, "made of 1 embeddings"),
        ({"mean": np.zeros(2)}, "covariance has the shape"),
        ({"mean": np.zeros((3, 3))}, "has the shape"),
        ({"mean": np.zeros(3, dtype=np.float32)}, "type float32"),
        ({"mean": np.zeros(8193), "covariance": np.zeros((1, 1))}, "has the shape"),
        ({"covariance": np.eye(4)}, "covariance has the shape"),
        ({"covariance": np.diag([1.0, -1.0, 1.0])}, "negative variance"),
        ({"covariance": np.array([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]])}, "not symmetric"),
        ({"covariance": np.full((3, 3), np.nan)}, "NaN"),
        ({"embedder": "e" * 1001}, "1000 letters"),
        ({"embedder": np.array(["e"], dtype=object)}, "type object"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = tmp_path / "stats.npz"
    np.savez(path, **_arrays(**changes))
    with pytest.raises(MicroMusicGenError, match=words) as caught:
        read_statistics(path)
    assert "\n" not in str(caught.value) and "stats.npz" in str(caught.value)


def test_good_arrays_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", **_arrays())
    assert read_statistics(tmp_path / "stats.npz").width == 3


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no statistics file"):
        read_statistics(tmp_path / "none.npz")
    write_statistics(tmp_path / "whole.npz", statistics_of("e", _rows()))
    cut = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    for content in (b"", b"text", cut[: len(cut) // 2], (tmp_path / "one.npy").read_bytes()):
        (tmp_path / "stats.npz").write_bytes(content)
        with pytest.raises(MicroMusicGenError, match="not a readable statistics file"):
            read_statistics(tmp_path / "stats.npz")


def test_bad_embeddings_are_named() -> None:
    accumulator = Accumulator("e")
    with pytest.raises(MicroMusicGenError, match="0 embeddings are too few"):
        accumulator.statistics()
    accumulator.add(np.zeros((1, 3)))
    for rows, words in (
        (np.zeros((2, 4)), "width 4 follow some of width 3"),
        (np.zeros(3), "too few"),
        (np.zeros((0, 3)), "too few"),
        (np.full((1, 3), np.inf), "NaN or infinity"),
    ):
        with pytest.raises(MicroMusicGenError, match=words):
            accumulator.add(rows)
    with pytest.raises(MicroMusicGenError, match="1 embeddings are too few"):
        accumulator.statistics()
