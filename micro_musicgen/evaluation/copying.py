"""Measures of novelty: what a model has made up, and what it has learned by heart.

Held-out sounds are the yardstick: they are as near to the training sounds as new music of the same kind is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from micro_musicgen.evaluation.findings import Finding, Row, measures, row
from micro_musicgen.evaluation.subject import NamedEmbedder, Subject
from micro_musicgen.metrics.bootstrap import Array, proportion
from micro_musicgen.metrics.novelty import copied_runs, nearest

NEAR = 0.5
"""A clip is called a copy when its distance to one track, over that to the usual track, is this share of what the most
alike held-out clip has. The distance itself would not do: a blur is nearer to everything than real music is."""
LONG_S = 1.0
"""A run of codes copied verbatim is called a copy from this length on, when no held-out clip has one as long."""


@measures.register("novelty")
def novelty(subject: Subject) -> Finding:
    """Gives how near generated clips come to training clips, beside how near held-out clips come, and names copies."""
    training = subject.training
    rows: list[Row] = []
    details: dict[str, Any] = {}
    suspects: dict[int, list[str]] = {}
    for named in subject.embedders:
        found, details[named.kind] = _distances(subject, named, suspects)
        rows += found
    found, details["copied_runs"] = _runs(subject, suspects)
    rows += found
    rows.append(
        row(
            "copies",
            "clips that look learned by heart",
            proportion([clip in suspects for clip in range(len(subject.made.codes))]),
            "lower",
        )
    )
    details["suspects"] = [{"clip": clip, "why": why} for clip, why in sorted(suspects.items())]
    notes = []
    if len(training.tracks) < training.total[0]:
        notes.append(
            f"{training.seconds / 60:.0f} of {training.total[1] / 60:.0f} minutes of training were compared; "
            "raise --max-minutes to hear all"
        )
    return Finding(tuple(rows), details, tuple(notes))


def _clip_rows(subject: Subject, named: NamedEmbedder, which: str) -> Array:
    rows: Array = subject.embedded(named, which).mean(axis=1)
    return rows


def _distances(
    subject: Subject, named: NamedEmbedder, suspects: dict[int, list[str]]
) -> tuple[list[Row], dict[str, Any]]:
    pool, owners = _clip_rows(subject, named, "training"), subject.training_clips.tracks
    made = nearest(_clip_rows(subject, named, "made"), pool, owners)
    real = nearest(_clip_rows(subject, named, "reference"), pool, owners) if subject.has_reference else None
    if real is not None:
        usual = float(real.relative.min())
        for clip in np.flatnonzero(made.relative < NEAR * usual).tolist():
            suspects.setdefault(clip, []).append(
                f"{named.kind}: as near to track {owners[made.index[clip]]} as {made.relative[clip]:.2g} of what it is "
                f"to the usual one, held-out sounds at least {usual:.2g}"
            )
    typical = float(np.median(made.distance))
    details: dict[str, Any] = {
        "generated": made.distance.tolist(),
        "generated_relative": _plain(made.relative),
        "nearest_track": [owners[index] for index in made.index],
        "held_out": None if real is None else real.distance.tolist(),
        "held_out_relative": None if real is None else _plain(real.relative),
        "median_ratio": None if real is None else typical / max(1e-12, float(np.median(real.distance))),
    }
    found = row(
        f"novelty_{named.kind}",
        f"nearest training clip, {named.kind}",
        subject.estimate(made.distance),
        "alike" if real is not None else "higher",
        beside=None if real is None else subject.estimate(real.distance),
        beside_label="held-out",
    )
    return [found], details


def _plain(values: Array) -> list[float | None]:
    """Gives numbers that JSON knows: nothing for NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


def _runs(subject: Subject, suspects: dict[int, list[str]]) -> tuple[list[Row], dict[str, Any]]:
    pool = [codes.numpy() for codes in subject.training_codes]
    made = copied_runs([codes.numpy() for codes in subject.made.codes], pool)
    real = None
    if subject.has_reference:
        # As many frames a clip as the generated ones have: a longer clip has longer runs.
        length = subject.made.codes.shape[-1]
        pieces = [codes[:, :length] for track in subject.reference_codes for codes in torch.split(track, length, dim=1)]
        real = copied_runs([piece.numpy() for piece in pieces], pool)
    rate = subject.codec.frame_rate
    longest = max((run.frames for run in real), default=0) if real is not None else 0
    for clip, run in enumerate(made):
        if run.frames >= LONG_S * rate and run.frames > longest:
            suspects.setdefault(clip, []).append(
                f"codes: {run.frames / rate:.2f} s are track {run.track} from {(run.track_at or 0) / rate:.2f} s on, "
                f"held-out sounds at most {longest / rate:.2f} s"
            )
    seconds = [run.frames / rate for run in made]
    details: dict[str, Any] = {
        "generated_s": seconds,
        "held_out_s": None if real is None else [run.frames / rate for run in real],
        "longest": max(({"clip": clip, **vars(run)} for clip, run in enumerate(made)), key=lambda run: run["frames"]),
    }
    found = row(
        "copied_run",
        "longest run of codes from training",
        subject.estimate(seconds),
        "alike" if real is not None else "lower",
        unit="s",
        beside=None if real is None else subject.estimate(details["held_out_s"]),
        beside_label="held-out",
    )
    return [found], details
