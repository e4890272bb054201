"""One resolver for everything that can be named: a run, a codec, a release.

A local path wins; then `//sig/SIGNATURE` or a bare signature, a data set's name (its newest run), `//pretrained/ID`,
and at last a Hub id `user/name`. Nothing is loaded or downloaded here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from micro_musicgen import paths
from micro_musicgen.errors import MissingFileError

Kind = Literal["release", "run", "checkpoint", "hub"]

CHECKPOINT_NAME = "checkpoint.th"
SNAPSHOTS = "snapshots"
RELEASE_FILES = ("config.json", "state_dict.bin", "compression_state_dict.bin")


@dataclass(frozen=True)
class Reference:
    """What a name turned out to be.

    kind "release": `path` is a folder with config.json or state_dict.bin. "run": a Dora experiment folder with a
    checkpoint. "checkpoint": one file. "hub": `hub_id` is a Hub repository, not yet fetched.
    """

    text: str
    kind: Kind
    path: Path | None = None
    hub_id: str | None = None

    def local_path(self) -> Path:
        """Gives the path; asserts that the reference is a local one."""
        assert self.path is not None, f"{self.text} is on the Hub"
        return self.path


def resolve(text: str | Path, *, solver: str | None = None) -> Reference:
    """Gives what `text` refers to. `solver` ("musicgen", "compression") chooses among a data set's runs.

    Raises:
        MissingFileError: nothing of that name exists; the message lists what was looked for.
    """
    text = str(text)
    path = Path(text).expanduser()
    if path.exists():
        return _local(text, path.resolve())
    if text.startswith("//pretrained/"):
        return _pretrained(text)
    signature = text.removeprefix("//sig/")
    if re.fullmatch(r"[0-9a-f]{8}", signature):
        run = paths.xp_dir(signature)
        if (run / CHECKPOINT_NAME).is_file():
            return Reference(text, "run", run)
        raise MissingFileError(f"run {signature} has no checkpoint in {run}; train it, or name another run")
    newest = newest_run(text, solver=solver)
    if newest is not None:
        return Reference(text, "run", newest)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.startswith("."):
        return Reference(text, "hub", hub_id=text)
    raise MissingFileError(
        f"{text!r} is no file, run signature, data set with a finished run, or Hub id (looked in {paths.home()})"
    )


def _pretrained(text: str) -> Reference:
    name = text.removeprefix("//pretrained/")
    if Path(name).exists():
        return _local(text, Path(name).resolve())
    return Reference(text, "hub", hub_id=name)


def _local(text: str, path: Path) -> Reference:
    if path.is_file():
        return Reference(text, "checkpoint", path)
    if any((path / name).is_file() for name in RELEASE_FILES):
        return Reference(text, "release", path)
    if (path / CHECKPOINT_NAME).is_file():
        return Reference(text, "run", path)
    raise MissingFileError(f"{path} holds no release (config.json) and no run (checkpoint.th); name one that does")


def newest_run(
    dataset: str, *, solver: str | None = None, fits: Callable[[Mapping[str, Any]], bool] | None = None
) -> Path | None:
    """Gives the experiment folder that last wrote a checkpoint while training on `dataset`, or None.

    A run's data set and solver are read from the `summary.json` that the solver keeps in its folder. fits: what else a
    summary must be.
    """
    found: list[tuple[float, Path]] = []
    for summary_path in (paths.runs_dir() / "xps").glob("*/summary.json"):
        checkpoint = summary_path.parent / CHECKPOINT_NAME
        try:
            summary = json.loads(summary_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if summary.get("dataset") != dataset or not checkpoint.is_file():
            continue
        if (solver is None or summary.get("solver") == solver) and (fits is None or fits(summary)):
            found.append((checkpoint.stat().st_mtime, summary_path.parent))
    return max(found)[1] if found else None
