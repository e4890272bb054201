"""`micro-musicgen evaluate`: what a model is worth, in numbers beside those of real sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from micro_musicgen.commands.common import JsonFlag, report


def evaluate(
    release: Annotated[str, typer.Argument(help="Release folder, run, data set name or Hub id.")],
    reference: Annotated[
        str | None, typer.Option(help="Real sounds: a data set, a folder, or statistics (.npz) of --save-stats.")
    ] = None,
    training: Annotated[
        str | None, typer.Option(help="What the model learned from, a data set or folder: shows what it copied.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of a reference that is a data set: train, valid or both.")] = "valid",
    embedder: Annotated[
        list[str] | None, typer.Option(help="log_mel, codec, clap:REF; repeatable. [default: log_mel and codec]")
    ] = None,
    num_clips: Annotated[int, typer.Option("-n", "--num", help="How many clips.")] = 32,
    duration: Annotated[float, typer.Option(help="Seconds a clip.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Of clips, splits and intervals.")] = 0,
    text: Annotated[list[str] | None, typer.Option(help="What to ask for; repeatable, clips take turns.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help='Texts, one a line; or JSON lines {"description": ..., "genre": ...}.')
    ] = None,
    label: Annotated[str, typer.Option(help="The attribute that should be recognised in the clips.")] = "genre",
    labels: Annotated[Path | None, typer.Option(help="CSV: file name, then columns of labels.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for report, plot and clips; clips in it are used again.")] = Path(
        "evaluation"
    ),
    save_stats: Annotated[Path | None, typer.Option(help="Keep the reference's statistics in this .npz file.")] = None,
    temperature: Annotated[float, typer.Option(help="Above 1 is odder, below 1 is safer.")] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="Draw among the k likeliest codes; 0 for all.  [default: 250]")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Draw among codes of this total likelihood; 0 for off.")] = 0.0,
    cfg_coef: Annotated[
        float | None, typer.Option(help="Guidance; as the model was trained for when not given.")
    ] = None,
    max_minutes: Annotated[float, typer.Option(help="Of reference and of training sounds that are heard.")] = 30.0,
    batch_size: Annotated[int, typer.Option(help="Clips made at once.")] = 8,
    decoder: Annotated[
        str | None,
        typer.Option(help="What clips sound through: plain, diffusion (the release's own), or a decoder's reference."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; found when not given.")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32 (the reference), fp16, bf16 or int8.")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace clips of another evaluation in --out.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be measured on what; make nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Generate clips and measure them beside real sounds: likelihood, likeness, novelty, rhythm, labels."""
    from micro_musicgen.console import counting
    from micro_musicgen.evaluation.evaluate import evaluate as run
    from micro_musicgen.evaluation.evaluate import plan
    from micro_musicgen.evaluation.request import EvaluationRequest

    request = EvaluationRequest(
        release=release,
        reference=reference,
        training=training,
        split=split,
        embedders=tuple(embedder or ()),
        num_clips=num_clips,
        duration_s=duration,
        seed=seed,
        texts=tuple(text or ()),
        prompts_file=prompts,
        label=label,
        labels_file=labels,
        out=out,
        save_statistics=save_stats,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        cfg_coef=cfg_coef,
        max_minutes=max_minutes,
        batch_size=batch_size,
        decoder=decoder,
        device=device,
        precision=precision,
        overwrite=overwrite,
    )
    found = plan(request)
    if dry_run:
        report(as_json, found.to_dict(), [*found.lines(), "nothing was made (--dry-run)"])
        return
    made = run(found, counting)
    report(as_json, made.to_dict(), [*made.lines(), *(f"statistics {path}" for path in made.saved), f"report {out}"])
