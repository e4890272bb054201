"""Where a release comes from: the run, the sounds, the software. Plain data; nothing names a path of the maker's."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from micro_musicgen.data.licenses import UNKNOWN
from micro_musicgen.data.manifest import Track, read_manifest
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.upstream import patcher

OTHERS = "others"
MAX_NAMED = 20
"""Licences and sources that are told one by one; the rest is summed as OTHERS."""
PACKAGES = ("micro-musicgen", "audiocraft", "torch", "torchaudio", "safetensors", "numpy")


def software() -> dict[str, Any]:
    """Gives package versions, the state of every patch and, in a checkout, the commit."""
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "patches": {name: report.status for name, report in sorted(patcher().reports.items())},
        "git_sha": _git_sha(Path(__file__).resolve().parents[2]),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _git_sha(folder: Path) -> str | None:
    """Gives the commit of the checkout whose root is `folder`; None when it is none. A package that is installed
    somewhere inside another repository is not taken for that one.
    """
    if not (folder / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def run_facts(state: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives what a checkpoint says about its run: signature, seed, steps, best score, versions then."""
    best = state["best"]
    return {
        "signature": state["signature"],
        "solver": state["solver"],
        "seed": config.get("seed"),
        "updates": state["training"].get("updates_done"),
        "started_from": _last_part(config.get("continue_from")),
        "best": {"epoch": best["epoch"], "score": best["score"]},
        "made_with": state["provenance"],
    }


def _last_part(reference: str | None) -> str | None:
    """Gives a reference without the folders that lead to it."""
    return reference and Path(reference).name


def sound_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives name, file count, hours and hash of the data set in a run's config; what is gone by now is None.

    Each split also has its `licenses` and `sources`: name to {"files", "hours"}, "unknown" where none is stated.
    The hash covers durations and contents (where the manifest knows them), not paths: moving files changes nothing.
    """
    source = config.get("datasource") or {}
    folders = {split: source.get(split) for split in ("train", "valid")}
    name = Path(str(folders["train"])).parent.name if folders["train"] else None
    facts: dict[str, Any] = {"name": name, "hash": None}
    digest = hashlib.sha256()
    for split, folder in folders.items():
        tracks = _tracks(folder)
        if tracks is None:
            return {**facts, "hash": None}
        facts[split] = _amount(tracks) | {"licenses": _summed(tracks, _license), "sources": _summed(tracks, _source)}
        for track in tracks:
            identity = track.audio_hash or Path(track.path).name
            digest.update(f"{split} {identity} {track.duration:.6f} {track.sample_rate}\n".encode())
    return {**facts, "hash": digest.hexdigest()[:16]}


def _amount(tracks: Sequence[Track]) -> dict[str, Any]:
    return {"files": len(tracks), "hours": round(sum(track.duration for track in tracks) / 3600, 4)}


def _summed(tracks: Sequence[Track], name: Callable[[Track], str]) -> dict[str, dict[str, Any]]:
    """Gives files and hours by what `name` says of each track, most hours first; beyond MAX_NAMED as OTHERS.

    What is unknown is always told by itself.
    """
    groups: dict[str, list[Track]] = {}
    for track in tracks:
        groups.setdefault(name(track), []).append(track)
    ranked = sorted(groups, key=lambda one: (-sum(track.duration for track in groups[one]), one))
    named = [one for one in ranked if one != UNKNOWN][:MAX_NAMED]
    summed = {one: _amount(groups[one]) for one in ranked if one in named or one == UNKNOWN}
    rest = [track for one in ranked if one not in summed for track in groups[one]]
    return summed | ({OTHERS: _amount(rest)} if rest else {})


def _license(track: Track) -> str:
    return _stated(track, "license")


def _source(track: Track) -> str:
    """Gives where a track comes from: of an address the site alone, and of a path nothing but that it is one."""
    text = _stated(track, "source")
    site = re.search(r"(?:https?://|\bwww\.)(?:www\.)?([\w.-]+)", text)
    if site is not None:
        return site[1].casefold()
    return "a folder" if re.match(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]|file:", text) else text


def _stated(track: Track, name: str) -> str:
    text = (track.info or {}).get(name)
    return " ".join(text.split())[:80] if isinstance(text, str) and text.strip() else UNKNOWN


def _tracks(folder: str | None) -> list[Track] | None:
    try:
        return None if folder is None else read_manifest(folder)
    except MicroMusicGenError:
        return None
