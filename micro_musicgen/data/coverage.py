"""How much is known about the sounds of a data set, and where it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from micro_musicgen.data.descriptions import Descriptions
from micro_musicgen.data.licenses import UNKNOWN
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.metadata import ORIGINS, Described, TableUse

REPORTED = ("description", "genre", "bpm", "key", "moods", "keywords", "instrument", "license", "source")
_MAX_LINES = 10
_MAX_LISTED = 200


@dataclass(frozen=True)
class Coverage:
    """What is known about the files that were kept.

    fields: field to how many files have it, and per origin. num_with_text: files that a model hears something about.
    licenses: licence to files. left_out: reasons of the filters to files.
    """

    num_files: int = 0
    num_with_text: int = 0
    fields: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    licenses: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    table: TableUse | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        tracks: Sequence[Track],
        described: Sequence[Described],
        *,
        left_out: Mapping[str, int],
        table: TableUse | None,
        notes: tuple[str, ...],
    ) -> Coverage:
        """Gives the coverage of `tracks`, of which `described` says the same in the same order with origins."""
        fields: dict[str, dict[str, int]] = {}
        for name in REPORTED:
            origins = Counter(one.origins[name] for one in described if name in one.origins)
            fields[name] = {"files": origins.total(), **{origin: origins[origin] for origin in ORIGINS}}
        licenses = Counter(str((track.info or {}).get("license", UNKNOWN)) for track in tracks)
        return cls(
            num_files=len(tracks),
            num_with_text=Descriptions(tracks).num_known,
            fields=fields,
            licenses=dict(sorted(licenses.items(), key=lambda item: (-item[1], item[0]))),
            left_out=left_out,
            table=table,
            notes=notes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Gives plain data. Long lists are cut off; the numbers beside them are whole."""
        table = None
        if self.table is not None:
            table = asdict(self.table) | {
                "num_unmatched": len(self.table.unmatched),
                "unmatched": list(self.table.unmatched[:_MAX_LISTED]),
                "unread": list(self.table.unread[:_MAX_LISTED]),
            }
        return {
            "num_with_text": self.num_with_text,
            "fields": {name: dict(counts) for name, counts in self.fields.items()},
            "licenses": dict(self.licenses),
            "left_out": dict(self.left_out),
            "table": table,
            "num_notes": len(self.notes),
            "notes": list(self.notes[:_MAX_LISTED]),
        }

    def lines(self) -> list[str]:
        """Gives lines of text: what is known, licences, the metadata file, what was passed over."""
        lines = [f"  described: {self.num_with_text} of {self.num_files} files have words for a model to hear"]
        known = [_field_line(name, counts) for name, counts in self.fields.items() if counts["files"]]
        if known:
            lines.append(f"    {'; '.join(known)}")
        if set(self.licenses) - {UNKNOWN}:
            shown = [f"{name} {number}" for name, number in list(self.licenses.items())[:_MAX_LINES]]
            more = len(self.licenses) - len(shown)
            lines.append(f"  licences: {', '.join(shown)}{f' and {more} more' if more else ''}")
        lines += self._table_lines()
        if self.left_out:
            reasons = ", ".join(f"{number} {reason}" for reason, number in self.left_out.items())
            lines.append(f"  filters left out {sum(self.left_out.values())}: {reasons}")
        if self.notes:
            lines.append(f"  passed over in metadata: {len(self.notes)}")
            lines += [f"    {note}" for note in self.notes[:_MAX_LINES]]
        return lines

    def _table_lines(self) -> list[str]:
        use = self.table
        if use is None:
            return []
        lines = [
            f"  metadata file: {use.num_matched} of {use.num_rows} rows mean a file, "
            f"{use.num_files_without_row} files have no row"
        ]
        if use.unmatched:
            shown = ", ".join(repr(key) for key in use.unmatched[:3])
            lines.append(
                f"    no file is meant by {shown}{_more(len(use.unmatched) - 3)}; names are read below the folder"
            )
        if use.unread:
            lines.append(f"    unknown columns: {', '.join(use.unread[:5])}{_more(len(use.unread) - 5)}")
        return lines


def _field_line(name: str, counts: Mapping[str, int]) -> str:
    origins = ", ".join(f"{origin} {counts[origin]}" for origin in ORIGINS if counts[origin])
    return f"{name} {counts['files']} ({origins})"


def _more(number: int) -> str:
    return f" and {number} more" if number > 0 else ""
