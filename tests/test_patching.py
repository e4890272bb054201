"""The record, the guards and the hook, on packages made up for the test."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from micro_musicgen.patching import Patch, Patcher, fingerprint, resolve

SOURCE = """
class Box:
    @staticmethod
    def size():
        return 1

    def label(self):
        return "a"


def answer():
    return 41
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installable-looking package `toybroken` with one module, and no trace of it afterwards."""
    folder = tmp_path / "toybroken"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "thing.py").write_text(SOURCE, encoding="utf-8")
    (folder / "user.py").write_text("from .thing import answer\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"toybroken": "1.0"}[name])
    hooks = list(sys.meta_path)
    yield folder
    sys.meta_path[:] = hooks
    for name in [name for name in sys.modules if name.partition(".")[0] == "toybroken"]:
        del sys.modules[name]


def _answer_42(module: Any) -> None:
    module.answer = lambda: 42


def _patch(**changes: Any) -> Patch:
    settings: dict[str, Any] = {
        "name": "answer",
        "target": "toybroken.thing:answer",
        "broken": "off by one",
        "issue": "none",
        "package": "toybroken",
        "versions": ("1.0",),
        "gone_when": "it counts",
        "apply": _answer_42,
    }
    return Patch(**{**settings, **changes})


def _install(patch: Patch) -> Patcher:
    patcher = Patcher([patch])
    patcher.install()
    return patcher


def test_a_patch_waits_until_its_module_is_loaded(package: Path) -> None:
    patcher = _install(_patch())
    assert patcher.reports["answer"].status == "waiting" and patcher.modules() == {"toybroken.thing"}
    assert "toybroken" not in sys.modules
    user = importlib.import_module("toybroken.user")
    assert user.answer() == 42, "whoever imports the name gets the mended one"
    assert patcher.reports["answer"].status == "applied" and patcher.modules() == set()


def test_a_module_that_is_loaded_already_is_patched_at_once(package: Path) -> None:
    thing = importlib.import_module("toybroken.thing")
    assert _install(_patch()).reports["answer"].status == "applied"
    assert thing.answer() == 42


def test_a_patch_is_applied_once(package: Path) -> None:
    times: list[Any] = []
    patcher = _install(_patch(apply=times.append))
    thing = importlib.import_module("toybroken.thing")
    patcher.module_loaded(thing)
    patcher.load_all()
    importlib.reload(thing)
    assert len(times) == 1


def test_before_import_comes_before_the_module(package: Path) -> None:
    seen: list[Any] = []
    patcher = _install(_patch(before_import=True, apply=seen.append))
    assert seen == [None] and "toybroken.thing" not in sys.modules
    assert patcher.reports["answer"].status == "applied"


def test_an_unknown_fingerprint_is_refused(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    patcher = _install(_patch(fingerprints=("0" * 16,)))
    assert importlib.import_module("toybroken.thing").answer() == 41
    report = patcher.reports["answer"]
    assert report.status == "refused"
    assert "not the source it was written for" in report.reason
    assert "patch answer is refused" in caplog.text


def test_the_right_fingerprint_is_accepted_again_after_patching(package: Path) -> None:
    thing = importlib.import_module("toybroken.thing")
    known = fingerprint(thing.answer)
    assert _install(_patch(fingerprints=(known,))).reports["answer"].status == "applied"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"versions": ("0.9", "1.1")}, "written for toybroken 0.9 or 1.1, found 1.0"),
        ({"package": "elsewhere"}, "elsewhere is not installed"),
    ],
)
def test_another_version_is_refused(package: Path, changes: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "toybroken":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    patcher = _install(_patch(**changes))
    assert importlib.import_module("toybroken.thing").answer() == 41
    assert (patcher.reports["answer"].status, patcher.reports["answer"].reason) == ("refused", reason)


def test_no_versions_means_any(package: Path) -> None:
    patcher = _install(_patch(versions=()))
    patcher.load_all()
    assert patcher.reports["answer"].status == "applied"


def test_a_patch_that_is_not_needed_is_not_applied(package: Path) -> None:
    patcher = _install(_patch(needed=lambda: False))
    assert importlib.import_module("toybroken.thing").answer() == 41
    assert patcher.reports["answer"].status == "not needed"


def test_load_all_leaves_nothing_waiting(package: Path) -> None:
    (package / "thing.py").write_text("raise OSError('no such library')\n", encoding="utf-8")
    patcher = _install(_patch())
    patcher.load_all()
    assert patcher.reports["answer"].status == "refused"
    assert patcher.reports["answer"].reason == "toybroken.thing does not import: no such library"


def test_a_patched_module_keeps_its_own_loader(package: Path) -> None:
    """inspect, importlib.resources and runpy ask the loader for more than running the module."""
    _install(_patch())
    thing = importlib.import_module("toybroken.thing")
    assert thing.__loader__ is thing.__spec__.loader
    assert type(thing.__loader__).__name__ == "SourceFileLoader"
    spec = importlib.util.find_spec("toybroken.user")
    assert spec is not None and spec.loader is not None and hasattr(spec.loader, "get_code")


def test_two_hooks_do_not_ask_each_other_for_ever(package: Path) -> None:
    first, second = _install(_patch()), _install(_patch(name="again"))
    importlib.import_module("toybroken.thing")
    assert first.reports["answer"].status == second.reports["again"].status == "applied"


def test_resolve_gives_plain_functions(package: Path) -> None:
    thing = importlib.import_module("toybroken.thing")
    assert resolve(thing, "toybroken.thing") is thing
    assert resolve(thing, "toybroken.thing:Box.label") is thing.Box.__dict__["label"]
    assert resolve(thing, "toybroken.thing:Box.size") is thing.Box.size


def _indented() -> Callable[[], int]:
    def answer() -> int:

        return 41

    return answer


def _plain() -> Callable[[], int]:
    def answer() -> int:
        return 41

    return answer


def _other() -> Callable[[], int]:
    def answer() -> int:
        return 42

    return answer


def test_a_fingerprint_changes_with_the_source_and_not_with_its_layout() -> None:
    assert fingerprint(_indented()) == fingerprint(_plain()) != fingerprint(_other())
    assert len(fingerprint(_plain())) == 16
