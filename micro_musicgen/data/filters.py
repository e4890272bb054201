"""Which sounds a data set takes, by licence, instrument and genre."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from micro_musicgen.data.licenses import is_among
from micro_musicgen.errors import MicroMusicGenError


@dataclass(frozen=True)
class Filters:
    """What a sound must be: any one of the values of every option that has some. Empty tuples ask for nothing."""

    license: tuple[str, ...] = ()
    instrument: tuple[str, ...] = ()
    genre: tuple[str, ...] = ()

    @classmethod
    def parse(cls, license: Iterable[str] = (), instrument: Iterable[str] = (), genre: Iterable[str] = ()) -> Filters:
        """Gives filters from what was typed: each value one word or several with commas between.

        Raises:
            MicroMusicGenError: an option was given and names nothing.
        """
        given = {"license": tuple(license), "instrument": tuple(instrument), "genre": tuple(genre)}
        wanted = {name: tuple(dict.fromkeys(_parts(*values))) for name, values in given.items()}
        for name, values in given.items():
            if values and not wanted[name]:
                raise MicroMusicGenError(
                    f"--{name} {values[0]!r} names nothing; give a value such as {_EXAMPLES[name]}"
                )
        return cls(**wanted)

    def fault(self, info: Mapping[str, Any]) -> str | None:
        """Gives why the sound that `info` describes is left out, or None when it is welcome."""
        for name in _EXAMPLES:
            wanted: tuple[str, ...] = getattr(self, name)
            if not wanted:
                continue
            asked = f"--{name} {','.join(wanted)}"
            found = str(info.get(name) or "")
            if not found:
                return f"has no {name}, {asked} takes none without"
            if not (_has_license(found, wanted) if name == "license" else set(_parts(found)) & set(wanted)):
                return f"{name} {found[:60]}: {asked} leaves it out"
        return None

    def counts(self, infos: Iterable[Mapping[str, Any]]) -> dict[str, int]:
        """Gives how many sounds were left out, by reason: "no license", "another genre" and so on."""
        reasons: Counter[str] = Counter()
        for info in infos:
            fault = self.fault(info)
            if fault is not None:
                missing = fault.startswith("has no ")
                reasons[f"no {fault.split()[2].rstrip(',')}" if missing else f"another {fault.split()[0]}"] += 1
        return dict(reasons.most_common())


_EXAMPLES = {"license": "cc0", "instrument": "drums", "genre": "jungle"}


def _has_license(found: str, wanted: Iterable[str]) -> bool:
    return any(is_among(found, name) for name in wanted)


def _parts(*texts: str) -> list[str]:
    return [" ".join(part.casefold().split()) for text in texts for part in text.split(",") if part.strip()]
