"""`prepare`: a folder of audio becomes a data set, with every file that is left out named and explained."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from micro_musicgen import paths, storage
from micro_musicgen.data.beat_tempos import Tempos, carried_over, with_tempos
from micro_musicgen.data.coverage import Coverage
from micro_musicgen.data.filters import Filters
from micro_musicgen.data.info import BPM_RANGE
from micro_musicgen.data.manifest import Track, dataset_hash, read_manifest, write_manifest
from micro_musicgen.data.metadata import collect
from micro_musicgen.data.report import PrepareReport, Skipped
from micro_musicgen.data.scan import Limits, Sound, find_audio, scan
from micro_musicgen.data.split import split
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

Progress = Callable[[int, int], None]

REPORT_NAME = "prepare.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def prepare(
    folder: Path | str,
    name: str,
    *,
    valid_fraction: float = 0.1,
    seed: int = 0,
    min_duration_s: float = Limits.min_duration_s,
    min_sample_rate: int = Limits.min_sample_rate,
    keep_silence: bool = False,
    overwrite: bool = False,
    metadata: Path | str | None = None,
    filters: Filters | None = None,
    in_beats: bool = False,
    bpm: float | None = None,
    progress: Progress | None = None,
    tempo_progress: Progress | None = None,
) -> PrepareReport:
    """Gives the report of a data set made from the audio below `folder`: manifests, Hydra config, `prepare.json`.

    Every file is decoded to its end first; only then is the old data set of that name replaced, so an interrupted
    or failed call leaves it whole. The same folder again updates it. progress(done, total) counts files.
    metadata: a file that describes sounds, beside what they say themselves (`data/metadata.py`). filters: what a
    sound must be by that; the others are neither decoded nor kept. in_beats: the tempo of every file is told too,
    found where nothing says it (tempo_progress counts those). bpm: the tempo of all of them.

    Raises:
        MicroMusicGenError: the folder is missing, empty or holds nothing that can be used; the name is not usable or
            taken by another folder's data set (unless `overwrite`); valid_fraction is not inside (0, 1); the data
            home cannot be written to; the metadata file can't be used; no file passes the filters.
    """
    folder = _checked_folder(folder)
    if not 0 < valid_fraction < 1:
        raise MicroMusicGenError(f"valid fraction {valid_fraction:g} must lie between 0 and 1, such as 0.1")
    if bpm is not None and not BPM_RANGE[0] <= bpm <= BPM_RANGE[1]:
        raise MicroMusicGenError(f"{bpm:g} BPM is no tempo of a sound; give {BPM_RANGE[0]:g} to {BPM_RANGE[1]:g}")
    _check_name(name)
    _restore_interrupted(name)
    if not overwrite:
        _refuse_another(folder, name)
    found = find_audio(folder)
    if not found.audio:
        others = f"files of other kinds: {found.num_ignored}"
        raise MicroMusicGenError(f"{folder} holds no audio file ({others}); name another folder")
    storage.ensure_writable(paths.manifests_dir(name).parent)
    storage.ensure_writable(config_path(name).parent)
    known = collect(folder, found.audio, metadata)
    filters = filters or Filters()
    faults = {path: fault for path in found.audio if (fault := filters.fault(known.described[path].info))}
    left_out = filters.counts(known.described[path].info for path in faults)
    if len(faults) == len(found.audio):
        raise MicroMusicGenError(_nothing_passes(folder, left_out, faults))
    limits = Limits(min_duration_s, min_sample_rate, keep_silence)
    wanted = [path for path in found.audio if path not in faults]
    results: dict[Path, Sound | str] = {**faults, **dict(zip(wanted, _scan_all(wanted, progress), strict=True))}
    sounds, skipped = _sort_out(folder, found.audio, results, limits)
    if not sounds:
        raise MicroMusicGenError(_nothing_usable(folder, skipped))
    described = [known.described[sound.path] for sound in sounds]
    tracks = [_track(sound, one.info) for sound, one in zip(sounds, described, strict=True)]
    tracks = carried_over(tracks, _old_tracks(name))
    if in_beats or bpm is not None:
        tracks = with_tempos(tracks, bpm=bpm, progress=tempo_progress)
    train, valid = split(tracks, valid_fraction=valid_fraction, seed=seed)
    report = PrepareReport(
        name=name,
        source=folder.as_posix(),
        train=tuple(train),
        valid=tuple(valid),
        skipped=tuple(skipped),
        num_ignored=found.num_ignored - known.num_read,
        max_sample_rate=max(sound.sample_rate for sound in sounds),
        max_channels=max(sound.channels for sound in sounds),
        seed=seed,
        valid_fraction=valid_fraction,
        dataset_hash=dataset_hash(tracks),
        config_path=config_path(name).as_posix(),
        coverage=Coverage.of(tracks, described, left_out=left_out, table=known.table, notes=known.notes),
        tempos=Tempos.of(tracks) if in_beats or bpm is not None else None,
    )
    _commit(report)
    return report


def config_path(name: str) -> Path:
    """Gives where the Hydra config of data set `name` lies: `dset=audio/NAME` finds it."""
    return paths.dset_dir() / "audio" / f"{name}.yaml"


def _checked_folder(folder: Path | str) -> Path:
    folder = Path(folder).expanduser().absolute()
    if not folder.exists():
        raise MicroMusicGenError(f"folder {folder} does not exist; check the path")
    if not folder.is_dir():
        raise MicroMusicGenError(f"{folder} is a file; name the folder that holds it")
    folder = folder.resolve()
    try:
        str(folder).encode("utf-8")
    except UnicodeEncodeError as error:
        raise MicroMusicGenError(f"the name of folder {str(folder)!r} is not valid UTF-8; rename it") from error
    return folder


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name.lower().endswith((".yaml", ".yml")):
        raise MicroMusicGenError(
            f"name {name!r} is not usable; take letters, digits, '-', '_' or '.', such as jungle-1"
        )
    if re.fullmatch(r"[0-9a-f]{8}", name):
        raise MicroMusicGenError(f"name {name!r} looks like the signature of a run; choose another, such as {name}-set")
    shipped = {path.stem.lower() for path in (paths.config_dir() / "dset" / "audio").glob("*.yaml")}
    if name.lower() in shipped:
        raise MicroMusicGenError(f"name {name!r} is taken by a config that ships with micro-musicgen; choose another")


def _refuse_another(folder: Path, name: str) -> None:
    """Stops before a data set that came from somewhere else is replaced."""
    report_path = paths.manifests_dir(name) / REPORT_NAME
    if report_path.is_file():
        source = str(storage.read_json(report_path).get("source"))
        if source == folder.as_posix():
            return
        was = f"prepared from {source}"
    elif config_path(name).exists() or paths.manifests_dir(name).exists():
        was = "not made by prepare"
    else:
        return
    raise MicroMusicGenError(f"data set {name!r} exists and was {was}; choose another --name, or pass --overwrite")


def _scan_all(files: Sequence[Path], progress: Progress | None) -> list[Sound | str]:
    """Gives what each file holds, or why it can't be read, in the order of `files`."""
    results: dict[int, Sound | str] = {}
    pool = ThreadPoolExecutor(os.cpu_count() or 1)  # both decoders release the GIL
    try:
        futures = {pool.submit(_scan_one, path): index for index, path in enumerate(files)}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            if progress is not None:
                progress(len(results), len(files))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the files in hand, not for all of them
    return [results[index] for index in range(len(files))]


def _scan_one(path: Path) -> Sound | str:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    try:
        return scan(path)
    except UnreadableAudioError as error:
        return str(error).removeprefix(f"{path} ")


def _sort_out(
    folder: Path, files: Sequence[Path], results: Mapping[Path, Sound | str], limits: Limits
) -> tuple[list[Sound], list[Skipped]]:
    """Gives the files to train on and the ones left out; of equal sounds the first by path stays.

    results: what each file holds, or why it is left out already.
    """
    kept: dict[str, Sound] = {}
    skipped: list[Skipped] = []
    for path in files:
        result = results[path]
        if isinstance(result, str):
            reason: str | None = result
        else:
            reason = limits.fault(result)
            first = kept.setdefault(result.audio_hash, result) if reason is None else result
            if first is not result:
                reason = f"the same samples as {_below(folder, first.path)}; kept once"
        if reason is not None:
            skipped.append(Skipped(_below(folder, path), reason))
    return list(kept.values()), skipped


def _below(folder: Path, path: Path) -> str:
    """Gives a path for people and JSON: relative, and any byte that is no text replaced."""
    return path.relative_to(folder).as_posix().encode("utf-8", "replace").decode()


def _nothing_usable(folder: Path, skipped: Sequence[Skipped]) -> str:
    reasons = ", ".join(f"{skip.path} ({skip.reason})" for skip in skipped[:3])
    more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"no file in {folder} can be used: {reasons}{more}; name another folder"


def _nothing_passes(folder: Path, left_out: Mapping[str, int], faults: Mapping[Path, str]) -> str:
    counts = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
    path, fault = next(iter(faults.items()))
    return f"no file in {folder} passes the filters ({counts}), such as {_below(folder, path)}: {fault}; ask for less"


def _old_tracks(name: str) -> list[Track]:
    """Gives the tracks of the data set that is about to be replaced; none where it can't be read."""
    found: list[Track] = []
    for split_name in ("train", "valid"):
        with contextlib.suppress(MicroMusicGenError):
            found += read_manifest(paths.manifests_dir(name) / split_name)
    return found


def _track(sound: Sound, info: dict[str, Any]) -> Track:
    return Track(
        path=sound.path.as_posix(),
        duration=sound.duration_s,
        sample_rate=sound.sample_rate,
        amplitude=sound.peak,
        audio_hash=sound.audio_hash,
        info=info or None,
    )


def _commit(report: PrepareReport) -> None:
    """Puts the new data set in the place of the old one: written beside it, then two renames."""
    final, stage, old = _stations(report.name)
    shutil.rmtree(stage, ignore_errors=True)
    write_manifest(stage / "train", report.train)
    write_manifest(stage / "valid", report.valid)
    storage.write_json(stage / REPORT_NAME, report.to_dict())
    if final.exists():
        os.replace(final, old)
    os.replace(stage, final)
    storage.write_text(config_path(report.name), report.config_text())
    shutil.rmtree(old, ignore_errors=True)


def _restore_interrupted(name: str) -> None:
    """Mends what a call that was killed between the two renames left."""
    final, _, old = _stations(name)
    if old.exists() and not final.exists():
        os.replace(old, final)
    shutil.rmtree(old, ignore_errors=True)


def _stations(name: str) -> tuple[Path, Path, Path]:
    """Gives the data set's folder, where the next one is built, and where the last one waits to be removed."""
    final = paths.manifests_dir(name)
    return final, final.with_name(f".{name}.new"), final.with_name(f".{name}.old")
