"""`micro-musicgen generate`: clips as files, or one clip as sound while it is made."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from micro_musicgen import snapshots
from micro_musicgen.commands.common import JsonFlag, report
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    from micro_musicgen.engine.clips import ClipRequest


def generate(
    release: Annotated[str, typer.Argument(help="Release folder, run, data set name or Hub id.")],
    num_clips: Annotated[
        int | None,
        typer.Option("-n", "--num", help="How many clips; by default one per --text or --audio-prompt, or 4."),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds a clip.  [default: 8; of a model in beat time, its window]")
    ] = None,
    bars: Annotated[int | None, typer.Option(help="Bars a clip, of a model in beat time, instead of seconds.")] = None,
    bpm: Annotated[
        float | None, typer.Option(help="Tempo of the clips, of a model in beat time.  [default: as trained]")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Make loops: the end flows into the start.")] = False,
    repeats: Annotated[int, typer.Option(help="How often a file plays its clip.")] = 1,
    keep_pitch: Annotated[
        bool, typer.Option("--keep-pitch", help="Let a tempo other than the trained one leave the pitch alone.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same files. Drawn when not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the WAV files; clips by default.")] = None,
    temperature: Annotated[float, typer.Option(help="Above 1 is odder, below 1 is safer.")] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="Draw among the k likeliest codes; 0 for all.  [default: 250]")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Draw among codes of this total likelihood; 0 for off.")] = 0.0,
    prompt: Annotated[Path | None, typer.Option(help="An audio file to continue.")] = None,
    prompt_duration: Annotated[float, typer.Option(help="Seconds of the prompt to start from.")] = 2.0,
    text: Annotated[
        list[str] | None, typer.Option(help="What to play, in words. Repeat it for one clip each.", metavar="TEXT")
    ] = None,
    audio_prompt: Annotated[
        list[Path] | None,
        typer.Option(help="An audio file to sound like, without continuing it. Repeat it for one clip each."),
    ] = None,
    cfg: Annotated[
        float | None,
        typer.Option(
            help="How closely to follow --text and --audio-prompt: 1 as trained, 0 not at all.  [default: model's]"
        ),
    ] = None,
    cfg_audio: Annotated[
        float | None, typer.Option(help="The same for --audio-prompt alone.  [default: as --cfg]")
    ] = None,
    candidates: Annotated[
        int, typer.Option(help="Make so many of each clip and keep the one that fits --text best; needs --clap.")
    ] = 1,
    clap: Annotated[
        str | None,
        typer.Option(help="The CLAP model that scores clips by --text: a Hub id or a folder.", metavar="REF"),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            help="What turns codes into sound: plain, diffusion (the release's), or the run of one.  [default: plain]",
            metavar="REF",
        ),
    ] = None,
    decoder_steps: Annotated[
        int | None, typer.Option(help="Steps of the diffusion decoder: fewer are faster.  [default: decoder's]")
    ] = None,
    decoder_guidance: Annotated[
        float | None,
        typer.Option(help="How closely the diffusion decoder follows the codes: 1 as trained.  [default: decoder's]"),
    ] = None,
    decoder_noise: Annotated[
        float | None,
        typer.Option(help="Noise that the diffusion decoder starts from: below 1 is cleaner.  [default: decoder's]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Clips, or candidates, made at once.")] = 8,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; found when not given.")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32 (the reference), fp16, bf16 or int8.")] = "auto",
    play: Annotated[bool, typer.Option("--play", help="Listen to one clip while it is made; no file.")] = False,
    stdout: Annotated[
        bool, typer.Option("--stdout", help="One clip as raw 16-bit PCM on stdout, while it is made.")
    ] = False,
    at: Annotated[
        str | None, typer.Option(help="Play a run as it was at this share of its training: 20%. Works while it trains.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files of the same name.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Generate clips as WAV files, or play one as it is made."""
    gc.disable()  # collecting while torch is imported finds nothing and takes a quarter of a second
    from micro_musicgen.console import counting
    from micro_musicgen.engine.clips import ClipRequest, write_clips

    gc.enable()
    streams = play or stdout
    if streams and (play and stdout or num_clips not in (None, 1) or out is not None or as_json):
        raise MicroMusicGenError(
            "--play and --stdout give one clip to one place; leave out -n, --out, --json and the other"
        )
    if streams and (candidates != 1 or clap is not None):
        raise MicroMusicGenError("candidates are compared when they are whole; leave out --play and --stdout")
    told = max(len(text or ()), len(audio_prompt or ()))
    if at is not None:
        release = str(snapshots.snapshot(release, at, solver="musicgen"))
    request = ClipRequest(
        release=release,
        num_clips=num_clips if num_clips is not None else 1 if streams else told or 4,
        out=out or Path("clips"),
        duration_s=duration,
        bars=bars,
        bpm=bpm,
        loop=loop,
        repeats=repeats,
        keep_pitch=keep_pitch,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        prompt=prompt,
        prompt_duration_s=prompt_duration,
        texts=tuple(text or ()),
        audio_prompts=tuple(audio_prompt or ()),
        cfg_coef=cfg,
        cfg_coef_audio=cfg_audio,
        candidates=candidates,
        clap=clap,
        decoder=decoder,
        decoder_steps=decoder_steps,
        decoder_guidance=decoder_guidance,
        decoder_noise=decoder_noise,
        batch_size=batch_size,
        device=device,
        precision=precision,
        overwrite=overwrite,
    )
    if streams:
        _listen(request, play)
        return
    with counting("generating") as progress:
        written = write_clips(request, progress=progress)
    report(as_json, written.plain(), written.lines())


def _listen(request: ClipRequest, play: bool) -> None:
    """Plays one clip, or writes it to stdout; a reader that goes away early is no error."""
    from micro_musicgen.console import console, counting
    from micro_musicgen.engine.listen import Sink, find_player, player_command, playing_sink, stream_pcm

    player = find_player() if play else None

    def open_sink(rate: int) -> contextlib.AbstractContextManager[Sink]:
        if player is not None:
            return playing_sink(player_command(player, rate))
        console.print(f"raw PCM on stdout: 16-bit little-endian, {rate} Hz, 1 channel", style="dim")
        return contextlib.nullcontext(_unbuffered(sys.stdout.fileno()))

    with counting("streaming") as progress:
        try:
            seed = stream_pcm(request, open_sink, progress=progress)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
            return
    console.print(f"seed {seed}", style="dim")


def _unbuffered(descriptor: int) -> Callable[[bytes], None]:
    """Gives a writer that has handed everything on when it returns: who listens live must not wait for a buffer."""

    def write(data: bytes) -> None:
        while data:
            data = data[os.write(descriptor, data) :]

    return write
