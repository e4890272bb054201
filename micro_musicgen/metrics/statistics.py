"""Mean and covariance of a collection's embeddings: all that a Frechet distance needs of it, in a small file."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from micro_musicgen import storage
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.metrics.frechet import Array, checked_rows, gaussian_distance

logger = logging.getLogger(__name__)

FORMAT = "micro_musicgen statistics"
VERSION = 1
MAX_WIDTH = 8192
"""Wider rows are refused: a covariance of theirs takes more than half a gigabyte."""
MAX_NAME = 1000


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """embedder: the name of what made the embeddings. mean [D] and covariance [D, D] (over N - 1), float64."""

    embedder: str
    num_embeddings: int
    mean: Array
    covariance: Array

    @property
    def width(self) -> int:
        """Numbers in an embedding, D."""
        return self.mean.size

    @property
    def caution(self) -> str | None:
        """What to tell whoever reads a distance made of too few embeddings; None when they are enough."""
        if self.num_embeddings > self.width:
            return None
        return (
            f"{self.num_embeddings} embeddings of {self.width} numbers don't fix a covariance; Frechet distances are "
            f"too large, compare them at equal N only, or give more than {self.width}"
        )


class Accumulator:
    """Statistics of embeddings that come in batches. Invariant: the batches may be cut anyhow, up to rounding."""

    def __init__(self, embedder: str) -> None:
        self.embedder = embedder
        self.num_embeddings = 0
        self._mean: Array = np.zeros(0)
        self._scatter: Array = np.zeros((0, 0))

    def add(self, embeddings: npt.ArrayLike) -> None:
        """Takes embeddings [N, D].

        Raises:
            MicroMusicGenError: another width than before, other axes, none, or a number that is not finite.
        """
        rows = checked_rows(embeddings, 1)
        if not self.num_embeddings:
            self._mean, self._scatter = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
        elif rows.shape[1] != self._mean.size:
            raise MicroMusicGenError(f"embeddings of width {rows.shape[1]} follow some of width {self._mean.size}")
        # Chan, Golub & LeVeque 1979: sums of squares about each batch's own mean, and what the means are apart.
        # Raw sums of squares would lose the digits of a small spread about a large mean.
        old, new = self.num_embeddings, len(rows)
        mean = rows.mean(axis=0)
        centred, apart = rows - mean, mean - self._mean
        self._scatter += centred.T @ centred + np.outer(apart, apart) * (old * new / (old + new))
        self._mean = self._mean + apart * (new / (old + new))
        self.num_embeddings = old + new

    def statistics(self) -> Statistics:
        """Gives the statistics of all that was added.

        Raises:
            MicroMusicGenError: that were fewer than two embeddings.
        """
        if self.num_embeddings < 2:
            raise MicroMusicGenError(f"{self.num_embeddings} embeddings are too few for statistics; give 2 or more")
        return Statistics(
            embedder=self.embedder,
            num_embeddings=self.num_embeddings,
            mean=self._mean.copy(),
            covariance=self._scatter / (self.num_embeddings - 1),
        )


def statistics_of(embedder: str, embeddings: npt.ArrayLike) -> Statistics:
    """Gives the statistics of embeddings [N, D] that the embedder of that name made.

    Raises:
        MicroMusicGenError: fewer than two, other axes, or a number that is not finite.
    """
    accumulator = Accumulator(embedder)
    accumulator.add(embeddings)
    return accumulator.statistics()


def frechet(first: Statistics, second: Statistics) -> float:
    """Gives the squared Frechet distance of two collections; logs a warning when one of them is small.

    Raises:
        MicroMusicGenError: different embedders made them.
    """
    if first.embedder != second.embedder:
        raise _other_embedder("these statistics", first.embedder, second.embedder)
    for caution in {first.caution, second.caution} - {None}:
        logger.warning("%s", caution)
    return gaussian_distance(first.mean, first.covariance, second.mean, second.covariance)


def write_statistics(path: Path | str, statistics: Statistics) -> None:
    """Writes `stats.npz`, replacing it at once.

    Raises:
        MicroMusicGenError: the folder cannot be written to.
    """
    with storage.atomic_write(path) as file:
        np.savez(
            file,
            format=np.array(FORMAT),
            version=np.array(VERSION, dtype=np.int64),
            embedder=np.array(statistics.embedder),
            num_embeddings=np.array(statistics.num_embeddings, dtype=np.int64),
            mean=statistics.mean.astype(np.float64),
            covariance=statistics.covariance.astype(np.float64),
        )


def read_statistics(path: Path | str, embedder: str | None = None) -> Statistics:
    """Gives the statistics in `stats.npz`; its claims about sizes are checked before anything is read.

    embedder: the name of the one in use; other statistics are refused.

    Raises:
        MissingFileError: there is no such file.
        MicroMusicGenError: it is not a statistics file, is damaged or newer than this version, or another embedder's.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no statistics file {path}; check the path, or give a folder of sounds")
    try:
        members = _members(path)
        found = _checked(members, path)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        if isinstance(error, MicroMusicGenError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MicroMusicGenError(f"{path} is not a readable statistics file ({reason}); make it again") from error
    if embedder is not None and found.embedder != embedder:
        raise _other_embedder(str(path), found.embedder, embedder)
    return found


def _other_embedder(what: str, first: str, second: str) -> MicroMusicGenError:
    return MicroMusicGenError(
        f"{what} were made by embedder {first}, and the other side by {second}; distances need the same one for both"
    )


def _members(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Gives the arrays in the file, after their headers have been looked at: none is larger than it may be."""
    allowed = {"format": "U", "version": "i", "embedder": "U", "num_embeddings": "i", "mean": "f", "covariance": "f"}
    with zipfile.ZipFile(path) as archive:
        held = set(archive.namelist())
        if held != {f"{name}.npy" for name in allowed}:
            raise ValueError(f"it holds {', '.join(sorted(held)) or 'nothing'} instead of {', '.join(allowed)}")
        width = _header(archive, "mean", "f")[0]
        shapes = {"mean": width, "covariance": (*width, *width)}
        for name, kind in allowed.items():
            shape, _ = _header(archive, name, kind)
            if shape != shapes.get(name, ()):
                raise ValueError(f"{name} has the shape {shape} instead of {shapes.get(name, ())}")
        if len(width) != 1 or not 1 <= width[0] <= MAX_WIDTH:
            raise ValueError(f"mean has the shape {width}; embeddings have 1 to {MAX_WIDTH} numbers")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in allowed}


def _header(archive: zipfile.ZipFile, name: str, kind: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Gives shape and dtype that one array claims, which must be of that kind and as long as it says."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is written in another format of numpy's")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        begin = file.tell()
    if dtype.hasobject or dtype.kind != kind or (kind != "U" and dtype.itemsize != 8):
        raise ValueError(f"{name} is of type {dtype}")
    if kind == "U" and dtype.itemsize > 4 * MAX_NAME:
        raise ValueError(f"{name} is a text of more than {MAX_NAME} letters")
    if member.file_size != begin + int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ValueError(f"{name} is not as long as it says")
    return shape, dtype


def _checked(members: dict[str, npt.NDArray[np.generic]], path: Path) -> Statistics:
    if str(members["format"]) != FORMAT:
        raise ValueError(f"it says format {str(members['format'])!r}")
    version, number = int(members["version"]), int(members["num_embeddings"])
    if not 1 <= version <= VERSION:
        raise MicroMusicGenError(f"{path} is of version {version}, which is not readable here; upgrade micro-musicgen")
    mean = np.asarray(members["mean"], dtype=np.float64)
    covariance = np.asarray(members["covariance"], dtype=np.float64)
    if number < 2:
        raise ValueError(f"it says that it was made of {number} embeddings")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("it holds NaN or infinity")
    if (covariance.diagonal() < 0).any() or not np.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-12):
        raise ValueError("its covariance is none: not symmetric, or with a negative variance")
    return Statistics(embedder=str(members["embedder"]), num_embeddings=number, mean=mean, covariance=covariance)
