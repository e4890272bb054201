"""What an evaluation leaves behind: evaluation.json, a table to read and a plot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from micro_musicgen import storage
from micro_musicgen.evaluation.findings import Finding, Row, ordered
from micro_musicgen.evaluation.plot import plot_rows

FORMAT = "micro_musicgen_evaluation"
VERSION = 1
JSON_NAME, TABLE_NAME, PLOT_NAME = "evaluation.json", "evaluation.txt", "evaluation.png"
TABLE_WIDTH = 160


@dataclass(frozen=True)
class Report:
    """Findings by measure, and why each other measure is missing. facts: what was evaluated, on what, by what."""

    facts: Mapping[str, Any]
    findings: Mapping[str, Finding] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    saved: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """The table, in its order."""
        return [row for name in ordered() if name in self.findings for row in self.findings[name].rows]

    def to_dict(self) -> dict[str, Any]:
        """Gives the content of evaluation.json; a measure without a finding is null, with the reason in `missing`."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **self.facts,
            "metrics": {
                name: self.findings[name].to_dict() if name in self.findings else None
                for name in ordered()
                if name in self.findings or name in self.missing
            },
            "missing": dict(self.missing),
            "statistics": list(self.saved),
        }

    def lines(self) -> list[str]:
        """Gives the table and what must be known beside it."""
        notes = [f"note ({name}): {note}" for name, finding in self.findings.items() for note in finding.notes]
        missing = [f"not measured: {name}: {reason}" for name, reason in self.missing.items()]
        return [*_table(self.rows), *notes, *missing]

    def write(self, folder: Path) -> None:
        """Writes evaluation.json, evaluation.txt and evaluation.png, replacing what was there.

        Raises:
            MicroMusicGenError: the folder can't be written to.
        """
        storage.write_json(folder / JSON_NAME, self.to_dict())
        storage.write_text(folder / TABLE_NAME, "\n".join(self.lines()) + "\n")
        plot_rows(self.rows, folder / PLOT_NAME, title=str(self.facts.get("model", {}).get("name", "")))


def _table(rows: list[Row]) -> list[str]:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("measure", no_wrap=True)
    table.add_column("", justify="center")
    for name in ("model", "95 %", "beside", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what is beside", overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.label} [{row.unit}]".replace("[", r"\[") if row.unit else row.label,
            {"lower": "↓", "higher": "↑", "alike": "≈"}[row.better],
            number(row.value),
            _interval(row.low, row.high),
            "" if row.beside is None else number(row.beside),
            _interval(row.beside_low, row.beside_high),
            row.beside_label,
            "" if row.n is None else str(row.n),
        )
    page = Console(file=io.StringIO(), width=TABLE_WIDTH, color_system=None)
    page.print(table)
    text = page.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def number(value: float, digits: int = 4) -> str:
    """Gives a number in the digits that count."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number(low, 3)} .. {number(high, 3)}"
