"""What a model weighs: every scale, musicgen-small's topology, and the codecs, counted from modules that were built.

    python bench/size.py [--json FILE] [--plots]

Modules are built on torch's meta device, which takes no memory. The LM's parts and the codec's are listed apart: an LM
is its K embedding tables, its K output heads, and the rest; a text encoder is none of it. Sizes at bf16 and int8 are of
the same parameters at 2 and 1 bytes; int8 keeps one fp32 scale per row of a matrix besides, below 0.5 %.

The figures that are quoted for whole models, 191.1 M against 477.3 M of musicgen-small, are LM and base codec together,
without the text encoder: the rows `micro_with_codec` and `small_with_codec`.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import common
from common import Row
from models import MODELS, BenchModel, codec_plain, lm_plain

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
CODECS = ("nano_32khz", "micro_32khz", "base_32khz")
WHOLE = ("micro", "small")
"""LMs that are listed together with the base codec, too."""


def count_lm(model: BenchModel) -> dict[str, int]:
    """Gives the parameters of the LM: total, embeddings (tables and heads), condition (its projection), rest."""
    import torch

    from micro_musicgen.lm.builder import build_lm

    with torch.device("meta"):
        lm = build_lm(lm_plain(model), window_s=30.0, device="meta")
    parts = {"total": 0, "embeddings": 0, "condition": 0, "rest": 0}
    for name, parameter in lm.named_parameters():
        if name.endswith("embed.weight") and name.startswith("condition_provider."):
            continue  # the look-up table stands in for a text encoder and is not counted
        outer = name.startswith(("emb.", "linears."))
        part = "embeddings" if outer else "condition" if name.startswith("condition_provider.") else "rest"
        parts[part] += parameter.numel()
        parts["total"] += parameter.numel()
    return parts


def count_codec(codec: str) -> dict[str, int]:
    """Gives the parameters and codebook entries of a codec: total, decoder (what playing needs), codebooks."""
    import torch

    from micro_musicgen.codec.builder import build_codec_model

    with torch.device("meta"):
        model = build_codec_model(codec_plain(codec), device="meta")
    decoder = sum(p.numel() for name, p in model.named_parameters() if name.startswith("decoder."))
    codebooks = sum(b.numel() for name, b in model.named_buffers() if name.endswith("_codebook.embed"))
    return {"total": sum(p.numel() for p in model.parameters()), "decoder": decoder, "codebooks": codebooks}


def rows() -> list[Row]:
    """Gives the table."""
    found: list[Row] = []
    for name, model in MODELS.items():
        parts = count_lm(model)
        outer = 100 * parts["embeddings"] / parts["total"]
        note = f"LM over {model.card} codes a codebook; {outer:.0f} % in embeddings and heads"
        if model.is_conditioned:
            note += f"; {parts['condition']:,} of them project the condition; T5 is not counted"
        found.append(_count(f"parameters_{name}", parts["total"], note))
        found.append(_count(f"embeddings_{name}", parts["embeddings"]))
        found.append(_count(f"rest_{name}", parts["rest"] + parts["condition"]))
        found += _sizes(name, parts["total"])
    for codec in CODECS:
        parts = count_codec(codec)
        name = f"codec_{codec.removesuffix('_32khz')}"
        note = f"{parts['codebooks']:,} entries of codebooks besides; decoder alone {parts['decoder']:,}"
        found.append(_count(f"parameters_{name}", parts["total"], note))
        found += _sizes(name, parts["total"] + parts["codebooks"])
    return found + _whole_rows()


def _whole_rows() -> list[Row]:
    """Gives LM and base codec together; musicgen-small against our micro."""
    codec = count_codec("base_32khz")["total"]
    totals = {name: count_lm(MODELS[name])["total"] + codec for name in WHOLE}
    found: list[Row] = []
    for name, total in totals.items():
        row = _count(f"parameters_{name}_with_codec", total, "LM and base codec; codebooks and T5 are not counted")
        if name != "small":
            ratio = round(totals["small"] / total, 3)
            row = replace(row, peer="small_with_codec", peer_value=totals["small"], ratio=ratio)
        found += [row, *_sizes(f"{name}_with_codec", total)]
    return found


def _count(name: str, value: int, note: str = "") -> Row:
    return Row(name=name, value=value, unit="parameters", n=1, note=note)


def _sizes(name: str, parameters: int) -> list[Row]:
    return [
        Row(name=f"size_{form}_{name}", value=float(f"{parameters * width / 1e6:.4g}"), unit="MB", n=1)
        for form, width in BYTES.items()
    ]


def print_sizes(found: list[Row]) -> None:
    """Prints one line per model instead of one per row."""
    value = {row.name: row.value for row in found}
    head = f"{'':16}{'parameters':>14}{'emb + heads':>14}{'rest':>14}{'fp32 MB':>10}{'bf16 MB':>10}{'int8 MB':>10}"
    print(head)
    for name in [row.name.removeprefix("parameters_") for row in found if row.name.startswith("parameters_")]:
        counts = [value[f"parameters_{name}"], value.get(f"embeddings_{name}"), value.get(f"rest_{name}")]
        sizes = [value[f"size_{form}_{name}"] for form in BYTES]
        cells = "".join(f"{'' if count is None else format(int(count), ','):>14}" for count in counts)
        print(f"{name:16}{cells}" + "".join(f"{size:>10.4g}" for size in sizes))
    for row in found:
        if row.note:
            print(f"  {row.name.removeprefix('parameters_')}: {row.note}")


def main() -> int:
    """Gives the exit code."""
    parser = common.bench_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--plots", action="store_true", help="draw docs/img/size.png")
    given = parser.parse_args()
    if given.prepare:
        return 0  # nothing to make
    found = rows()
    print_sizes(found)
    if given.json:
        common.write_report(found, common.machine(), given.json)
    if given.plots:
        import plots

        common.say(str(plots.draw_sizes(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
