"""The command `micro-musicgen`: thin verbs over the library. Heavy imports happen inside the verb that needs them.

Exit codes: 0 done, 2 bad input (one line, no traceback), 130 interrupted, 1 anything else.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    from micro_musicgen.engine.clips import ClipRequest

app = typer.Typer(
    name="micro-musicgen",
    help="Music models small enough to train from scratch at home, on your own sounds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
DEBUG_VARIABLE = "MICRO_MUSICGEN_DEBUG"


def _say(text: str) -> None:
    typer.echo(text)


def _report(as_json: bool, plain: Any, lines: list[str]) -> None:
    _say(json.dumps(plain, indent=2, ensure_ascii=False, default=str) if as_json else "\n".join(lines))


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """Check this installation: versions, devices, patches; exit 1 and say what to do when something is wrong."""
    from micro_musicgen.engine.device import pick_device
    from micro_musicgen.engine.precision import describe_default
    from micro_musicgen.upstream.doctor import diagnose

    diagnosis, precision = diagnose(), describe_default(pick_device())
    lines = [*diagnosis.lines(), f"precision auto: {precision}"]
    _report(as_json, {**diagnosis.to_dict(), "precision_auto": precision}, lines)
    if not diagnosis.ok:
        raise typer.Exit(1)


@app.command()
def prepare(
    folder: Annotated[Path, typer.Argument(help="A folder of sounds; its subfolders too.")],
    name: Annotated[str, typer.Option(help="What to call the data set.")],
    valid_fraction: Annotated[float, typer.Option(help="Share of the audio kept for validation.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides which files are kept for validation.")] = 0,
    min_duration: Annotated[float, typer.Option(help="Skip files shorter than this, seconds.")] = 0.25,
    min_sample_rate: Annotated[int, typer.Option(help="Skip files below this rate, Hz.")] = 16000,
    keep_silence: Annotated[bool, typer.Option(help="Keep files that are silent throughout.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a data set made from another folder.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a data set of a folder: decode every file, drop duplicates, split, write manifests."""
    from micro_musicgen.console import counting
    from micro_musicgen.data.prepare import prepare as run

    with counting("reading") as progress:
        report = run(
            folder,
            name,
            valid_fraction=valid_fraction,
            seed=seed,
            min_duration_s=min_duration,
            min_sample_rate=min_sample_rate,
            keep_silence=keep_silence,
            overwrite=overwrite,
            progress=progress,
        )
    _report(as_json, report.to_dict(), [*report.summary_lines(), f"next: micro-musicgen train {name} --minutes 30"])


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A data set's name, as given to prepare.")],
    minutes: Annotated[float, typer.Option(help="Wall time. Speed is measured once; the steps follow from it.")] = 30.0,
    scale: Annotated[str, typer.Option(help="Size of the LM: nano, tiny, mini, midi, micro.")] = "mini",
    codec: Annotated[str | None, typer.Option(help="Signature, path or Hub id. Trained here when not given.")] = None,
    codec_scale: Annotated[str, typer.Option(help="Size of a codec trained here: nano, micro, base.")] = "nano",
    seed: Annotated[int | None, typer.Option(help="Of weights and order of the data.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="A Hydra override KEY=VALUE for both runs.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print steps, time, memory and disk, and train nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a codec (40 % of the time, unless one is given) and a language model on a data set."""
    from micro_musicgen import training
    from micro_musicgen.console import RichReporter, console

    request = training.TrainingRequest(
        dataset=name,
        minutes=minutes,
        scale=scale,
        codec=codec,
        codec_scale=codec_scale,
        seed=seed,
        overrides=tuple(override or ()),
    )
    if dry_run:
        plan = training.dry_run(request)
        _report(as_json, plan, _plan_lines(plan))
        return
    console.print(f"training on {name} for {minutes:g} minutes; Ctrl-C is safe, the same command goes on", style="dim")
    folder = training.train(request, RichReporter())
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = [
        f"signature {folder.name}",
        f"run {folder}",
        f"best validation cross-entropy {summary['best']['score']:.3f} nat at epoch {summary['best']['epoch']}",
        f"next: micro-musicgen export {folder.name} --out {name}-release",
    ]
    _report(as_json, {"signature": folder.name, "folder": str(folder), "summary": summary}, lines)


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    lines = []
    for part in ("codec", "lm"):
        if part in plan:
            p = plan[part]
            lines.append(
                f"{part:5} {p['num_parameters'] / 1e6:8.2f} M parameters, {p['steps']} steps at {p['steps_per_s']:g}/s"
            )
            lines.append(
                f"      {p['minutes']:g} min on {p['device']}, {p['memory_mb']} MB of memory besides activations, "
                f"{p['disk_mb']} MB of disk"
            )
    return [*lines, "nothing was trained (--dry-run)"]


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Signature, run folder or data set name.")],
    out: Annotated[Path, typer.Option(help="Release folder to write.")],
    form: Annotated[str, typer.Option("--format", help="micro, or audiocraft for upstream's .bin files.")] = "micro",
    name: Annotated[str | None, typer.Option(help="Name on the card; the folder's by default.")] = None,
    license_id: Annotated[str | None, typer.Option("--license", help="Licence of your weights, for the card.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing release.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a release folder of a trained run: weights, config, card."""
    from micro_musicgen.release.export import export as write

    folder = write(run, out, form=form, name=name, license_id=license_id, overwrite=overwrite)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    lines = [f"{size / 1e6:10.2f} MB  {file}" for file, size in files.items()]
    lines += [
        f"release {folder}",
        f"next: micro-musicgen generate {shlex.quote(str(out))} -n 4 --duration 8 --out clips",
    ]
    _report(as_json, {"folder": str(folder), "files": files}, lines)


@app.command()
def generate(
    release: Annotated[str, typer.Argument(help="Release folder, run, data set name or Hub id.")],
    num_clips: Annotated[int | None, typer.Option("-n", "--num", help="How many clips; 4 by default.")] = None,
    duration: Annotated[float, typer.Option(help="Seconds a clip.")] = 8.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same files. Drawn when not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the WAV files; clips by default.")] = None,
    temperature: Annotated[float, typer.Option(help="Above 1 is odder, below 1 is safer.")] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="Draw among the k likeliest codes; 0 for all.  [default: 250]")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Draw among codes of this total likelihood; 0 for off.")] = 0.0,
    prompt: Annotated[Path | None, typer.Option(help="An audio file to continue.")] = None,
    prompt_duration: Annotated[float, typer.Option(help="Seconds of the prompt to start from.")] = 2.0,
    batch_size: Annotated[int, typer.Option(help="Clips made at once.")] = 8,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; found when not given.")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32 (the reference), fp16, bf16 or int8.")] = "auto",
    play: Annotated[bool, typer.Option("--play", help="Listen to one clip while it is made; no file.")] = False,
    stdout: Annotated[
        bool, typer.Option("--stdout", help="One clip as raw 16-bit PCM on stdout, while it is made.")
    ] = False,
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
    request = ClipRequest(
        release=release,
        num_clips=num_clips if num_clips is not None else 1 if streams else 4,
        out=out or Path("clips"),
        duration_s=duration,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        prompt=prompt,
        prompt_duration_s=prompt_duration,
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
    _report(as_json, {"seed": written.seed, "files": [str(p) for p in written.files]}, written.lines())


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


@app.command()
def info(
    reference: Annotated[str, typer.Argument(help="Release folder, run, checkpoint, data set name or Hub id.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what a run or a release is."""
    from micro_musicgen.release.info import describe

    facts = describe(reference)
    _report(as_json, facts, [f"{key:24} {value}" for key, value in facts.items()])


@app.command()
def size(
    card: Annotated[int, typer.Option(help="Entries of each codebook.")] = 2048,
    num_codebooks: Annotated[int, typer.Option("--codebooks", help="Codebooks of the codec.")] = 4,
    as_json: JsonFlag = False,
) -> None:
    """Print the published sizes: all parameters, those in embeddings and heads, the rest."""
    from micro_musicgen.lm.scales import SCALES
    from micro_musicgen.lm.size import size_rows

    rows = [asdict(row) for row in size_rows(card=card, num_codebooks=num_codebooks)]
    columns = ("dim", 6), ("layers", 8), ("heads", 7), ("total", 14), ("emb + heads", 14), ("rest", 14), ("fp32 MB", 10)
    lines = [f"{'scale':8}" + "".join(f"{name:>{width}}" for name, width in columns)]
    for row in rows:
        s = SCALES[row["scale"]]
        counts = f"{row['total']:>14,}{row['embedding']:>14,}{row['rest']:>14,}{row['fp32_mb']:>10.1f}"
        lines.append(f"{row['scale']:8}{s.dim:>6}{s.num_layers:>8}{s.num_heads:>7}{counts}")
    lines.append(f"at card {card}; micro is larger than midi: its shape is kept for checkpoints that exist")
    _report(as_json, rows, lines)


@app.command()
def push(
    release: Annotated[Path, typer.Argument(help="Release folder.")],
    repo_id: Annotated[str, typer.Argument(help="USER/NAME on the Hub.")],
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Upload a release folder to the Hugging Face Hub."""
    from micro_musicgen.release.hub import push as upload

    _say(f"pushed to {upload(release, repo_id, private=private)}")


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(help="USER/NAME on the Hub.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Download a release folder from the Hugging Face Hub."""
    from micro_musicgen.release.hub import pull as download

    folder = download(repo_id, out)
    _say(f"release {folder}\nnext: micro-musicgen generate {shlex.quote(str(out))} -n 4 --out clips")


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Argument(help="Your own sounds; made-up breakbeats when not given.")] = None,
    out: Annotated[Path, typer.Option(help="Where the page and everything it shows go.")] = Path("demo"),
    minutes: Annotated[float | None, typer.Option(help="Training time; chosen for two cores when not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of sounds, weights and clips.")] = 0,
) -> None:
    """Make sounds (or take yours), train a codec and an LM, generate clips, write a page to listen to."""
    from micro_musicgen.console import RichReporter, console
    from micro_musicgen.demo.demo import run_demo

    page = run_demo(out, folder=folder, minutes=minutes, seed=seed, reporter=RichReporter(), say=console.print)
    _say(f"open {page}")


def main() -> None:
    """Runs the command line and ends the process; the entry point of `micro-musicgen`."""
    try:
        run()
    except SystemExit as end:
        if "torch" in sys.modules and sys.argv[1:2] == ["generate"]:
            # Taking torch down in order costs most of a second and does nothing that anybody waits for.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


def run() -> None:
    """Runs the command line."""
    # Threads of torch that wait by spinning lose half their speed and more as soon as anything else runs: a product of
    # matrices on 2 cores beside one busy process gave 34 GFLOP/s, with a short spin 60. On an idle machine the short
    # spin costs up to a fifth. Read when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except MicroMusicGenError as error:
        _fail(error, str(error), error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of click; without a message it has printed the help
            if not error.format_message():
                sys.exit(2)
            _fail(error, f"{error.format_message()}{_given_value(error)}", 2)
        _fail(error, f"{type(error).__name__}: {error} (set {DEBUG_VARIABLE}=1 for the traceback)", 1)


def _given_value(error: Exception) -> str:
    """Gives what was typed after the option that `error` is about, which click's message leaves out."""
    for option in getattr(getattr(error, "param", None), "opts", []):
        if option in sys.argv[:-1]:
            return f" (got {sys.argv[sys.argv.index(option) + 1]!r})"
    return ""


def _fail(error: BaseException, line: str, code: int) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    typer.echo(f"error: {' '.join(line.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
