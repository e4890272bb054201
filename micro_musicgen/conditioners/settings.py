"""Settings of a conditioner, from plain data into a frozen dataclass: all that is wrong said at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from micro_musicgen.errors import MicroMusicGenError

T = TypeVar("T")


def read_settings(kind: type[T], plain: Mapping[str, Any], *, source: str) -> T:
    """Gives the dataclass `kind` filled with `plain`; keys with defaults may be left out.

    Raises:
        MicroMusicGenError: keys that it doesn't know or that are missing, a value of another type, or what `kind`'s own
            `__post_init__` refuses; naming `source`.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    faults = [f"it has no {key!r} (its settings: {', '.join(known)})" for key in plain if key not in known]
    for name, field in known.items():
        is_needed = field.default is MISSING and field.default_factory is MISSING
        if name not in plain:
            faults += [f"{name} is missing"] if is_needed else []
        elif not _fits(plain[name], str(field.type)):
            faults.append(f"{name} is {plain[name]!r}, expected {field.type}")
    if faults:
        raise MicroMusicGenError(f"{source}: {'; '.join(faults)}")
    return kind(**plain)


def _fits(value: Any, wanted: str) -> bool:
    allowed = [part.strip() for part in wanted.split("|")]
    if value is None:
        return "None" in allowed
    if isinstance(value, bool):
        return "bool" in allowed
    if isinstance(value, int):
        return "int" in allowed or "float" in allowed
    return type(value).__name__ in allowed
