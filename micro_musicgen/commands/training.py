"""`micro-musicgen train` and `demo`: from a data set to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from micro_musicgen.commands.common import JsonFlag, TimeUnit, report, say


def train(
    name: Annotated[str, typer.Argument(help="A data set's name, as given to prepare.")],
    minutes: Annotated[float, typer.Option(help="Wall time. Speed is measured once; the steps follow from it.")] = 30.0,
    scale: Annotated[
        str, typer.Option(help="Size of the LM: nano, tiny, mini, midi, micro; of llamas also melformer.")
    ] = "mini",
    backbone: Annotated[
        str, typer.Option(help="Of the LM: transformer_lm or llama (docs/llama.md).")
    ] = "transformer_lm",
    codec: Annotated[str | None, typer.Option(help="Signature, path or Hub id. Trained here when not given.")] = None,
    codec_scale: Annotated[str, typer.Option(help="Size of a codec trained here: nano, micro, base.")] = "nano",
    start_from: Annotated[
        str | None,
        typer.Option("--from", help="Start from this model: its weights, codec and size. A release, run, Hub id."),
    ] = None,
    patience: Annotated[int | None, typer.Option(help="End after so many epochs without a better validation.")] = None,
    conditioner: Annotated[
        str | None,
        typer.Option(
            help="What the LM listens to: none, text_cross, text_prefix, audio_prompt, text_audio, bars.  "
            "[default: none; bars in beat time]"
        ),
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="T5 that reads the texts: id or folder.  [default: t5-base]")
    ] = None,
    decoder: Annotated[
        bool,
        typer.Option(
            "--decoder", help="Train a diffusion decoder for the data set's codec instead (docs/diffusion.md)."
        ),
    ] = False,
    time: Annotated[
        TimeUnit, typer.Option(help="beats: crops of whole bars, so that loops close at any tempo (docs/beat_time.md).")
    ] = TimeUnit.CLOCK,
    frames_per_beat: Annotated[
        int | None, typer.Option(help="Codec frames a beat: 16, 32 or 64. More is brighter and slower.  [default: 16]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and order of the data.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="A Hydra override KEY=VALUE for both runs.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print steps, time, memory and disk, and train nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a codec (40 % of the time, unless one is given) and a language model on a data set."""
    from micro_musicgen import decoder_training, training
    from micro_musicgen.console import RichReporter, console

    request = training.TrainingRequest(
        dataset=name,
        minutes=minutes,
        scale=scale,
        backbone=backbone,
        codec=codec,
        codec_scale=codec_scale,
        start_from=start_from,
        patience=patience,
        conditioner=conditioner or training.AUTO,
        text_encoder=text_encoder,
        seed=seed,
        time=time.value,
        frames_per_beat=frames_per_beat,
        overrides=tuple(override or ()),
    )
    if dry_run:
        plan = decoder_training.dry_run(request) if decoder else training.dry_run(request)
        report(as_json, plan, _plan_lines(plan))
        return
    console.print(f"training on {name} for {minutes:g} minutes; Ctrl-C is safe, the same command goes on", style="dim")
    train_it = decoder_training.train_decoder if decoder else training.train
    folder = train_it(request, RichReporter())
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    what = "loss" if decoder else "cross-entropy"
    unit = "" if decoder else " nat"
    lm = decoder_training.newest_lm(name) if decoder else folder.name
    shipped = f" --decoder {folder.name}" if decoder else ""
    lines = [
        f"signature {folder.name}",
        f"run {folder}",
        f"best validation {what} {summary['best']['score']:.3f}{unit} at epoch {summary['best']['epoch']}",
        f"next: micro-musicgen export {lm or 'RUN'}{shipped} --out {name}-release",
    ]
    if "beat_time" in summary:
        bpm = summary["beat_time"]["bpm"]
        lines.append(f"then: micro-musicgen generate {name}-release --bars 4 --bpm {bpm:g} --loop")
    report(as_json, {"signature": folder.name, "folder": str(folder), "summary": summary}, lines)


UNITS = {"codec": "samples", "lm": "tokens", "decoder": "frames"}


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    lines = []
    for part in ("codec", "lm", "decoder"):
        if part in plan:
            p = plan[part]
            lines.append(
                f"{part:7} {p['num_parameters'] / 1e6:8.2f} M parameters, {p['steps']} steps at "
                f"{p['steps_per_s']:g}/s, {p['tokens_per_s']:,} {UNITS[part]}/s"
            )
            lines.append(
                f"      {p['minutes']:g} min on {p['device']} in {p['precision']}, batch {p['batch_size']} x "
                f"{p['accumulate']}, {p['memory_mb']} MB of memory ({p['memory_is']}), {p['disk_mb']} MB of disk"
            )
    return [*lines, "nothing was trained (--dry-run)"]


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
    say(f"open {page}")
