"""Measures of music: does a clip hold together in time, and does it sound like the label that was asked for?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.evaluation.findings import Finding, NotMeasured, Row, measures, row
from micro_musicgen.evaluation.prompts import asked_labels
from micro_musicgen.evaluation.subject import NamedEmbedder, Subject
from micro_musicgen.metrics.bootstrap import Array, Estimate, proportion
from micro_musicgen.metrics.consistency import repetition, tempo_instability
from micro_musicgen.metrics.genre import cross_validated, fit_classifier

PerClip = Callable[[torch.Tensor, int], float | None]


@measures.register("consistency")
def consistency(subject: Subject) -> Finding:
    """Gives how much clips repeat themselves and how steady their tempo is, beside the reference's clips."""
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for name, label, measure in (
        ("repetition", "self-similarity in time, above shuffled", repetition),
        ("tempo_instability", "tempo: coefficient of variation", tempo_instability),
    ):
        made = _each(subject, subject.made.wavs, measure)
        real = _each(subject, subject.reference_clips.wavs, measure) if subject.has_reference else []
        details[name] = {"generated": made, "reference": real or None}
        found, beside = _estimated(subject, made), _estimated(subject, real)
        if found is not None:
            rows.append(row(name, label, found, "alike", beside=beside, beside_label="reference"))
    if not rows:
        raise NotMeasured("no clip is long and loud enough to have a rhythm; give --duration 4 or more")
    for name in ("repetition", "tempo_instability"):
        details[name]["without"] = sum(value is None for value in details[name]["generated"])
    looped = sum(track.duration < subject.clip_s for track in subject.reference.tracks) if subject.has_reference else 0
    notes = [f"{looped} reference tracks are shorter than a clip and were looped, which repeats exactly"] * bool(looped)
    return Finding(tuple(rows), details, tuple(notes))


def _each(subject: Subject, wavs: torch.Tensor, measure: PerClip) -> list[float | None]:
    found = []
    for wav in wavs:
        found.append(measure(wav.mean(dim=0), subject.sample_rate))
        subject.report(len(found), len(wavs))
    return found


def _estimated(subject: Subject, values: list[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    return subject.estimate(known) if known else None


@measures.register("accuracy")
def label_accuracy(subject: Subject) -> Finding:
    """Gives how often a classifier recognises the label asked for, beside how often it does on real, unheard tracks."""
    rows: list[Row] = []
    details: dict[str, Any] = {}
    reasons: list[str] = []
    for named in subject.embedders:
        try:
            found, details[named.kind] = _accuracy(subject, named)
        except MicroMusicGenError as error:
            reasons.append(str(error))
            continue
        rows += found
    if not rows:
        raise NotMeasured(reasons[0])
    return Finding(tuple(rows), details)


def _labelled(subject: Subject, named: NamedEmbedder) -> tuple[Array, list[str], list[tuple[str, int]]]:
    """Gives embeddings [N, D], label and track of all real clips that have a label, of reference and training."""
    embeddings, labels, tracks = [], [], []
    for which in ("reference", "training"):
        try:
            found, owners = subject.labels(which)
        except NotMeasured:
            continue
        chosen = [place for place, label in enumerate(found) if label is not None]
        if chosen:
            embeddings.append(subject.embedded(named, which).mean(axis=1)[chosen])
            labels += [str(found[place]) for place in chosen]
            tracks += [(which, owners[place]) for place in chosen]
    if not labels:
        raise NotMeasured(
            f"no real clip has a label {subject.request.label!r}; give --labels CSV, or --label another attribute"
        )
    return np.concatenate(embeddings), labels, tracks


def _accuracy(subject: Subject, named: NamedEmbedder) -> tuple[list[Row], dict[str, Any]]:
    embeddings, labels, tracks = _labelled(subject, named)
    seed = subject.request.seed
    real = proportion(cross_validated(embeddings, labels, tracks, seed=seed))
    classifier = fit_classifier(embeddings, labels)
    chance = max(labels.count(name) for name in classifier.classes) / len(labels)
    details: dict[str, Any] = {
        "classes": {name: labels.count(name) for name in classifier.classes},
        "real_cross_validated": real.value,
        "most_frequent": chance,
    }
    said = classifier.predict(subject.embedded(named, "made").mean(axis=1))
    details["generated"] = {name: said.count(name) for name in classifier.classes}
    asked = asked_labels(subject.made.prompts, classifier.classes)
    known = [(wanted, heard) for wanted, heard in zip(asked, said, strict=False) if wanted in classifier.classes]
    label = f"{subject.request.label} recognised, {named.kind}"
    if not known:
        # Without a wish there is nothing to be right about, but how well the labels can be heard at all is known.
        details["asked"] = "no clip was asked for one of the labels"
        return [row(f"accuracy_real_{named.kind}", f"{label}, real clips only", real, "higher", beside=chance,
                    beside_label="most frequent label")], details  # fmt: skip
    hits = [wanted == heard for wanted, heard in known]
    details["confusion"] = [{"asked": a, "heard": b, "clips": known.count((a, b))} for a, b in sorted(set(known))]
    found = row(f"accuracy_{named.kind}", label, proportion(hits), "higher", beside=real,
                beside_label="real, unheard tracks")  # fmt: skip
    return [found], details
