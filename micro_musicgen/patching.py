"""How a defect of an installed library is mended at run time: recorded, guarded, applied once, reported.

A patch is a small file in `patches/` that makes one `Patch`. It names the source that it expects by a fingerprint; when
that source is not what the patch was written for, the patch is refused with a message instead of guessing. Patches
take effect when the module they mend is loaded, so that importing `micro_musicgen.upstream` stays cheap.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

logger = logging.getLogger(__name__)

Status = Literal["waiting", "applied", "not needed", "refused"]


def _always() -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One mended defect.

    target: `module:qualified.name` of what is broken, or just `module`. broken: the symptom, one line. issue: where
    upstream knows of it. package, versions: the releases it was written for. fingerprints: `fingerprint(target)` of
    the sources it was written for; empty when the target has no source of its own. gone_when: what has to happen
    for this file to be deleted. apply: mends the loaded module. before_import: `apply` runs before the module is
    looked for, with None. needed: False on machines where the defect does not show.
    """

    name: str
    target: str
    broken: str
    issue: str
    package: str = "audiocraft"
    versions: tuple[str, ...] = ("1.3.0",)
    fingerprints: tuple[str, ...] = ()
    gone_when: str
    apply: Callable[[Any], None]
    before_import: bool = False
    needed: Callable[[], bool] = _always

    @property
    def module_name(self) -> str:
        """The module whose loading triggers the patch."""
        return self.target.partition(":")[0]


@dataclass
class PatchReport:
    """What became of a patch; `reason` is set when it was refused."""

    patch: Patch
    status: Status = "waiting"
    reason: str = ""


def fingerprint(target: Any) -> str:
    """Gives 16 hex digits that change when the source of a function, class or module changes (not its indentation)."""
    source = inspect.getsource(target)
    text = "\n".join(line.strip() for line in source.splitlines() if line.strip())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve(module: ModuleType, target: str) -> Any:
    """Gives the object that `module:qualified.name` names inside the loaded module."""
    found: Any = module
    for part in filter(None, target.partition(":")[2].split(".")):
        found = inspect.getattr_static(found, part)
    return found.__func__ if isinstance(found, staticmethod | classmethod) else found


class Patcher:
    """Holds the patches and applies each one once. Invariant: every patch has exactly one report."""

    def __init__(self, patches: Iterable[Patch]) -> None:
        self.reports = {patch.name: PatchReport(patch) for patch in patches}
        self._hook = _AfterImport(self)

    def install(self) -> None:
        """Applies what must come before an import, and what is loaded already; the rest follows as modules load."""
        for report in self.reports.values():
            if report.patch.before_import:
                self._apply(report, None)
        sys.meta_path.insert(0, self._hook)
        for name in {r.patch.module_name for r in self.reports.values()}:
            if name in sys.modules:
                self.module_loaded(sys.modules[name])

    def module_loaded(self, module: ModuleType) -> None:
        """Applies the patches that wait for `module`."""
        for report in self.reports.values():
            if report.status == "waiting" and report.patch.module_name == module.__name__:
                self._apply(report, module)

    def load_all(self) -> None:
        """Imports every patched module, so that no report says `waiting`. A module that won't import is refused."""
        for report in self.reports.values():
            if report.status != "waiting":
                continue
            try:
                importlib.import_module(report.patch.module_name)
            except Exception as error:
                report.status, report.reason = "refused", f"{report.patch.module_name} does not import: {error}"

    def modules(self) -> set[str]:
        """Gives the names of the modules that still wait for a patch."""
        return {r.patch.module_name for r in self.reports.values() if r.status == "waiting"}

    def _apply(self, report: PatchReport, module: ModuleType | None) -> None:
        patch = report.patch
        if not patch.needed():
            report.status = "not needed"
            return
        report.reason = _why_refused(patch, module)
        if report.reason:
            report.status = "refused"
            logger.warning("patch %s is refused: %s", patch.name, report.reason)
            return
        patch.apply(module)
        report.status = "applied"


def _why_refused(patch: Patch, module: ModuleType | None) -> str:
    try:
        version = importlib.metadata.version(patch.package)
    except importlib.metadata.PackageNotFoundError:
        return f"{patch.package} is not installed"
    if version not in patch.versions and patch.versions:
        return f"written for {patch.package} {' or '.join(patch.versions)}, found {version}"
    if module is not None and patch.fingerprints:
        found = fingerprint(resolve(module, patch.target))
        if found not in patch.fingerprints:
            return f"{patch.target} is not the source it was written for (fingerprint {found})"
    return ""


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets the other finders find a module, then has the patcher called once it is loaded."""

    def __init__(self, patcher: Patcher) -> None:
        self._patcher = patcher

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._patcher.modules():
            return None
        spec = find_after(self, fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = WrappedLoader(spec.loader, after=self._patcher.module_loaded)
        return spec


def _nothing(module: ModuleType) -> None:
    pass


def find_after(
    asker: importlib.abc.MetaPathFinder, fullname: str, path: Sequence[str] | None, target: ModuleType | None
) -> importlib.machinery.ModuleSpec | None:
    """Gives what the finders behind `asker` on `sys.meta_path` find: hooks that ask each other would never end."""
    place = sys.meta_path.index(asker)
    for finder in sys.meta_path[place + 1 :]:
        spec = finder.find_spec(fullname, path, target) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None


class WrappedLoader(importlib.abc.Loader):
    """A module's own loader, with something done to the module just before and just after it runs."""

    def __init__(
        self,
        loader: importlib.abc.Loader,
        *,
        before: Callable[[ModuleType], None] = _nothing,
        after: Callable[[ModuleType], None] = _nothing,
    ) -> None:
        self._loader = loader
        self._before = before
        self._after = after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Gives the module that the own loader makes, or None for an ordinary one."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module's code, and what was asked for around it."""
        # The module is to see its own loader: inspect and importlib.resources ask it for sources and files.
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._before(module)
        self._loader.exec_module(module)
        self._after(module)

    def __getattr__(self, name: str) -> Any:
        """Gives whatever else the own loader can do (runpy asks for its `get_code`)."""
        return getattr(self._loader, name)
