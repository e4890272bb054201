"""What a measure finds: rows for the table, each with an interval and something to compare it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.bootstrap import Estimate
from micro_musicgen.registry import Registry

if TYPE_CHECKING:
    from micro_musicgen.evaluation.subject import Subject

Better = Literal["lower", "higher", "alike"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number. low, high: 95 % interval over clips, None where there is none. n: clips or tracks.

    beside: what to compare it with, `beside_label` says what that is. better: lower, higher, or alike (near `beside`).
    """

    name: str
    label: str
    value: float
    better: Better
    unit: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    beside: float | None = None
    beside_low: float | None = None
    beside_high: float | None = None
    beside_label: str = ""


def row(
    name: str,
    label: str,
    found: Estimate | float,
    better: Better,
    *,
    unit: str = "",
    beside: Estimate | float | None = None,
    beside_label: str = "",
) -> Row:
    """Gives a row of estimates or bare numbers."""
    plain = found if isinstance(found, Estimate) else Estimate(found, None, None, 0)
    other = beside if isinstance(beside, Estimate) else None
    bare = beside if isinstance(beside, float) else None
    return Row(
        name=name,
        label=label,
        value=plain.value,
        better=better,
        unit=unit,
        low=plain.low,
        high=plain.high,
        n=plain.n or None,
        beside=other.value if other else bare,
        beside_low=other.low if other else None,
        beside_high=other.high if other else None,
        beside_label=beside_label if beside is not None else "",
    )


@dataclass(frozen=True)
class Finding:
    """What one measure gives. details: plain data beyond the table. notes: what a reader of the table must know."""

    rows: tuple[Row, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Gives plain data."""
        return {"rows": [asdict(each) for each in self.rows], "details": dict(self.details), "notes": list(self.notes)}


class NotMeasured(MicroMusicGenError):
    """A measure lacks something that it needs; the message says what to give."""


Measure = Callable[["Subject"], Finding]

measures: Registry[Measure] = Registry("measure")
"""By name. A measure takes the subject, and raises `NotMeasured` where the subject lacks what it needs."""

ORDER = ("nll", "clap_score", "frechet", "reconstruction", "codes", "novelty", "consistency", "accuracy")
"""In which the report shows them; others that are registered follow."""


def ordered() -> list[str]:
    """Gives the names of all measures, in the report's order."""
    import micro_musicgen.evaluation.copying
    import micro_musicgen.evaluation.likelihood
    import micro_musicgen.evaluation.likeness
    import micro_musicgen.evaluation.music  # noqa: F401  (each registers its measures)

    return [name for name in ORDER if name in measures] + [name for name in measures if name not in ORDER]
