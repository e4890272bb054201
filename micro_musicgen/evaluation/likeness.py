"""Measures of likeness: are generated clips, as a collection, like real ones, and what of the gap is the codec's?"""

from __future__ import annotations

import numpy as np
import torch

from micro_musicgen.evaluation.findings import Finding, NotMeasured, Row, measures, row
from micro_musicgen.evaluation.subject import AT_ONCE, NamedEmbedder, Subject
from micro_musicgen.metrics.bootstrap import Array, Estimate
from micro_musicgen.metrics.codes import count_codes, entropy, usage
from micro_musicgen.metrics.frechet import frechet_distance, gaussian_distance
from micro_musicgen.metrics.spectral import log_magnitude_error, log_mel_distance, spectral_convergence
from micro_musicgen.metrics.statistics import Statistics, statistics_of

NUM_SPLITS = 20


def _pooled(clips: Array) -> Array:
    """Gives rows [N * R, D] of clips [N, R, D]."""
    rows: Array = clips.reshape(-1, clips.shape[-1])
    return rows


def reference_statistics(subject: Subject, named: NamedEmbedder) -> Statistics:
    """Gives the statistics of all clips of the reference, or of its statistics file."""
    if subject.statistics is not None:
        return subject.statistics
    return statistics_of(named.embedder.name, _pooled(subject.embedded(named, "reference")))


@measures.register("frechet")
def frechet_distances(subject: Subject) -> Finding:
    """Gives for each embedder the Frechet distance of generated and real clips.

    Two numbers: of all clips, to compare with what others report; and of as many clips as half the reference has,
    beside the distance of one half of the reference to the other. The distance falls as sets grow, so only numbers of
    one size compare, and what two halves of real sound are apart is as near as a model can come.
    """
    rows: list[Row] = []
    details, notes = {}, []
    for named in subject.embedders:
        made = subject.embedded(named, "made")
        ours, theirs = statistics_of(named.embedder.name, _pooled(made)), reference_statistics(subject, named)
        distance = gaussian_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
        details[named.kind] = {
            "embedder": named.embedder.name,
            "all_clips": distance,
            "generated_rows": ours.num_embeddings,
            "reference_rows": theirs.num_embeddings,
        }
        notes += [f"{named.kind}: {each.caution}" for each in (ours, theirs) if each.caution][:1]
        rows.append(row(f"frechet_{named.kind}_all", f"Frechet distance, {named.kind}, all clips", distance, "lower"))
        if subject.statistics is None:
            rows.append(_equal_sizes(subject, named, made, details[named.kind]))
    return Finding(tuple(rows), details, tuple(notes))


def _equal_sizes(subject: Subject, named: NamedEmbedder, made: Array, details: dict[str, object]) -> Row:
    """Gives the distance of random halves of the reference, and of as many generated clips to the same halves."""
    real = subject.embedded(named, "reference")
    size = min(len(made), len(real) // 2)
    rng = np.random.default_rng(subject.request.seed)
    ours, theirs = [], []
    for done in range(NUM_SPLITS):
        order = rng.permutation(len(real))
        one, other = _pooled(real[order[:size]]), _pooled(real[order[size : 2 * size]])
        ours.append(frechet_distance(_pooled(made[rng.permutation(len(made))[:size]]), one))
        theirs.append(frechet_distance(other, one))
        subject.report(done + 1, NUM_SPLITS)
    details["equal_sizes"] = {"clips": size, "generated": ours, "real": theirs}
    return row(
        f"frechet_{named.kind}",
        f"Frechet distance, {named.kind}, {size} clips to {size}",
        _spread(ours, size),
        "lower",
        beside=_spread(theirs, size),
        beside_label="real to real",
    )


def _spread(distances: list[float], size: int) -> Estimate:
    """Gives the mean over random splits and what 95 % of them lie within: splits of the same clips, not new clips."""
    low, high = np.quantile(distances, [0.025, 0.975])
    return Estimate(float(np.mean(distances)), float(low), float(high), size)


@measures.register("reconstruction")
def reconstruction(subject: Subject) -> Finding:
    """Gives what the codec alone loses of the reference: no model on it can sound better than this."""
    wavs, codec = subject.reference_clips.wavs, subject.codec
    pieces = []
    for at in range(0, len(wavs), AT_ONCE):
        some = wavs[at : at + AT_ONCE].to(subject.model.device)
        back = codec.decode(codec.encode(some.expand(-1, codec.channels, -1))).cpu().mean(dim=1, keepdim=True)
        pieces.append(back[..., : wavs.shape[-1]])
        subject.report(min(at + AT_ONCE, len(wavs)), len(wavs))
    found = torch.cat(pieces)
    pairs = [(found[i : i + 1], wavs[i : i + 1]) for i in range(len(wavs))]
    heard = [pair for pair in pairs if bool(pair[1].any())]
    if not heard:
        raise NotMeasured("every clip of the reference is silent; name other sounds")
    rows = [
        row(
            "spectral_convergence",
            "codec: spectral convergence",
            subject.estimate([spectral_convergence(*pair) for pair in heard]),
            "lower",
        ),
        row(
            "log_magnitude_error",
            "codec: log-magnitude error",
            subject.estimate([log_magnitude_error(*pair) for pair in pairs]),
            "lower",
            unit="neper",
        ),
        row(
            "log_mel_distance",
            "codec: log-mel distance",
            subject.estimate([log_mel_distance(*pair, subject.sample_rate) for pair in pairs]),
            "lower",
            unit="neper",
        ),
    ]
    for named in subject.embedders:
        real = _pooled(subject.embedded(named, "reference"))
        distance = frechet_distance(_pooled(_embedded(subject, named, found)), real)
        rows.append(row(f"codec_frechet_{named.kind}", f"codec: Frechet distance, {named.kind}", distance, "lower"))
    return Finding(tuple(rows), {"clips": len(pairs), "silent": len(pairs) - len(heard)})


def _embedded(subject: Subject, named: NamedEmbedder, wavs: torch.Tensor) -> Array:
    pieces = [named.embedder.embed(some, subject.sample_rate) for some in torch.split(wavs, AT_ONCE)]
    return np.concatenate(pieces).reshape(len(wavs), -1, named.embedder.width)


@measures.register("codes")
def codebook_use(subject: Subject) -> Finding:
    """Gives how many codes occur and how evenly, in generated clips beside as many frames of the reference."""
    card = subject.codec.cardinality
    real = torch.cat(list(subject.reference_codes), dim=1)
    made = subject.made.codes.transpose(0, 1).flatten(1)
    # Usage and entropy grow with the number of frames: both sides get the same, spread evenly over each.
    size = min(real.shape[1], made.shape[1])
    made_counts, real_counts = (count_codes(_spread_evenly(side, size), card) for side in (made, real))
    rows = []
    for name, label, measured in (
        ("code_entropy", "entropy of codes", entropy),
        ("code_usage", "share of codes used", usage),
    ):
        rows.append(
            row(
                name,
                label,
                float(measured(made_counts).mean()),
                "alike",
                unit="nat" if measured is entropy else "",
                beside=float(measured(real_counts).mean()),
                beside_label="reference",
            )
        )
    details = {
        side: {"entropy": entropy(counts).tolist(), "usage": usage(counts).tolist()}
        for side, counts in (("generated", made_counts), ("reference", real_counts))
    }
    return Finding(tuple(rows), {**details, "frames": size, "card": card})


def _spread_evenly(codes: torch.Tensor, size: int) -> torch.Tensor:
    return codes[:, torch.linspace(0, codes.shape[1] - 1, size).round().long()]
