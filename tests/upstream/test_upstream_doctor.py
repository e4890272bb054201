"""Each problem that doctor knows, provoked once."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from micro_musicgen import paths
from micro_musicgen.patching import Patch, Patcher, PatchReport
from micro_musicgen.upstream import doctor

Pretend = Any


@pytest.fixture
def no_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the patch table, which takes seconds."""
    monkeypatch.setattr(doctor, "patcher", lambda: Patcher([]))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, home: Path, no_patches: None) -> Pretend:
    """`pretend(torch="2.1.0", audiocraft=None)`: has libraries installed in another version, or missing."""

    def change(**versions: str | None) -> None:
        real = importlib.metadata.version

        def version(name: str) -> str:
            if name not in versions:
                return real(name)
            changed = versions[name]
            if changed is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return changed

        monkeypatch.setattr(importlib.metadata, "version", version)

    return change


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch, home: Path, no_patches: None) -> Any:
    """`breaks("av", error)`: has the import of a library fail."""

    def change(module: str, error: Exception) -> None:
        real = importlib.import_module

        def import_module(name: str, package: str | None = None) -> Any:
            if name == module:
                raise error
            return real(name, package)

        monkeypatch.setattr(importlib, "import_module", import_module)

    return change


def _only_problem() -> doctor.Problem:
    diagnosis = doctor.diagnose()
    assert not diagnosis.ok and len(diagnosis.problems) == 1, diagnosis.problems
    return diagnosis.problems[0]


def test_this_installation_is_well(home: Path) -> None:
    diagnosis = doctor.diagnose()
    assert diagnosis.ok, diagnosis.problems
    assert {row.status for row in diagnosis.patches} <= {"applied", "not needed"}
    assert diagnosis.versions["audiocraft"] == "1.3.0"
    assert any(device.startswith("cpu") for device in diagnosis.devices)
    assert "Windows" in diagnosis.untested
    assert json.loads(json.dumps(diagnosis.to_dict()))["ok"] is True
    assert diagnosis.lines()[-1] == "no problem found"
    assert not home.exists(), "looking makes nothing"


def test_audiocraft_is_missing(pretend: Pretend) -> None:
    pretend(audiocraft=None)
    problem = _only_problem()
    assert problem.what == "audiocraft is not installed"
    assert problem.do == "pip install --no-deps audiocraft==1.3.0"


def test_audiocraft_has_another_version(pretend: Pretend) -> None:
    pretend(audiocraft="1.4.0a2")
    assert "audiocraft is 1.4.0a2; the patches are written for 1.3.0" in _only_problem().what


@pytest.mark.parametrize(
    ("version", "what"), [("2.1.0+cu118", "torch is 2.1.0+cu118, too old"), (None, "torch is not installed")]
)
def test_torch_is_too_old_or_missing(pretend: Pretend, version: str | None, what: str) -> None:
    pretend(torch=version)
    problem = _only_problem()
    assert what in problem.what and problem.do == "pip install 'torch>=2.6'"


def test_torch_2_10_is_newer_than_2_6(pretend: Pretend) -> None:
    pretend(torch="2.10.0")
    assert doctor.diagnose().ok


def test_torchaudio_does_not_import(breaks: Any) -> None:
    breaks("torchaudio", OSError("libc10_cuda.so: cannot open shared object file\nand more"))
    problem = _only_problem()
    assert problem.what == "torchaudio does not import: libc10_cuda.so: cannot open shared object file"
    assert "torchaudio" in problem.do


@pytest.mark.parametrize("library", ["soundfile", "av"])
def test_a_library_does_not_import(breaks: Any, library: str) -> None:
    breaks(library, ModuleNotFoundError(f"No module named '{library}'"))
    problem = _only_problem()
    assert problem.what == f"{library} does not import: No module named '{library}'"
    assert problem.do == f"pip install --force-reinstall {library}"


def test_a_patch_is_refused(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    patch = Patch(
        name="toy", target="json:loads", broken="it loads", issue="none", gone_when="never", apply=lambda module: None
    )
    patcher = Patcher([patch])
    patcher.reports["toy"] = PatchReport(patch, "refused", "json:loads is not the source it was written for")
    monkeypatch.setattr(doctor, "patcher", lambda: patcher)
    problem = _only_problem()
    assert problem.what.startswith("patch toy is refused: json:loads is not the source")
    assert "it loads" in problem.what and problem.do == "pip install --no-deps audiocraft==1.3.0"


def test_home_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_patches: None) -> None:
    blocker = tmp_path / "a file"
    blocker.touch()
    monkeypatch.setenv(paths.HOME_VARIABLE, str(blocker / "home"))
    problem = _only_problem()
    assert str(blocker / "home") in problem.what
    assert problem.do == "set MICRO_MUSICGEN_HOME to a folder that you can write to"
