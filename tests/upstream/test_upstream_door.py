"""The one door to audiocraft."""

from __future__ import annotations

import sys

import pytest

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.upstream import audiocraft_module, patcher


def test_it_gives_the_module_that_was_asked_for() -> None:
    assert audiocraft_module("modules.seanet").__name__ == "audiocraft.modules.seanet"


def test_there_is_one_patcher_and_it_refuses_nothing() -> None:
    assert patcher() is patcher()
    assert [report.patch.name for report in patcher().reports.values() if report.status == "refused"] == []


def test_without_audiocraft_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "audiocraft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(MicroMusicGenError, match="pip install --no-deps audiocraft==1.3.0"):
        audiocraft_module("models")


def test_a_module_that_audiocraft_lacks_is_a_bug_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError, match="audiocraft.nonsense"):
        audiocraft_module("nonsense")
