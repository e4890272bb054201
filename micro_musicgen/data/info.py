"""What may be known about a sound: the fields, their spellings, and values brought into one form.

A table, a JSON file and a tag are written by others, so every value is checked here: its type, its length, its range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from micro_musicgen.data.licenses import license_id

LISTS = ("moods", "keywords")
FIELDS = (
    *("description", "genre", *LISTS, "instrument", "bpm", "key"),
    *("title", "artist", "name", "license", "copyright", "source"),
)
"""The names in `Track.info`. The first seven are what a model may hear."""
ALIASES = {
    **{name: "description" for name in ("text", "caption", "prompt")},
    **{name: "genre" for name in ("genres", "style")},
    **{name: "moods" for name in ("mood",)},
    **{name: "keywords" for name in ("keyword", "tags")},
    **{name: "instrument" for name in ("instruments", "kit")},
    **{name: "bpm" for name in ("tempo", "tbpm", "tmpo")},
    **{name: "key" for name in ("initialkey", "initial_key", "tkey")},
    **{name: "license" for name in ("licence", "licenses")},
    **{name: "source" for name in ("url", "origin", "purl", "website")},
}
MAX_DESCRIPTION_CHARS = 20_000
MAX_TEXT_CHARS = 500
MAX_ITEMS = 64
BPM_RANGE = (20.0, 400.0)
_NOTHING = frozenset({"", "none", "null", "nan", "n/a", "na", "unknown", "-", "?"})
_KEY = re.compile(r"([A-Ga-g])[ _-]?(#|♯|sharp|b|♭|flat)?[ _-]?(m|M|min|minor|moll|maj|major|dur)?\.?")
_MODES = {"m": "minor", "min": "minor", "minor": "minor", "moll": "minor"}
_WHEEL = "Ab Eb Bb F C G D A E B F# Db"
"""Minor keys 1A to 12A of the wheel that DJ programs write, and their major twins, three semitones higher."""
_WHEEL_MAJOR = "B F# Db Ab Eb Bb F C G D A E"


@dataclass(frozen=True)
class Cleaned:
    """What came out of one description of a sound.

    info: field to plain value, only what is known. refused: values that are no such thing. ignored: numbers that
    can't be right. Both name the field, and both are left out of info.
    """

    info: dict[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def field_name(name: str) -> str | None:
    """Gives the field that a column, key or tag called `name` holds, None for what is not known here."""
    plain = re.sub(r"[\s-]+", "_", name.strip().casefold())
    return plain if plain in FIELDS else ALIASES.get(plain)


def clean(raw: Mapping[Any, Any]) -> Cleaned:
    """Gives the known fields of `raw` as text, lists of text, and one number: bpm.

    Where two keys mean one field, its own name goes before other spellings. An unknown licence stays as it is written.
    """
    info: dict[str, Any] = {}
    refused: list[str] = []
    ignored: list[str] = []
    for name, value in sorted(raw.items(), key=lambda item: item[0] not in FIELDS):
        known = field_name(name) if isinstance(name, str) else None
        if known is None or known in info or _is_nothing(known, value):
            continue
        try:
            found = _value(known, value)
        except _Odd as odd:
            ignored.append(f"{known} {odd}")
        except ValueError as error:
            refused.append(f"{known} {error}")
        else:
            if found and not _is_nothing(known, found):
                info[known] = found
    return Cleaned({name: info[name] for name in FIELDS if name in info}, tuple(refused), tuple(ignored))


class _Odd(ValueError):
    """A value that is passed over rather than refused."""


def _is_nothing(name: str, value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value) and name != "bpm"  # a tempo that is no number is worth a note
    return value is None or (isinstance(value, str) and value.strip().casefold() in _NOTHING)


def _value(name: str, value: Any) -> Any:
    if name == "bpm":
        return _bpm(value)
    if name in LISTS:
        return _items(value)
    if name in ("genre", "instrument") and isinstance(value, list):
        value = ", ".join(_items(value))
    text = plain_text(value, MAX_DESCRIPTION_CHARS if name == "description" else MAX_TEXT_CHARS)
    if name == "key":
        return musical_key(text) or text
    return license_id(text) or text if name == "license" else text


def plain_text(value: Any, max_chars: int) -> str:
    """Gives one line of printable text.

    Raises:
        ValueError: neither text nor a number, or longer than max_chars.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"is {_kind(value)}; give text")
    text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    if len(text) > max_chars:
        raise ValueError(f"has {len(text)} characters, at most {max_chars} are read; shorten it")
    text = text.encode("utf-8", "replace").decode()  # JSON can hold half a character, which no file can
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _items(value: Any) -> list[str]:
    """Gives the parts of a list, or of text with commas or semicolons, each once."""
    parts = value if isinstance(value, list) else re.split("[,;]", plain_text(value, MAX_DESCRIPTION_CHARS))
    if len(parts) > MAX_ITEMS:
        raise ValueError(f"has {len(parts)} entries, at most {MAX_ITEMS} are read; shorten it")
    texts = [plain_text(part, MAX_TEXT_CHARS) for part in parts if part is not None]
    return list(dict.fromkeys(text for text in texts if text.casefold() not in _NOTHING))


def _bpm(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"is {_kind(value)}; give a number")
    shown = str(value)[:40] if isinstance(value, str) else f"{value}"[:40]
    try:
        number = float(value.casefold().removesuffix("bpm") if isinstance(value, str) else value)
    except (ValueError, OverflowError) as error:
        raise _Odd(f"{shown!r} is no number") from error
    if number == 0:
        return None  # how many programs write "not known"
    if not BPM_RANGE[0] <= number <= BPM_RANGE[1]:
        raise _Odd(f"{shown} lies outside {BPM_RANGE[0]:g} to {BPM_RANGE[1]:g}")
    return number


def musical_key(text: str, needs_mode: bool = False) -> str | None:
    """Gives a key such as "F# minor" for F#m, f sharp min, F♯ moll or 11A; None for what is no key.

    needs_mode: a bare letter is no key, nor is a small one before "m": for words of file names.
    """
    wheel = re.fullmatch(r"(1[0-2]|[1-9])([ABab])", text)
    if wheel is not None and not needs_mode:
        minor = wheel[2] in "Aa"
        return f"{(_WHEEL if minor else _WHEEL_MAJOR).split()[int(wheel[1]) - 1]} {'minor' if minor else 'major'}"
    found = _KEY.fullmatch(text) or _KEY.fullmatch(text[:1] + text[1:].casefold())
    if found is None or (needs_mode and (not found[3] or (found[3] in "mM" and not text[0].isupper()))):
        return None
    letter, sign, mode = found.groups()
    note = letter.upper() + {"#": "#", "♯": "#", "sharp": "#", None: ""}.get(sign, "b")
    return note if mode is None else f"{note} {_MODES.get(mode, 'major')}"


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "true or false" if isinstance(value, bool) else f"a {type(value).__name__}"
