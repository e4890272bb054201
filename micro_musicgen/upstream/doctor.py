"""Finds out what would not work on this machine, before it costs an evening. Rendering is the CLI's."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from micro_musicgen import paths, storage
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.patching import Status
from micro_musicgen.upstream.load import INSTALL_LINE, patcher

AUDIOCRAFT_VERSION = "1.3.0"
OLDEST_TORCH = (2, 6)

SHOWN_VERSIONS = (
    *("micro-musicgen", "audiocraft", "torch", "torchaudio", "numpy", "av", "soundfile", "soxr", "flashy"),
    *("dora-search", "hydra-core", "safetensors", "huggingface_hub", "transformers", "xformers"),
)
LIBRARIES = {"soundfile": "soundfile", "av": "av", "soxr": "soxr", "julius": "julius", "safetensors": "safetensors"}
"""Module -> distribution of the libraries with a compiled part or without which nothing is read or written."""

UNTESTED = ("Windows", "macOS (Apple GPUs included)", "NVIDIA GPUs (cuda)", "Python 3.10, 3.12 and 3.13")
"""What the tests have not been run on."""


@dataclass(frozen=True)
class Problem:
    """Something that will fail, and the line that mends it."""

    what: str
    do: str


@dataclass(frozen=True)
class PatchRow:
    """One line of the patch table."""

    name: str
    status: Status
    target: str
    broken: str
    issue: str
    gone_when: str
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found. Invariant: `ok` exactly when there is no problem."""

    versions: dict[str, str]
    devices: tuple[str, ...]
    patches: tuple[PatchRow, ...]
    problems: tuple[Problem, ...]
    untested: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that was looked at works."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Gives the same as plain data for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def lines(self) -> list[str]:
        """Gives the same as text: what is there, the patch table, and last what is wrong and how to mend it."""
        width = max(len(row.name) for row in self.patches)
        return [
            *(f"{name:<16} {version}" for name, version in self.versions.items()),
            *("", *self.devices, ""),
            *(f"{row.name:<{width}}  {row.status:<10}  {row.reason or row.broken}" for row in self.patches),
            *("", f"not tested on: {', '.join(self.untested)}", ""),
            *(f"PROBLEM  {problem.what}\n         do: {problem.do}" for problem in self.problems),
            *([] if self.problems else ["no problem found"]),
        ]


def diagnose() -> Diagnosis:
    """Gives the state of this installation. Loads audiocraft (seconds); writes nothing that stays."""
    problems = [*_audiocraft(), *_torch(), *_libraries(), *_home()]
    if _version("audiocraft") is not None:  # without it every patch is refused, which says nothing new
        patcher().load_all()
        problems += _refused()
    return Diagnosis(
        versions={"python": platform.python_version(), **_versions()},
        devices=tuple(_devices()),
        patches=tuple(_rows()),
        problems=tuple(problems),
        untested=UNTESTED,
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    return {name: _version(name) or "not installed" for name in SHOWN_VERSIONS}


def _audiocraft() -> Iterator[Problem]:
    found = _version("audiocraft")
    if found is None:
        yield Problem("audiocraft is not installed", INSTALL_LINE)
    elif found != AUDIOCRAFT_VERSION:
        yield Problem(f"audiocraft is {found}; the patches are written for {AUDIOCRAFT_VERSION}", INSTALL_LINE)


def _torch() -> Iterator[Problem]:
    found = _version("torch")
    line = f"pip install 'torch>={'.'.join(map(str, OLDEST_TORCH))}'"
    if found is None:
        yield Problem("torch is not installed", line)
        return
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TORCH:
        yield Problem(f"torch is {found}, too old", line)
    error = _import_error("torchaudio")
    if error is not None:
        yield Problem(
            f"torchaudio does not import: {error}",
            f"pip install --force-reinstall --no-deps torchaudio, of the build that matches torch {found}",
        )


def _libraries() -> Iterator[Problem]:
    for module, distribution in LIBRARIES.items():
        error = _import_error(module)
        if error is not None:
            yield Problem(f"{module} does not import: {error}", f"pip install --force-reinstall {distribution}")


def _import_error(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken library raises what it likes: OSError, AttributeError, RuntimeError
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _home() -> Iterator[Problem]:
    home = paths.home()
    # The home itself need not exist yet, and looking must not make it.
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        storage.ensure_writable(nearest)
    except MicroMusicGenError as error:
        yield Problem(
            f"nothing can be kept in {home}: {str(error).partition(';')[0]}",
            f"set {paths.HOME_VARIABLE} to a folder that you can write to",
        )


def _refused() -> Iterator[Problem]:
    for report in patcher().reports.values():
        if report.status == "refused":
            patch = report.patch
            wanted = f"=={patch.versions[0]}" if patch.versions else ""
            line = INSTALL_LINE if patch.package == "audiocraft" else f"pip install {patch.package}{wanted}"
            yield Problem(f"patch {patch.name} is refused: {report.reason} (without it: {patch.broken})", line)


def _rows() -> Iterator[PatchRow]:
    for report in patcher().reports.values():
        patch = report.patch
        yield PatchRow(
            name=patch.name,
            status=report.status,
            target=patch.target,
            broken=patch.broken,
            issue=patch.issue,
            gone_when=patch.gone_when,
            reason=report.reason,
        )


def _devices() -> Iterator[str]:
    if _import_error("torch") is None:
        import torch

        for index in range(torch.cuda.device_count()):
            memory_gib = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield f"cuda:{index}: {torch.cuda.get_device_name(index)}, {memory_gib:.0f} GiB"
        if torch.backends.mps.is_available():
            yield "mps: Apple GPU"
    yield f"cpu: {os.cpu_count()} cores ({platform.processor() or platform.machine()})"
    yield f"xformers: {_version('xformers') or 'not installed, torch does its work'}"
