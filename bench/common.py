"""What every bench shares: rows and their JSON, medians with spread, aims, the table, the common options."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LOWER_IS_BETTER = frozenset({"s", "ms", "MB", "nat"})
"""Units in which less is better. In all others more is."""

_BEGAN = time.monotonic()

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "img"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number.

    value, peer_value: medians; None where nothing could be measured, and `note` says why. ratio: how many times better
    than the peer, above 1 whichever direction is better. spread: least and greatest of the `n` repeats. aim: see
    `aim_met`; None for none.
    """

    name: str
    value: float | None
    unit: str
    aim: str | None = None
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    n: int = 0
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """Repeats of one measurement; `failure` says why there are none."""

    values: tuple[float, ...] = ()
    failure: str = ""

    @property
    def median(self) -> float | None:
        """Gives the middle of the repeats."""
        return statistics.median(self.values) if self.values else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Gives the least and the greatest."""
        return (min(self.values), max(self.values)) if self.values else None


def make_row(
    name: str,
    ours: Sample,
    unit: str,
    *,
    peer: str | None = None,
    theirs: Sample | None = None,
    aim: str | None = None,
    note: str = "",
) -> Row:
    """Gives the row of a measurement and of the same measurement at a peer; failures end up in its note."""
    value, peer_value = ours.median, theirs.median if theirs else None
    their_failure = theirs.failure if theirs and theirs.failure != ours.failure else ""
    notes = [note, ours.failure, f"{peer}: {their_failure}" if their_failure else ""]
    return Row(
        name=name,
        value=_rounded(value),
        unit=unit,
        aim=aim,
        peer=peer,
        peer_value=_rounded(peer_value),
        ratio=_rounded(times_better(value, peer_value, unit)),
        spread=None if ours.spread is None else tuple(_rounded(x) for x in ours.spread),  # type: ignore[arg-type]
        n=len(ours.values),
        note="; ".join(part for part in notes if part),
    )


def times_better(value: float | None, peer_value: float | None, unit: str) -> float | None:
    """Gives how many times better `value` is; None when either is missing or zero."""
    if not value or not peer_value:
        return None
    return peer_value / value if unit in LOWER_IS_BETTER else value / peer_value


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def aim_met(row: Row) -> bool | None:
    """Says whether a row meets its aim, "ratio >= 6" or "value <= 0.3"; None without an aim or without the number.

    Raises:
        ValueError: the aim has another form.
    """
    if row.aim is None:
        return None
    parsed = re.fullmatch(r"(ratio|value) (>=|<=) ([\d.]+)", row.aim)
    if parsed is None:
        raise ValueError(f"aim {row.aim!r} of {row.name} is not like 'ratio >= 6' or 'value <= 0.3'")
    found = row.ratio if parsed[1] == "ratio" else row.value
    if found is None:
        return None
    return found >= float(parsed[3]) if parsed[2] == ">=" else found <= float(parsed[3])


def machine(**more: Any) -> dict[str, Any]:
    """Gives the facts of this machine that numbers depend on, none that name it. more: what the bench knows besides."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in ("torch", "audiocraft", "transformers", "numpy")},
        **more,
    }


def machine_line(facts: dict[str, Any]) -> str:
    """Gives one line for a plot or the head of a table."""
    gpu = f", {facts['gpu']}" if facts.get("gpu") else ""
    clips = f", clips of {facts['clip_s']:g} s" if facts.get("clip_s") else ""
    return f"{facts['cpu']}, {facts['cores']} cores{gpu}, torch {facts['packages'].get('torch')}{clips}"


def package_version(name: str) -> str | None:
    """Gives the installed version of a package; None when it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def report_json(rows: Iterable[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """Gives what `--json` writes."""
    return {"machine": facts, "rows": [asdict(row) for row in rows]}


def read_rows(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Gives rows and machine of a file that `--json` wrote."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**{**row, "spread": tuple(row["spread"]) if row["spread"] else None}) for row in plain["rows"]]
    return rows, plain["machine"]


def write_report(rows: Sequence[Row], facts: dict[str, Any], path: Path) -> None:
    """Writes the JSON report, `-` for the terminal."""
    text = json.dumps(report_json(rows, facts), indent=1) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def print_table(rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Prints the rows for people: value, spread, peer, ratio, aim and whether it is met, notes below."""
    head = ("row", "value", "unit", "min..max (n)", "peer", "its value", "ratio", "aim", "")
    body = [_cells(row) for row in rows]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    right = {1, 5, 6}
    print(machine_line(facts))
    for line in [head, *body]:
        padded = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        print("  ".join(padded).rstrip())
    noted = [row for row in rows if row.note]
    if noted:
        print("notes")
        for row in noted:
            print(f"  {row.name}: {row.note}")


def _cells(row: Row) -> tuple[str, ...]:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"

    spread = "" if row.spread is None else f"{shown(row.spread[0])}..{shown(row.spread[1])} ({row.n})"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    verdict = {True: "met", False: "missed", None: ""}[aim_met(row)]
    peer = shown(row.peer_value) if row.peer else ""
    return row.name, shown(row.value), row.unit, spread, row.peer or "", peer, ratio, row.aim or "", verdict


def bench_parser(description: str | None) -> argparse.ArgumentParser:
    """Gives the options that every bench has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a rough answer within five minutes on two cores")
    parser.add_argument("--prepare", action="store_true", help="make the models that are timed or scored, then stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there; - for the terminal")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where models are kept (default: data home/bench)")
    return parser


def wanted_parts(only: str | None, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Gives the parts that `--only` names, all of them without it.

    Raises:
        SystemExit: a part that there is not.
    """
    wanted = tuple(only.split(",")) if only else parts
    unknown = [part for part in wanted if part not in parts]
    if unknown:
        say(f"error: no part {', '.join(unknown)}; known: {', '.join(parts)}")
        raise SystemExit(2)
    return wanted


def finish(rows: Sequence[Row], given: argparse.Namespace) -> int:
    """Prints the rows of a bench with the options of `bench_parser`, writes `--json`, and gives the exit code."""
    facts = machine(device=given.device, quick=given.quick)
    print_table(rows, facts)
    if given.json:
        write_report(rows, facts, given.json)
    return 0


def say(text: str) -> None:
    """Tells a person how far the bench is, after how many seconds; results alone go to stdout."""
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", file=sys.stderr, flush=True)
