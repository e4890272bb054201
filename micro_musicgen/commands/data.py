"""`micro-musicgen prepare`: a data set of a folder of sounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from micro_musicgen.commands.common import JsonFlag, TimeUnit, report


def prepare(
    folder: Annotated[Path, typer.Argument(help="A folder of sounds; its subfolders too.")],
    name: Annotated[str, typer.Option(help="What to call the data set.")],
    valid_fraction: Annotated[float, typer.Option(help="Share of the audio kept for validation.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides which files are kept for validation.")] = 0,
    min_duration: Annotated[float, typer.Option(help="Skip files shorter than this, seconds.")] = 0.25,
    min_sample_rate: Annotated[int, typer.Option(help="Skip files below this rate, Hz.")] = 16000,
    keep_silence: Annotated[bool, typer.Option(help="Keep files that are silent throughout.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a data set made from another folder.")] = False,
    metadata: Annotated[
        Path | None, typer.Option(help="A CSV or JSON file that describes the sounds; see docs/descriptions.md.")
    ] = None,
    license: Annotated[
        list[str] | None, typer.Option(help="Take only sounds under this licence, such as cc0 or cc-by. Repeatable.")
    ] = None,
    instrument: Annotated[
        list[str] | None, typer.Option(help="Take only sounds of this instrument. Repeatable.")
    ] = None,
    genre: Annotated[list[str] | None, typer.Option(help="Take only sounds of this genre. Repeatable.")] = None,
    time: Annotated[
        TimeUnit, typer.Option(help="beats: find the tempo of every file too, for train --time beats.")
    ] = TimeUnit.CLOCK,
    bpm: Annotated[
        float | None, typer.Option(help="The tempo of all files, beats a minute; found for each when not given.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a data set of a folder: decode every file, drop duplicates, split, write manifests."""
    from micro_musicgen.console import counting
    from micro_musicgen.data.filters import Filters
    from micro_musicgen.data.prepare import prepare as run

    filters = Filters.parse(license or (), instrument or (), genre or ())
    in_beats = time is TimeUnit.BEATS or bpm is not None
    with counting("reading") as progress:
        found = run(
            folder,
            name,
            valid_fraction=valid_fraction,
            seed=seed,
            min_duration_s=min_duration,
            min_sample_rate=min_sample_rate,
            keep_silence=keep_silence,
            overwrite=overwrite,
            metadata=metadata,
            filters=filters,
            in_beats=in_beats,
            bpm=bpm,
            progress=progress,
            tempo_progress=progress,
        )
    more = " --time beats" if in_beats else ""
    report(as_json, found.to_dict(), [*found.summary_lines(), f"next: micro-musicgen train {name}{more} --minutes 30"])
