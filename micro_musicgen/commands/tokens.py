"""`micro-musicgen tokens`: encodes a data set once, so that a language model trains without the codec."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from micro_musicgen import paths

if TYPE_CHECKING:
    from micro_musicgen.contracts import Codec
    from micro_musicgen.data.manifest import Track
    from micro_musicgen.data.tokens import TokenSettings, TokenStore


class Split(str, Enum):
    """Which half of a data set."""

    TRAIN = "train"
    VALID = "valid"
    BOTH = "both"

    @property
    def names(self) -> tuple[str, ...]:
        """Gives the halves one by one."""
        return ("train", "valid") if self is Split.BOTH else (self.value,)


def tokens(
    name: Annotated[str, typer.Argument(help="A data set's name, as given to prepare.")],
    codec: Annotated[str, typer.Option(help="Signature, path or Hub id of the codec.")],
    split: Annotated[Split, typer.Option(help="Which half of the data set.")] = Split.BOTH,
    segment: Annotated[float, typer.Option(help="Seconds that the LM trains on at once; shorter files loop.")] = 8.0,
    window: Annotated[float, typer.Option(help="Seconds that the codec hears at once.")] = 30.0,
    overlap: Annotated[float, typer.Option(help="Seconds that neighbouring windows share.")] = 2.0,
    workers: Annotated[int | None, typer.Option(help="Processes; as many as the audio is worth by default.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check sizes, ranges and checksums; write nothing.")] = False,
    sample: Annotated[int, typer.Option(help="With --verify or --repair: encode so many files again, compare.")] = 0,
    repair: Annotated[bool, typer.Option("--repair", help="Encode again what --verify finds damaged.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be encoded and where to; write nothing.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; found when not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Encode a data set's files once for LM training. Repeat it after a stop, or after prepare found new files."""
    from micro_musicgen.codec.resolve import load_codec
    from micro_musicgen.data.manifest import read_manifest
    from micro_musicgen.data.tokens import TokenSettings, store_folder, store_key
    from micro_musicgen.engine.device import pick_device

    split_tracks = {half: read_manifest(paths.manifests_dir(name) / half) for half in split.names}
    load = partial(load_codec, codec, str(pick_device(device)))
    loaded = load()
    settings = TokenSettings(segment, window, overlap)
    only_looks = dry_run if repair else verify
    reports, lines = [], []
    for half, tracks in split_tracks.items():
        folder = store_folder(name, half, store_key(loaded.content_hash, tracks, settings))
        task = _Task(half, folder, tracks, loaded, settings, workers, load)
        if only_looks:
            found, said = task.verify(sample)
        elif repair:
            found, said = task.repair(sample)
        else:
            found, said = task.plan() if dry_run else task.build()
        reports.append({"split": half, **found})
        lines += [f"{half:5} {line}" for line in said]
    if not (only_looks or dry_run):
        lines.append(f"next: micro-musicgen train {name} --codec {shlex.quote(codec)}")
    plain = {"codec": codec, "codec_hash": loaded.content_hash, "splits": reports}
    typer.echo(json.dumps(plain, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))
    if only_looks and any(report["faults"] for report in reports):
        raise typer.Exit(1)


class _Task:
    """One split's store and what can be done with it; each verb gives plain data and lines for a person."""

    def __init__(
        self,
        half: str,
        folder: Path,
        tracks: list[Track],
        codec: Codec,
        settings: TokenSettings,
        workers: int | None,
        load: Callable[[], Codec],
    ) -> None:
        self.half, self.folder, self.tracks, self.codec = half, folder, tracks, codec
        self.settings, self.workers, self.load = settings, workers, load

    def plan(self) -> tuple[dict[str, Any], list[str]]:
        from micro_musicgen.data.encode import plan_token_store

        plan = plan_token_store(self.folder, self.tracks, self.codec, self.settings)
        width = self.codec.num_codebooks * 2 * self.codec.frame_rate
        found = {
            "folder": str(self.folder),
            "num_tracks": plan.num_tracks,
            "num_reused": plan.num_reused,
            "num_encoded": len(plan.missing),
            "encoded_s": round(plan.missing_s, 3),
            "is_built": plan.store is not None,
            "bytes": round(sum(max(track.duration, 0.0) for track in self.tracks) * width),
        }
        return found, [*self._plan_lines(found), "nothing was written (--dry-run)"]

    def build(self) -> tuple[dict[str, Any], list[str]]:
        from micro_musicgen.console import counting
        from micro_musicgen.data.encode import build_token_store

        planned, _ = self.plan()
        if planned["is_built"]:
            return planned, [*self._plan_lines(planned), f"store {self.folder}"]
        with counting(f"encoding {self.half}") as progress:
            store = build_token_store(
                self.folder,
                self.tracks,
                self.codec,
                segment_s=self.settings.segment_s,
                window_s=self.settings.window_s,
                overlap_s=self.settings.overlap_s,
                workers=self.workers,
                load=self.load,
                progress=progress,
            )
        found = {**planned, "is_built": True, **_size(store)}
        return found, [*self._plan_lines(planned), f"store {self.folder} ({found['bytes'] / 1e6:.2f} MB)"]

    def _plan_lines(self, found: dict[str, Any]) -> list[str]:
        if found["is_built"]:
            return [f"{found['num_tracks']} files, all encoded before"]
        encoded = f"{found['num_encoded']} to encode ({found['encoded_s'] / 60:.1f} min)"
        return [f"{found['num_tracks']} files: {found['num_reused']} encoded before, {encoded}"]

    def verify(self, sample: int) -> tuple[dict[str, Any], list[str]]:
        from micro_musicgen.data.token_check import check_store

        report = check_store(self.folder, codec=self.codec, sample=sample)
        return report.to_dict(), report.lines()

    def repair(self, sample: int) -> tuple[dict[str, Any], list[str]]:
        from micro_musicgen.console import counting
        from micro_musicgen.data.token_check import repair_store

        with counting(f"repairing {self.half}") as progress:
            store, report = repair_store(
                self.folder,
                self.tracks,
                self.codec,
                self.settings,
                sample=sample,
                workers=self.workers,
                load=self.load,
                progress=progress,
            )
        done = "nothing to repair" if not report.faults else "repaired"
        return {**report.to_dict(), **_size(store)}, [*report.lines(), f"{done}: {self.folder}"]


def _size(store: TokenStore) -> dict[str, int]:
    return {"num_frames": store.num_frames, "bytes": sum(shard.nbytes for shard in store.shards)}
