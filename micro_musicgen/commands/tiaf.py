"""`micro-musicgen tiaf`: sounds into beat time and back, what such a file says, and listening to it at any tempo."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from micro_musicgen.commands.common import JsonFlag, report
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    from micro_musicgen.audio.tempo import FoundTempo
    from micro_musicgen.audio.tiaf_header import TiafHeader

app = typer.Typer(
    name="tiaf",
    help="Sound in beat time: files with as many samples in every beat, at any tempo.",
    no_args_is_help=True,
)
Given = Annotated[list[Path], typer.Argument(help="Files, or folders with their subfolders.", metavar="FILE_OR_FOLDER")]
OutFlag = Annotated[Path | None, typer.Option(help="Folder to write into; beside each file when not given.")]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace files of the same name.")]
KeepPitchFlag = Annotated[bool, typer.Option("--keep-pitch", help="With --bpm: stretch the sound, keep its pitch.")]


@dataclass(frozen=True)
class _Job:
    """One file to convert. is_named: it was named itself, not found in a folder."""

    path: Path
    out: Path
    is_named: bool


@dataclass
class _Outcome:
    """What became of all files: plain data and a line of each, and what failed."""

    done: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    failed: list[tuple[_Job, str]] = field(default_factory=list)

    def give(self, as_json: bool, *, nothing_written: bool = False) -> None:
        """Prints it.

        Raises:
            MicroMusicGenError: a file that was named failed, or all did.
        """
        plain = {"files": self.done, "failed": [{"path": str(job.path), "error": why} for job, why in self.failed]}
        lines = [*self.lines, *(f"passed over: {why}" for _, why in self.failed)]
        if self.done or as_json:
            report(as_json, plain, [*lines, "nothing was written (--dry-run)"] if nothing_written else lines)
        if self.failed and (not self.done or any(job.is_named for job, _ in self.failed)):
            job, why = next((each for each in self.failed if each[0].is_named), self.failed[0])
            more = f" (and {len(self.failed) - 1} more files failed)" if len(self.failed) > 1 else ""
            raise MicroMusicGenError(f"{why}{more}")


@app.command()
def encode(
    sounds: Given,
    out: OutFlag = None,
    bpm: Annotated[
        float | None, typer.Option(help="The tempo of all of them, beats a minute; found for each when not given.")
    ] = None,
    offset: Annotated[float, typer.Option(help="Where beat 0 lies, seconds; what comes before is left out.")] = 0.0,
    loop: Annotated[
        bool | None, typer.Option("--loop/--no-loop", help="They close exactly; found out when not given.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="int16 or float32.")] = "float32",
    samples_per_beat: Annotated[int, typer.Option(help="Samples of each channel in a beat.")] = 40_960,
    overwrite: OverwriteFlag = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Find the tempos; write nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write sounds as .tiaf. Tempos come from --bpm, file names, tags, lengths of loops, or are heard."""
    from micro_musicgen.audio.tempo import UNSURE
    from micro_musicgen.audio.tiaf_header import DTYPES
    from micro_musicgen.audio.warp import check_bpm

    if dtype not in DTYPES:
        raise MicroMusicGenError(f"--dtype {dtype} is none; take {' or '.join(DTYPES)}")
    if bpm is not None:
        check_bpm(bpm)

    def convert(job: _Job) -> tuple[dict[str, Any], str]:
        found, closes, header = _encode(job, bpm, offset, loop, dtype, samples_per_beat, dry_run)
        beats = found.beats or 0.0
        plain = {"path": str(job.path), "out": str(job.out), "bpm": round(found.bpm, 4), "tempo_from": found.source}
        plain |= {"confidence": round(found.confidence, 3), "beats": round(beats, 4), "loops": closes}
        plain |= {"bytes": None if header is None else job.out.stat().st_size}
        kind = "a loop of" if closes else "no loop,"
        sure = "" if found.confidence >= UNSURE else ", a guess: check it, or give --bpm"
        return plain, f"{job.out}: {found.bpm:.2f} BPM ({found.source}{sure}), {kind} {beats:.2f} beats"

    jobs = _jobs(sounds, out, ".tiaf", overwrite=overwrite or dry_run, is_wanted=_is_audio)
    _each(jobs, "encoding", convert).give(as_json, nothing_written=dry_run and not as_json)


@app.command()
def decode(
    files: Given,
    out: OutFlag = None,
    bpm: Annotated[float | None, typer.Option(help="Play at this tempo; as recorded when not given.")] = None,
    keep_pitch: KeepPitchFlag = False,
    sample_rate: Annotated[int | None, typer.Option(help="Hz; that of the source when not given.")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write .tiaf files as WAV, at any tempo."""
    from micro_musicgen.audio.io import write_wav
    from micro_musicgen.audio.tiaf import decode_tiaf

    _check_playing(bpm, keep_pitch)
    if sample_rate is not None and not 1000 <= sample_rate <= 768_000:
        raise MicroMusicGenError(f"--sample-rate {sample_rate} is none to play at; give 1000 to 768000 Hz")

    def convert(job: _Job) -> tuple[dict[str, Any], str]:
        wav, rate = decode_tiaf(job.path, sample_rate=sample_rate, bpm=bpm, keep_pitch=keep_pitch)
        write_wav(job.out, wav, rate)
        plain = {"path": str(job.path), "out": str(job.out), "sample_rate": rate, "num_samples": wav.shape[1]}
        return plain, f"{job.out}: {wav.shape[1] / rate:.3f} s at {rate} Hz"

    ending = ".wav" if bpm is None else f"_{bpm:g}bpm.wav"
    jobs = _jobs(files, out, ending, overwrite=overwrite, is_wanted=_is_tiaf)
    _each(jobs, "decoding", convert).give(as_json)


@app.command()
def info(files: Given, as_json: JsonFlag = False) -> None:
    """Show what .tiaf files say, after checking every beat of them."""
    from micro_musicgen.audio.tiaf import TiafFile

    def look(job: _Job) -> tuple[dict[str, Any], str]:
        with TiafFile(job.path) as file:
            file.verify()
            header = file.header
        plain = {"path": str(job.path), "mean_bpm": header.mean_bpm, "duration_s": header.duration_s}
        return plain | header.to_plain(), "\n".join(_lines(job.path, header))

    _each(_jobs(files, None, "", overwrite=True, is_wanted=_is_tiaf), "reading", look).give(as_json)


@app.command()
def play(
    file: Annotated[Path, typer.Argument(help="A .tiaf file.")],
    bpm: Annotated[float | None, typer.Option(help="Play at this tempo; as recorded when not given.")] = None,
    keep_pitch: KeepPitchFlag = False,
    loop: Annotated[int, typer.Option(min=1, help="How many times.")] = 1,
) -> None:
    """Listen to a .tiaf file."""
    from micro_musicgen.audio.tiaf import decode_tiaf
    from micro_musicgen.engine.listen import find_player, player_command, playing_sink

    _check_playing(bpm, keep_pitch)
    try:
        line = find_player()
    except MicroMusicGenError as error:
        raise MicroMusicGenError(f"{str(error).split(';')[0]}; install one, or write a WAV by tiaf decode") from None
    wav, rate = decode_tiaf(file, bpm=bpm, keep_pitch=keep_pitch)
    heard = wav if len(wav) <= 2 else wav.mean(axis=0, keepdims=True)
    pcm = (heard.clip(-1, 1) * 32767).round().astype("<i2").T.tobytes()
    with playing_sink(player_command(line, rate, len(heard))) as sink:
        for _ in range(loop):
            sink(pcm)


def _check_playing(bpm: float | None, keep_pitch: bool) -> None:
    from micro_musicgen.audio.warp import check_bpm

    if bpm is not None:
        check_bpm(bpm)
    elif keep_pitch:
        raise MicroMusicGenError("--keep-pitch is for another tempo; give --bpm too")


def _encode(
    job: _Job, bpm: float | None, offset_s: float, loop: bool | None, dtype: str, samples_per_beat: int, dry_run: bool
) -> tuple[FoundTempo, bool, TiafHeader | None]:
    """Gives the tempo of a file, whether it is taken for a loop, and the header of what was written, if it was."""
    from micro_musicgen.audio.io import read_audio
    from micro_musicgen.audio.tempo import find_tempo
    from micro_musicgen.audio.tiaf import encode_tiaf
    from micro_musicgen.data.metadata_sources import read_sidecar, read_tags

    wav, sample_rate = read_audio(job.path)
    beside = read_sidecar(job.path)
    known = read_tags(job.path).info | (beside.info if beside is not None else {})
    found = find_tempo((wav, sample_rate), bpm=bpm, name=job.path.name, info=known)
    closes = found.is_loop if loop is None else loop
    if dry_run:
        return found, closes, None
    header = encode_tiaf(
        job.out,
        wav,
        sample_rate,
        found.bpm,
        samples_per_beat=samples_per_beat,
        offset_s=offset_s,
        loops=closes,
        dtype=dtype,
        metadata={"file": job.path.name, "tempo_from": found.source, **({"info": known} if known else {})},
    )
    return found, closes, header


def _jobs(
    given: Sequence[Path], out: Path | None, ending: str, *, overwrite: bool, is_wanted: Callable[[Path], bool]
) -> list[_Job]:
    """Gives what is to be converted into what, each target once; folders keep their shape below `out`.

    Raises:
        MicroMusicGenError: a folder holds nothing, two files would be one, or a file would be replaced.
    """
    jobs: list[_Job] = []
    for path in given:
        found = sorted(_below(path, is_wanted)) if path.is_dir() else [path]
        if not found:
            raise MicroMusicGenError(f"{path} holds no file to convert; name another folder")
        for each in found:
            inside = each.relative_to(path) if path.is_dir() else Path(each.name)
            target = (each if out is None else out / inside).with_name(f"{each.stem}{ending}")
            jobs.append(_Job(each, target, not path.is_dir()))
    seen: dict[Path, Path] = {}
    for job in jobs if ending else ():
        other = seen.setdefault(job.out, job.path)
        if other != job.path:
            raise MicroMusicGenError(f"{other} and {job.path} would both be {job.out}; rename one, or do one at a time")
    there = [] if overwrite else [job.out for job in jobs if job.out.exists()]
    if there:
        more = f", and {len(there) - 1} more," if len(there) > 1 else ""
        raise MicroMusicGenError(f"{there[0]}{more} exists; pass --overwrite to replace it, or another --out")
    return jobs


def _below(folder: Path, is_wanted: Callable[[Path], bool]) -> list[Path]:
    return [
        Path(root) / name
        for root, folders, names in os.walk(folder)
        for name in names
        if is_wanted(Path(name)) and not name.startswith(".")
    ]


def _is_audio(path: Path) -> bool:
    from micro_musicgen.data.scan import AUDIO_SUFFIXES

    return path.suffix.lower() in AUDIO_SUFFIXES


def _is_tiaf(path: Path) -> bool:
    return path.suffix.lower() == ".tiaf"


def _each(jobs: Sequence[_Job], title: str, convert: Callable[[_Job], tuple[dict[str, Any], str]]) -> _Outcome:
    """Gives what `convert` gave of each; what can't be used is noted, and the others go on."""
    from micro_musicgen.console import counting
    from micro_musicgen.errors import DiskFullError, MissingExtraError

    outcome = _Outcome()
    with counting(title) as progress:
        for index, job in enumerate(jobs, 1):
            try:
                plain, line = convert(job)
            except (DiskFullError, MissingExtraError):  # no other file would fare better
                raise
            except MicroMusicGenError as error:
                why = " ".join(str(error).split())
                outcome.failed.append((job, why if job.path.name in why else f"{job.path}: {why}"))
            else:
                outcome.done.append(plain)
                outcome.lines.append(line)
            if len(jobs) > 1:
                progress(index, len(jobs))
    return outcome


def _lines(path: Path, header: TiafHeader) -> list[str]:
    changes = len(header.tempo_map.bpms) - 1
    tempo = f"{header.mean_bpm:.4g} BPM" + (f" on average, {changes} changes" if changes else "")
    beats = header.valid_samples / header.samples_per_beat
    channels = {1: "mono", 2: "stereo"}.get(header.channels, f"{header.channels} channels")
    return [
        f"{path}",
        f"  {tempo}, {beats:.6g} beats{', loops' if header.loops else ''}, {header.duration_s:.3f} s",
        f"  {header.samples_per_beat} samples a beat, {channels}, {header.dtype}, peak {header.peak:.3f}",
        f"  from {header.source_num_samples} samples at {header.source_sample_rate} Hz, beat 0 at "
        f"{header.beat_offset_s:g} s",
        *(f"  {name}: {value}" for name, value in header.metadata.items()),
    ]
