"""What the published scales weigh, counted from their shapes: the table of `micro-musicgen size`."""

from __future__ import annotations

from dataclasses import dataclass

from micro_musicgen.contracts import LMSpec
from micro_musicgen.lm import scales

FP32_BYTES = 4


@dataclass(frozen=True)
class SizeRow:
    """The weight of one scale over one codec. Invariant: total = embedding + rest.

    embedding: parameters in the K embedding tables and K output heads, which grow with the codec's card. fp32_mb:
    10^6 bytes of the weights as trained and released.
    """

    scale: str
    card: int
    total: int
    embedding: int
    rest: int
    fp32_mb: float


def size_row(scale: str, shape: LMSpec) -> SizeRow:
    """Gives the row of a model of `shape`, under the name `scale`."""
    total, embedding = shape.num_parameters, shape.num_embedding_parameters
    return SizeRow(scale, shape.card, total, embedding, total - embedding, total * FP32_BYTES / 1e6)


def size_rows(*, card: int = 2048, num_codebooks: int = 4, backbone: str = scales.TRANSFORMER) -> list[SizeRow]:
    """Gives one row per published scale of `backbone`, smallest first but for `micro` and what only llamas have.

    Raises:
        MicroMusicGenError: a backbone without scales.
    """
    shapes = {
        name: scales.spec(name, card=card, num_codebooks=num_codebooks, backbone=backbone)
        for name in scales.scales_of(backbone)
    }
    return [size_row(name, shape) for name, shape in shapes.items()]
