"""Stand-ins for libraries that audiocraft imports at its top and that unconditional music never calls.

They are handed to audiocraft's own import statements and to nobody else: `sys.modules` and `find_spec` don't know
them, so that no other library takes a stand-in for the real thing. An installed library always wins: at once, or, where
importing it takes seconds, when something of it is touched.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from micro_musicgen.errors import MissingExtraError
from micro_musicgen.patching import WrappedLoader, find_after

MakeModule = Callable[[], ModuleType]
_makers: dict[str, MakeModule] = {}
_made: dict[str, ModuleType] = {}
_later: set[str] = set()


class _Touch(type):
    """The type of stand-in classes: they can be named and subclassed, and say what to install when used."""

    missing: str

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MissingExtraError(cls.missing)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise MissingExtraError(cls.missing)


class Stub(ModuleType):
    """A module every attribute of which is a class that no object is an instance of."""

    def __init__(self, name: str, extra: str) -> None:
        super().__init__(name)
        self.__dict__["_missing"] = (
            f"{name} is needed here and not installed; run: pip install 'micro-musicgen[{extra}]'"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Touch(name, (), {"missing": self._missing, "__module__": self.__name__})
        setattr(self, name, made)
        return made


class Later:
    """Something of an installed module, which is imported when this is called, read, subclassed, or asked about.

    Nothing is an instance of it before that: whoever made one would have imported the module.
    """

    def __init__(self, module: str, name: str) -> None:
        self._later = (module, name)

    def _real(self) -> Any:
        module, name = self._later
        return getattr(importlib.import_module(module), name)

    def __getattr__(self, name: str) -> Any:
        # What inspects an object (copy, pickle, doctest, typing) asks for such names and means no use.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the real thing."""
        return self._real()(*args, **kwargs)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __instancecheck__(self, instance: Any) -> bool:
        return self._later[0] in sys.modules and isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._later[0] in sys.modules and issubclass(subclass, self._real())


class LaterModule(ModuleType):
    """An installed module every public attribute of which is a `Later`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = Later(self.__name__, name)
        setattr(self, name, made)
        return made


def serve(modules: Mapping[str, MakeModule], *, later: Iterable[str] = ()) -> None:
    """Has audiocraft's imports of these names answered by the modules that are made, when nothing real is there.

    later: names that are answered by a `LaterModule` when the real thing is there.
    """
    _makers.update(modules)
    _later.update(later)
    if not any(isinstance(finder, _StubFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _StubFinder())


def _stand_in(name: str) -> ModuleType:
    if name not in _made:
        _made[name] = _makers[name]()
    return _made[name]


@functools.cache
def _later_module(name: str) -> LaterModule | None:
    """Gives the stand-in of an installed module; None when it isn't installed."""
    return LaterModule(name) if importlib.util.find_spec(name) is not None else None


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> ModuleType:
    """Imports as Python does; where that fails for want of a package that has a stand-in, gives the stand-in."""
    if not level and name in _later and (found := _later_module(name)) is not None:
        return found
    try:
        return builtins.__import__(name, globals, locals, fromlist, level)
    except ModuleNotFoundError as error:
        root = name.partition(".")[0]
        if level or error.name != root or name not in _makers:
            raise
        return _stand_in(name if fromlist else root)


# A frame takes its builtins from the globals of its module, which is how an import statement can be answered for one
# package only.
_BUILTINS = {**builtins.__dict__, "__import__": _import}


def _give_builtins(module: ModuleType) -> None:
    module.__dict__["__builtins__"] = _BUILTINS


class _StubFinder(importlib.abc.MetaPathFinder):
    """Finds audiocraft's modules as they are, and gives them the import that knows the stand-ins."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != "audiocraft":
            return None
        spec = find_after(self, fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = WrappedLoader(spec.loader, before=_give_builtins)
        return spec
