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

    |mean - mean|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), never below 0. It falls as sets grow: compare sets of one size.

    Raises:
        MicroMusicGenError: fewer than two embeddings, another width, or a number that is not finite.
    """
    mean_a, root_a = _moments(first)
    mean_b, root_b = _moments(second)
    if mean_a.shape != mean_b.shape:
        raise MicroMusicGenError(f"embeddings of width {mean_a.size} and {mean_b.size} cannot be compared")
    # With A = Ra Ra and B = Rb Rb the cross term tr((A^1/2 B A^1/2)^1/2) is the nuclear norm of Ra Rb. Singular values
    # are never negative nor complex, unlike the eigenvalues of A B, and keep their digits for singular covariances.
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    apart = np.square(mean_a - mean_b).sum()
    return max(0.0, float(apart + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross))


def _moments(embeddings: npt.ArrayLike) -> tuple[Array, Array]:
    """Gives mean [D] and the symmetric square root [D, D] of the covariance."""
    values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise MicroMusicGenError(f"embeddings of shape {values.shape} are too few; give [N, D] with N of 2 or more")
    if not np.isfinite(values).all():
        raise MicroMusicGenError("embeddings hold NaN or infinity; check the clips that they come from")
    covariance = np.atleast_2d(np.cov(values, rowvar=False))
    power, axes = np.linalg.eigh(covariance)
    return values.mean(axis=0), (axes * np.sqrt(power.clip(min=0))) @ axes.T


def codec_embeddings(codec: Codec, wav: torch.Tensor) -> Array:
    """Gives the codec's latents of audio [B, C, L] as one embedding a frame, float64 [B * T, D]."""
    latents = codec.encode_latents(wav).transpose(1, 2).reshape(-1, codec.latent_dim)
    return latents.double().cpu().numpy()


def code_embeddings(codec: Codec, codes: torch.Tensor) -> Array:
    """Gives the latents that codes [B, K, T] stand for as one embedding a frame, float64 [B * T, D]."""
    latents = codec.codes_to_latents(codes).transpose(1, 2).reshape(-1, codec.latent_dim)
    return latents.double().cpu().numpy()
