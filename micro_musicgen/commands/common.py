"""What every verb needs: a flag and two ways to print."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any

import typer


class TimeUnit(str, Enum):
    """How time is counted."""

    CLOCK = "clock"
    BEATS = "beats"


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def say(text: str) -> None:
    """Prints a line for the user."""
    typer.echo(text)


def report(as_json: bool, plain: Any, lines: list[str]) -> None:
    """Prints `plain` as JSON, or `lines`."""
    say(json.dumps(plain, indent=2, ensure_ascii=False, default=str) if as_json else "\n".join(lines))
