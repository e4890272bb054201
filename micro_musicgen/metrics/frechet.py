"""The Frechet distance of two sets of embeddings: how alike two collections of sounds are, as collections."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from micro_musicgen.contracts import Codec
from micro_musicgen.errors import MicroMusicGenError

Array = npt.NDArray[np.float64]


def frechet_distance(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Gives the squared Frechet (2-Wasserstein) distance of Gaussians fitted to embeddings [N, D] and [M, D].

    See `gaussian_distance`. It falls as sets grow: compare sets of one size.

    Raises:
        MicroMusicGenError: fewer than two embeddings, another width, or a number that is not finite.
    """
    return gaussian_distance(*moments(first), *moments(second))


def gaussian_distance(mean_a: Array, covariance_a: Array, mean_b: Array, covariance_b: Array) -> float:
    """Gives |mean - mean|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of means [D] and covariances [D, D], never below 0.

    Singular covariances, which fewer embeddings than dimensions have, are no trouble.

    Raises:
        MicroMusicGenError: the widths differ.
    """
    if mean_a.shape != mean_b.shape:
        raise MicroMusicGenError(f"embeddings of width {mean_a.size} and {mean_b.size} cannot be compared")
    root_a, root_b = _root(covariance_a), _root(covariance_b)
    # With A = Ra Ra and B = Rb Rb the cross term tr((A^1/2 B A^1/2)^1/2) is the nuclear norm of Ra Rb. Singular values
    # are never negative nor complex, unlike the eigenvalues of A B, and keep their digits for singular covariances.
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    apart = np.square(mean_a - mean_b).sum()
    return max(0.0, float(apart + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross))


def checked_rows(embeddings: npt.ArrayLike, at_least: int) -> Array:
    """Gives embeddings [N, D] in float64.

    Raises:
        MicroMusicGenError: other axes, fewer than `at_least`, or a number that is not finite.
    """
    values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != 2 or len(values) < at_least or not values.shape[1]:
        raise MicroMusicGenError(
            f"embeddings of shape {values.shape} are too few; give [N, D] with N of {at_least} or more"
        )
    if not np.isfinite(values).all():
        raise MicroMusicGenError("embeddings hold NaN or infinity; check the clips that they come from")
    return values


def moments(embeddings: npt.ArrayLike) -> tuple[Array, Array]:
    """Gives mean [D] and covariance [D, D] (over N - 1) of embeddings [N, D], in float64.

    Raises:
        MicroMusicGenError: fewer than two embeddings, other axes, or a number that is not finite.
    """
    values = checked_rows(embeddings, 2)
    mean = values.mean(axis=0)
    centred = values - mean
    return mean, centred.T @ centred / (len(values) - 1)


def _root(covariance: Array) -> Array:
    """Gives the symmetric square root [D, D]; eigenvalues that are rounding errors, of either sign, count as 0."""
    power, axes = np.linalg.eigh(covariance)
    # A zero that came out as 1e-16 has a root of 1e-8, and a singular covariance has many of them.
    rounding = len(power) * np.finfo(np.float64).eps * np.abs(power).max()
    root: Array = (axes * np.sqrt(np.where(power > rounding, power, 0.0))) @ axes.T
    return root


def codec_embeddings(codec: Codec, wav: torch.Tensor) -> Array:
    """Gives the codec's latents of audio [B, C, L] as one embedding a frame, float64 [B * T, D]."""
    latents = codec.encode_latents(wav).transpose(1, 2).reshape(-1, codec.latent_dim)
    return latents.double().cpu().numpy()


def code_embeddings(codec: Codec, codes: torch.Tensor) -> Array:
    """Gives the latents that codes [B, K, T] stand for as one embedding a frame, float64 [B * T, D]."""
    latents = codec.codes_to_latents(codes).transpose(1, 2).reshape(-1, codec.latent_dim)
    return latents.double().cpu().numpy()
