"""What is known about each sound of a folder, from up to four places; the first that knows a field is believed.

In this order: the row of a metadata file, the JSON file beside the sound, the tags inside it, its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from micro_musicgen.data.info import FIELDS, Cleaned
from micro_musicgen.data.metadata_sources import read_name, read_sidecar, read_tags
from micro_musicgen.data.metadata_table import Row, match_rows, read_table

ORIGINS = ("table", "sidecar", "tags", "name")
_SAYS_HOW_IT_SOUNDS = ("description", "genre", "moods", "keywords", "instrument")


@dataclass(frozen=True)
class Described:
    """What is known about one sound. info: field to value, as `Track.info`. origins: field to one of ORIGINS."""

    info: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TableUse:
    """How far a metadata file reached. unmatched: what rows that mean no file call it. unread: unknown columns."""

    path: str
    num_rows: int
    num_matched: int
    num_files_without_row: int
    unmatched: tuple[str, ...]
    unread: tuple[str, ...]


@dataclass(frozen=True)
class Metadata:
    """What was found out about the files of a folder.

    notes: what was passed over and where it stands. num_read: how many files of the folder were read for it.
    """

    described: dict[Path, Described]
    table: TableUse | None
    notes: tuple[str, ...]
    num_read: int


def collect(folder: Path, files: Sequence[Path], table_path: Path | str | None = None) -> Metadata:
    """Gives what is known about each of `files`, which lie below `folder`.

    Raises:
        MicroMusicGenError: the metadata file can't be used, or its rows can't be told apart (`read_table`,
            `match_rows`). Nothing else about metadata stops a data set.
    """
    table = None if table_path is None else read_table(table_path)
    rows, unmatched = ({}, []) if table is None else match_rows(table, folder, files)
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        tags = list(pool.map(read_tags, files))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the files in hand, not for all of them
    notes = [] if table is None else list(table.notes)
    described: dict[Path, Described] = {}
    read = {table.path} if table is not None and _is_seen(folder, table.path) else set()
    for path, tagged in zip(files, tags, strict=True):
        beside = path.with_suffix(".json")
        sidecar = None if table is not None and beside == table.path else read_sidecar(path)
        if sidecar is not None:
            read.add(beside)
            notes += [f"{_below(folder, beside)}: {what}; passed over" for what in (*sidecar.refused, *sidecar.ignored)]
        notes += [f"{_below(folder, path)}, tags: {what}; passed over" for what in (*tagged.refused, *tagged.ignored)]
        described[path] = _merged(rows.get(path), sidecar, tagged, read_name(path))
    use = None
    if table is not None:
        names = tuple(row.key[:200] for row in unmatched)
        without = len(files) - len(rows)
        use = TableUse(table.path.as_posix(), len(table.rows), len(rows), without, names, table.unread)
    return Metadata(described, use, tuple(dict.fromkeys(notes)), len(read))


def _is_seen(folder: Path, path: Path) -> bool:
    """Says whether `find_audio` meets `path` when it looks through `folder`; it enters no hidden folder."""
    inside = path.is_relative_to(folder)
    return inside and not any(part.startswith(".") for part in path.relative_to(folder).parts[:-1])


def _merged(row: Row | None, sidecar: Cleaned | None, tags: Cleaned, name: Cleaned) -> Described:
    """Gives one description. The words of a name count only where nothing else says how the sound sounds."""
    told = (row.info if row else {}, sidecar.info if sidecar else {}, tags.info, name.info)
    info: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, known in zip(ORIGINS, told, strict=True):
        if origin == "name" and any(field in info for field in _SAYS_HOW_IT_SOUNDS):
            known = {field: value for field, value in known.items() if field != "keywords"}
        for field_, value in known.items():
            if field_ not in info:
                info[field_], origins[field_] = value, origin
    return Described({name_: info[name_] for name_ in FIELDS if name_ in info}, origins)


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix().encode("utf-8", "replace").decode()
