"""Weights that a run kept at shares of its length: undertraining as an instrument."""

from __future__ import annotations

import json
import re
from pathlib import Path

from micro_musicgen import checkpoints, paths, references
from micro_musicgen.errors import MicroMusicGenError, MissingFileError

SHARE_TOLERANCE = 0.02
"""How far from the share that was asked for a snapshot may lie."""


def snapshot(text: str | Path, share: str, *, solver: str | None = None) -> Path:
    """Gives the weights that the run `text` kept at a share of its length ("20%" or 0.2), also while it trains.

    Raises:
        MissingFileError: there is no such run, or it kept nothing near that share; the message lists what it has.
        MicroMusicGenError: `share` is none.
    """
    wanted = _share(share)
    folder = _run_folder(str(text), solver)
    files = (folder / references.SNAPSHOTS).glob("step_*.th")
    kept = {int(path.stem.rpartition("_")[2]): path for path in files}
    if not kept:
        raise MissingFileError(
            f"run {folder.name} has kept no snapshots yet; wait for the first, or see checkpoint.snapshots"
        )
    total = _total_updates(folder, kept[max(kept)])
    nearest = min(kept, key=lambda step: abs(step / total - wanted))
    if abs(nearest / total - wanted) > SHARE_TOLERANCE:
        known = ", ".join(f"{100 * step / total:.0f}%" for step in sorted(kept))
        raise MissingFileError(f"run {folder.name} kept nothing at {share}; it has {known}")
    return kept[nearest]


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise MicroMusicGenError(f"{text!r} is no share of a run; give something like 20% or 0.2")
    return share


def _run_folder(text: str, solver: str | None) -> Path:
    """Gives a run's folder, which may have no checkpoint yet."""
    path, signature = Path(text).expanduser(), text.removeprefix("//sig/")
    if path.is_dir():
        return path.resolve()
    if re.fullmatch(r"[0-9a-f]{8}", signature) and paths.xp_dir(signature).is_dir():
        return paths.xp_dir(signature)
    found = references.resolve(text, solver=solver)
    if found.kind != "run":
        raise MissingFileError(f"{text} is a {found.kind}; shares are kept of runs, so name a signature or a data set")
    return found.local_path()


def _total_updates(folder: Path, newest_snapshot: Path) -> int:
    """Gives the length of a run in steps: what its summary says, before there is one what its plan was."""
    try:
        return int(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["total_updates"])
    except (OSError, ValueError, KeyError):
        return int(checkpoints.load(newest_snapshot, lazily=True)["plan"]["segments"][-1])
