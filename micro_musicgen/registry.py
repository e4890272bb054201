"""One generic registry: names in configs and checkpoints, implementations beside their registration.

Names, never import paths, are what a config or a checkpoint stores, so a file made today survives a rename and a
config can't import code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from micro_musicgen.errors import MicroMusicGenError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from name to implementation. Invariant: a name, once taken, always means the same object."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Gives a decorator that enters its object under `name`.

        Raises:
            ValueError: `name` is taken by another object.
        """

        def enter(entry: T) -> T:
            held = self._entries.setdefault(name, entry)
            if held is not entry:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {held!r} and {entry!r}")
            return entry

        return enter

    def get(self, name: str) -> T:
        """Gives the entry called `name`.

        Raises:
            MicroMusicGenError: nothing has that name; the message lists the known ones.
        """
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries)) or "none"
            raise MicroMusicGenError(f"unknown {self.kind} {name!r}; known: {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
