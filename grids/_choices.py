"""What a grid works on: the data set and the codec, named in the environment or the only ones there are.

A grid is a list of signatures. If its codec were "the newest", training another one would change them all, and the
next look at the table would cancel what runs. So nothing is guessed where there is a choice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from micro_musicgen import paths, references
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.explorers import read_summary

DATASET_VARIABLE = "MICRO_MUSICGEN_GRID_DSET"
CODEC_VARIABLE = "MICRO_MUSICGEN_GRID_CODEC"


@dataclass(frozen=True)
class GridCodec:
    """A codec's reference as runs are given it, and the shape of its codes."""

    reference: str
    cardinality: int
    num_codebooks: int

    def overrides(self) -> dict[str, str | int]:
        """Gives what an LM's run has to be told."""
        return {
            "compression_model_checkpoint": self.reference,
            "transformer_lm.card": self.cardinality,
            "transformer_lm.n_q": self.num_codebooks,
        }


def dataset() -> str:
    """Gives the name of the data set to experiment on.

    Raises:
        MicroMusicGenError: the one that the environment names is not there, or it names none and there is not just one.
    """
    known = sorted(path.stem for path in (paths.dset_dir() / "audio").glob("*.yaml"))
    name = os.environ.get(DATASET_VARIABLE)
    if name:
        if name not in known:
            raise MicroMusicGenError(f"{DATASET_VARIABLE}={name} is no data set; known: {', '.join(known) or 'none'}")
        return name
    if not known:
        raise MicroMusicGenError(
            f"no data set in {paths.dset_dir()}; make one: micro-musicgen prepare FOLDER --name NAME"
        )
    if len(known) > 1:
        raise MicroMusicGenError(f"several data sets: {', '.join(known)}; choose one: {DATASET_VARIABLE}={known[0]}")
    return known[0]


def codec(dataset: str) -> GridCodec:
    """Gives the codec whose codes to model: the one that the environment names, or the only one trained on `dataset`.

    Raises:
        MicroMusicGenError: it is not there or not trained to its end, or there is not just one.
    """
    name = os.environ.get(CODEC_VARIABLE)
    if not name:
        return _of_run(_only_codec_run(dataset))
    found = references.resolve(name, solver="compression")
    if found.kind == "run":
        return _of_run(found.local_path().name)
    from micro_musicgen.codec.resolve import load_codec

    loaded = load_codec(name)
    return GridCodec(name, loaded.cardinality, loaded.num_codebooks)


def _only_codec_run(dataset: str) -> str:
    runs = []
    for folder in sorted((paths.runs_dir() / "xps").glob("*")):
        summary = read_summary(folder)
        if summary.get("solver") == "compression" and summary.get("dataset") == dataset and _is_complete(summary):
            runs.append(folder.name)
    if not runs:
        raise MicroMusicGenError(
            f"no codec is trained on {dataset} yet; start `dora grid codec_32khz`, or set {CODEC_VARIABLE}"
        )
    if len(runs) > 1:
        raise MicroMusicGenError(
            f"several codecs are trained on {dataset}: {', '.join(runs)}; choose one: {CODEC_VARIABLE}=//sig/{runs[0]}"
        )
    return runs[0]


def _of_run(signature: str) -> GridCodec:
    summary = read_summary(paths.xp_dir(signature))
    if not _is_complete(summary):
        raise MicroMusicGenError(f"codec run {signature} is not trained to its end; finish it, or name another codec")
    return GridCodec(f"//sig/{signature}", summary["cardinality"], summary["num_codebooks"])


def _is_complete(summary: dict[str, int]) -> bool:
    return bool(summary) and summary["updates_done"] >= summary["total_updates"]


def only_looking(argv: Sequence[str] | None = None) -> bool:
    """Says whether the command line asks for a look or a cancel, so that nothing may be made for it.

    Dora does not tell a grid what it was called for.
    """
    arguments = sys.argv[1:] if argv is None else argv
    return any(argument.startswith("--dry") or argument in ("-C", "--cancel") for argument in arguments)
