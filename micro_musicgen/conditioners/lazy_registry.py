"""A registry that knows which module brings a name that is not there yet, and that asks the user's plugins last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TypeVar

from micro_musicgen.conditioners.plugins import load_plugins, plugins_dir
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.registry import Registry

T = TypeVar("T")


class LazyRegistry(Registry[T]):
    """A `Registry` whose modules are imported when a name is asked for, so that listing costs nothing.

    homes: name -> the module that registers it. Names in neither of the two make the plugins be imported, once.
    """

    def __init__(self, kind: str, homes: Mapping[str, str]) -> None:
        super().__init__(kind)
        self._homes = dict(homes)

    def get(self, name: str) -> T:
        """Gives the entry called `name`.

        Raises:
            MicroMusicGenError: nothing has that name, or a plugin fails.
        """
        if name not in self:
            known = ", ".join(self)
            raise MicroMusicGenError(
                f"unknown {self.kind} {name!r}; known: {known}; one of your own goes into {plugins_dir()}/{name}.py"
            )
        if not super().__contains__(name):
            import_module(self._homes[name])
        return super().get(name)

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name) or name in self._homes:
            return True
        load_plugins()
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*super().__iter__(), *self._homes}))
