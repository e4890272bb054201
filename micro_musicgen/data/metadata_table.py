"""`--metadata FILE`: rows that describe sounds, from CSV or JSON, and which file each row means."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from micro_musicgen.data.info import MAX_DESCRIPTION_CHARS, clean, field_name
from micro_musicgen.errors import MicroMusicGenError, MissingFileError

MAX_TABLE_BYTES = 64 << 20
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
FILE_COLUMNS = ("file", "path", "filename", "file_name", "file_path", "filepath", "audio", "stem", "name")
"""What may hold the file's name, the first of them that is there."""


class Row(NamedTuple):
    """One description. key: what names the file. place: where it stands, for people. info: cleaned fields."""

    key: str
    place: str
    info: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A metadata file. notes: values that were passed over. unread: columns and keys that mean nothing here."""

    path: Path
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    unread: tuple[str, ...]


def read_table(path: Path | str) -> Table:
    """Gives the rows of a metadata file: CSV or TSV with a header, a JSON list, a JSON object by file, JSON lines.

    Raises:
        MissingFileError: there is no such file.
        MicroMusicGenError: it is of another kind, too large, not UTF-8, damaged, has no column that names files or
            none that is known, or a value is of the wrong kind. The line names the file, and the row if there is one.
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise MissingFileError(f"metadata file {path} does not exist; check the path")
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        raise MicroMusicGenError(f"metadata file {path} must be a file that ends in {', '.join(SUFFIXES)}")
    records = _csv_records if path.suffix.lower() in (".csv", ".tsv") else _json_records
    rows: list[Row] = []
    notes: list[str] = []
    unread: dict[str, None] = {}
    knows_any = False
    for place, key, raw in records(path, _text(path)):
        cleaned = clean(raw)
        if cleaned.refused:
            raise MicroMusicGenError(f"{path}, {place}: {cleaned.refused[0]}")
        notes += [f"{path.name}, {place}: {ignored}; passed over" for ignored in cleaned.ignored]
        unread.update(dict.fromkeys(str(name)[:40] for name in raw if field_name(str(name)) is None))
        knows_any = knows_any or any(field_name(str(name)) for name in raw)
        if key:
            rows.append(Row(key, place, cleaned.info))
        else:
            notes.append(f"{path.name}, {place}: names no file; passed over")
    if not rows or not knows_any:
        what = "describes no file" if not rows else "has no column or key that is known"
        raise MicroMusicGenError(f"{path} {what}; give it file and, for example, description, genre, bpm, license")
    return Table(path, tuple(rows), tuple(notes), tuple(unread))


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_TABLE_BYTES:
            raise MicroMusicGenError(f"{path} has {size} bytes, at most {MAX_TABLE_BYTES} are read; split the data set")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise MicroMusicGenError(f"{path} is not UTF-8 (line {line}); save it as UTF-8") from error
    except OSError as error:
        raise MicroMusicGenError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def _csv_records(path: Path, text: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    csv.field_size_limit(max(csv.field_size_limit(), 8 * MAX_DESCRIPTION_CHARS))
    first = text.split("\n", 1)[0]
    # What parts the columns, by the header: spreadsheets of half of Europe write semicolons.
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        column = _file_column(path, header)
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            place = f"row {reader.line_num}"
            if len(values) > len(header):
                raise MicroMusicGenError(
                    f"{path}, {place}: {len(values)} values for {len(header)} columns; "
                    f'put text that holds {delimiter!r} in quotes: "..."'
                )
            yield place, values[column].strip() if column < len(values) else "", _record(header, values, column)
    except csv.Error as error:
        raise MicroMusicGenError(f"{path}, row {reader.line_num}: {error}; mend it or save it again") from error


def _file_column(path: Path, header: Sequence[str]) -> int:
    lowered = [name.casefold() for name in header]
    twice = next((name for name in lowered if name and lowered.count(name) > 1), None)
    if twice is not None:
        raise MicroMusicGenError(f"{path} has column {twice!r} twice; rename or remove one")
    column = next((lowered.index(name) for name in FILE_COLUMNS if name in lowered), None)
    others = [name for index, name in enumerate(header) if index != column and field_name(name)]
    if column is None or not others:
        what = "no column that names the file" if column is None else "no column that is known"
        raise MicroMusicGenError(
            f"{path} has {what} in its first line {','.join(header)[:80]!r}; "
            "give it a header such as file,description,genre,bpm,license"
        )
    return column


def _record(header: Sequence[str], values: Sequence[str], column: int) -> dict[str, Any]:
    return {
        name: value
        for index, (name, value) in enumerate(zip(header, values, strict=False))
        if name and (index != column or name.casefold() == "name")
    }


def _json_records(path: Path, text: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _item(path, f"line {number}", _parsed(path, line, f", line {number}"))
        return
    plain = _parsed(path, text, "")
    if isinstance(plain, _Pairs):
        for key, value in plain:
            place = f"key {key[:80]!r}"
            if isinstance(value, str):
                value = _Pairs([("description", value)])
            if not isinstance(value, _Pairs):
                raise MicroMusicGenError(f'{path}, {place}: is no object such as {{"genre": "jungle"}}')
            yield place, key.strip(), _object(path, place, value)
    elif isinstance(plain, list):
        for number, value in enumerate(plain, 1):
            yield _item(path, f"item {number}", value)
    else:
        raise MicroMusicGenError(f"{path} holds neither a list of objects nor an object by file name")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written, so that a key that stands there twice is seen."""


def _parsed(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except RecursionError as error:
        raise MicroMusicGenError(f"{path}{place} is nested too deep; give a flat list of objects") from error
    except ValueError as error:
        raise MicroMusicGenError(f"{path}{place} is not JSON ({str(error)[:120]}); mend it") from error


def _item(path: Path, place: str, value: Any) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(value, _Pairs):
        raise MicroMusicGenError(f'{path}, {place}: is no object such as {{"file": "a.wav", "genre": "jungle"}}')
    raw = _object(path, place, value)
    lowered = {name.casefold(): name for name in raw}
    column = next((lowered[name] for name in FILE_COLUMNS if name in lowered), None)
    if column is None:
        raise MicroMusicGenError(f'{path}, {place}: has no key that names the file; add "file": "a.wav"')
    key = raw[column]
    if not isinstance(key, str):
        raise MicroMusicGenError(f"{path}, {place}: {column!r} must be the file's name, a text")
    if column.casefold() != "name":
        del raw[column]
    return place, key.strip(), raw


def _object(path: Path, place: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in pairs:
        if name in plain:
            raise MicroMusicGenError(f"{path}, {place}: has key {name[:40]!r} twice; remove one")
        plain[name] = dict(value) if isinstance(value, _Pairs) else value
    return plain


def match_rows(table: Table, folder: Path, files: Sequence[Path]) -> tuple[dict[Path, Row], list[Row]]:
    """Gives each file's row and the rows that mean none of `files`, which lie below `folder`.

    A row means the file with its path below the folder, else with that path but for the suffix, else with its name,
    else with its name but for the suffix.

    Raises:
        MicroMusicGenError: a row means two files, or two rows mean the same one; the line names both.
    """
    levels: tuple[dict[str, list[Path]], ...] = tuple(defaultdict(list) for _ in range(4))
    for path in files:
        below = path.relative_to(folder)
        for level, name in zip(levels, (below, below.with_suffix(""), below.name, below.stem), strict=True):
            level[_plain(str(name))].append(path)
    matched: dict[Path, Row] = {}
    unmatched: list[Row] = []
    root = _plain(str(folder)) + "/"
    for row in table.rows:
        key = _plain(row.key).removeprefix(root)
        found = next((level[key] for level in levels if key in level), [])
        if len(found) > 1:
            first, second = (_below(folder, path) for path in found[:2])
            raise MicroMusicGenError(
                f"{table.path}, {row.place}: {row.key!r} means {first} and {second}; give the path below the folder"
            )
        if not found:
            unmatched.append(row)
            continue
        other = matched.setdefault(found[0], row)
        if other is not row:
            raise MicroMusicGenError(
                f"{table.path}: {other.place} ({other.key!r}) and {row.place} ({row.key!r}) both mean "
                f"{_below(folder, found[0])}; remove one"
            )
    return matched, unmatched


def _plain(name: str) -> str:
    """Gives a path as it is compared: forward slashes, and accents as one character (macOS splits them)."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix().encode("utf-8", "replace").decode()
