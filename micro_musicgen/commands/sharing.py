"""`micro-musicgen export`, `info`, `size`, `push`, `pull`, `doctor`: what a model is, and where it goes."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from micro_musicgen.commands.common import JsonFlag, report, say


def doctor(as_json: JsonFlag = False) -> None:
    """Check this installation: versions, devices, patches; exit 1 and say what to do when something is wrong."""
    from micro_musicgen.engine.device import pick_device
    from micro_musicgen.engine.precision import describe_default
    from micro_musicgen.upstream.doctor import diagnose

    diagnosis, precision = diagnose(), describe_default(pick_device())
    lines = [*diagnosis.lines(), f"precision auto: {precision}"]
    report(as_json, {**diagnosis.to_dict(), "precision_auto": precision}, lines)
    if not diagnosis.ok:
        raise typer.Exit(1)


def export(
    run: Annotated[str, typer.Argument(help="Signature, run folder or data set name.")],
    out: Annotated[Path, typer.Option(help="Release folder to write.")],
    form: Annotated[str, typer.Option("--format", help="micro, or audiocraft for upstream's .bin files.")] = "micro",
    name: Annotated[str | None, typer.Option(help="Name on the card; the folder's by default.")] = None,
    license_id: Annotated[str | None, typer.Option("--license", help="Licence of your weights, for the card.")] = None,
    decoder: Annotated[
        str | None,
        typer.Option(help="A diffusion decoder to ship with it: a run or a release; plain for none.", metavar="REF"),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing release.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a release folder of a trained run: weights, config, card."""
    from micro_musicgen.release.export import export as write

    folder = write(run, out, form=form, name=name, license_id=license_id, decoder=decoder, overwrite=overwrite)
    held = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in held}
    lines = [f"{size / 1e6:10.2f} MB  {file}" for file, size in files.items()]
    lines += [
        f"release {folder}",
        f"next: micro-musicgen generate {shlex.quote(str(out))} -n 4 --duration 8 --out clips",
    ]
    report(as_json, {"folder": str(folder), "files": files}, lines)


def info(
    reference: Annotated[str, typer.Argument(help="Release folder, run, checkpoint, data set name or Hub id.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what a run or a release is."""
    from micro_musicgen.release.info import describe

    facts = describe(reference)
    report(as_json, facts, [f"{key:24} {value}" for key, value in facts.items()])


def size(
    card: Annotated[int, typer.Option(help="Entries of each codebook.")] = 2048,
    num_codebooks: Annotated[int, typer.Option("--codebooks", help="Codebooks of the codec.")] = 4,
    backbone: Annotated[str, typer.Option(help="transformer_lm or llama.")] = "transformer_lm",
    as_json: JsonFlag = False,
) -> None:
    """Print the published sizes: all parameters, those in embeddings and heads, the rest."""
    from micro_musicgen.lm.scales import scales_of
    from micro_musicgen.lm.size import size_rows

    known = scales_of(backbone)
    rows = [asdict(row) for row in size_rows(card=card, num_codebooks=num_codebooks, backbone=backbone)]
    columns = ("dim", 6), ("layers", 8), ("heads", 7), ("total", 14), ("emb + heads", 14), ("rest", 14), ("fp32 MB", 10)
    lines = [f"{'scale':10}" + "".join(f"{name:>{width}}" for name, width in columns)]
    for row in rows:
        s = known[row["scale"]]
        counts = f"{row['total']:>14,}{row['embedding']:>14,}{row['rest']:>14,}{row['fp32_mb']:>10.1f}"
        lines.append(f"{row['scale']:10}{s.dim:>6}{s.num_layers:>8}{s.num_heads:>7}{counts}")
    lines.append(f"at card {card}; micro is larger than midi: its shape is kept for checkpoints that exist")
    report(as_json, rows, lines)


def push(
    release: Annotated[Path, typer.Argument(help="Release folder.")],
    repo_id: Annotated[str, typer.Argument(help="USER/NAME on the Hub.")],
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Upload a release folder to the Hugging Face Hub."""
    from micro_musicgen.release.hub import push as upload

    say(f"pushed to {upload(release, repo_id, private=private)}")


def pull(
    repo_id: Annotated[str, typer.Argument(help="USER/NAME on the Hub.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Download a release folder from the Hugging Face Hub."""
    from micro_musicgen.release.hub import pull as download

    folder = download(repo_id, out)
    say(f"release {folder}\nnext: micro-musicgen generate {shlex.quote(str(out))} -n 4 --out clips")
