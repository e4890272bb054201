"""Measures of what a model expects: how surprised it is by held-out sound, and how well clips fit their texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from micro_musicgen.conditioners.fusing import Fused, fuse
from micro_musicgen.data.descriptions import Descriptions
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.engine.runner import NO_CONDITIONS
from micro_musicgen.engine.scoring import step_logits
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.evaluation.findings import Finding, NotMeasured, measures, row
from micro_musicgen.evaluation.subject import Subject
from micro_musicgen.metrics.bootstrap import Array, Estimate, ratio
from micro_musicgen.metrics.codes import count_codes
from micro_musicgen.metrics.nll import bits_per_second, code_nll

SHORTEST_FRAMES = 8
"""A rest of a track that is shorter than this is left out: it would cost a window and say nothing."""


def heard_conditions(model: MicroMusicGen, text: str | None) -> Fused:
    """Gives the conditions of one clip that is described by `text`, or by nothing.

    Raises:
        MicroMusicGenError: a text for a model that was trained without.
    """
    conditional = model.conditioner.heard([text], [None]).conditional
    network = model.runner.network
    return fuse(network.arch, conditional, device=model.device, dtype=network.dtype) if conditional else NO_CONDITIONS


def track_nll(model: MicroMusicGen, codes: torch.Tensor, text: str | None = None) -> tuple[torch.Tensor, int]:
    """Gives the nats of a track's codes [K, T], float64 [K], and frames that they are the sum of.

    The track is cut into windows as long as training's, one after the other; each begins knowing nothing.
    """
    window = max(1, round(model.window_s * model.codec.frame_rate))
    conditions = heard_conditions(model, text)
    total, frames = torch.zeros(len(codes), dtype=torch.float64), 0
    for at in range(0, codes.shape[1], window):
        part = codes[None, :, at : at + window]
        if at and part.shape[-1] < SHORTEST_FRAMES:
            break
        total += code_nll(step_logits(model.runner, part, conditions), part)[0]
        frames += part.shape[-1]
    return total, frames


@measures.register("nll")
def held_out_likelihood(subject: Subject) -> Finding:
    """Gives nats per codebook and bits per second of the reference, with no condition and with its own descriptions.

    Beside: what the frequencies of the training codes alone would give; without training sounds, codes all alike.
    """
    codes = subject.reference_codes
    card, rate = subject.codec.cardinality, subject.model.frame_rate
    beside, beside_label = _frequencies(subject, codes, card)
    sums = _all_tracks(subject, codes, [None] * len(codes))
    books = [subject.estimate(sums[:, [k, -1]], ratio) for k in range(sums.shape[1] - 1)]
    total = np.stack([sums[:, :-1].sum(axis=1), sums[:, -1]], axis=1)
    bits = subject.estimate(np.stack([total[:, 0] / math.log(2) * rate, total[:, 1]], axis=1), ratio)
    rows = [
        row(
            f"nll_q{k + 1}",
            f"NLL of held-out codes, q{k + 1}",
            book,
            "lower",
            unit="nat",
            beside=beside[k],
            beside_label=beside_label,
        )
        for k, book in enumerate(books)
    ]
    rows.append(
        row(
            "bits_per_s",
            "bits a second of sound",
            bits,
            "lower",
            unit="bit/s",
            beside=bits_per_second(beside, rate),
            beside_label=beside_label,
        )
    )
    said, reason = _described(subject, codes)
    if said is not None:
        rows.append(
            row(
                "nll_described",
                "NLL, told the track's own description",
                said,
                "lower",
                unit="nat",
                beside=float(total[:, 0].sum() / total[:, 1].sum() / (sums.shape[1] - 1)),
                beside_label="told nothing",
            )
        )
    details = {
        "frames": int(sums[:, -1].sum()),
        "tracks": len(codes),
        "mean_nats": float(total[:, 0].sum() / total[:, 1].sum() / (sums.shape[1] - 1)),
        "bits_per_s_of_the_codec": rate * len(books) * math.log2(card),
        "described": reason or "measured",
    }
    return Finding(tuple(rows), details)


def _all_tracks(subject: Subject, codes: Sequence[torch.Tensor], texts: Sequence[str | None]) -> Array:
    """Gives each track's nats per codebook and its frames, [N, K + 1]."""
    found = []
    for one, text in zip(codes, texts, strict=True):
        nats, frames = track_nll(subject.model, one, text)
        found.append([*nats.tolist(), float(frames)])
        subject.report(len(found), len(codes))
    return np.asarray(found)


def _frequencies(subject: Subject, codes: Sequence[torch.Tensor], card: int) -> tuple[list[float], str]:
    """Gives the nats per codebook of a model that knows nothing, or how often codes occur in training and no more."""
    try:
        heard = subject.training_codes
    except NotMeasured:
        return [math.log(card)] * len(codes[0]), "any code"
    # Half a count more for each code: what never occurred in training may occur here.
    counts = sum((count_codes(each, card) for each in heard), torch.zeros(len(codes[0]), card)).double() + 0.5
    cost = -(counts / counts.sum(dim=1, keepdim=True)).log()
    held_out = torch.cat(list(codes), dim=1)
    return [float(cost[k, held_out[k]].mean()) for k in range(len(cost))], "code frequencies"


def _described(subject: Subject, codes: Sequence[torch.Tensor]) -> tuple[Estimate | None, str]:
    """Gives the mean NLL under the tracks' own descriptions, or why there is none."""
    known = Descriptions(subject.reference.tracks)
    texts = [known.text(index, -1) for index in range(len(codes))]
    described = [index for index, text in enumerate(texts) if text]
    if not described:
        return None, "the reference has no descriptions"
    try:
        sums = _all_tracks(subject, [codes[i] for i in described], [texts[i] for i in described])
    except MicroMusicGenError as error:
        return None, str(error)
    return subject.estimate(np.stack([sums[:, :-1].mean(axis=1), sums[:, -1]], axis=1), ratio), ""


@measures.register("clap_score")
def clap_score(subject: Subject) -> Finding:
    """Gives the cosine of clips and their texts; beside, that of the same clips and the texts of others."""
    prompts, clap = subject.made.prompts, subject.clap
    if not prompts:
        raise NotMeasured("the clips were asked for nothing; give --text or --prompts")
    if clap is None:
        raise NotMeasured("no CLAP model; give --embedder clap:REF, a Hub id or a folder")
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    angles = clap.embed_audio(subject.made.wavs, subject.sample_rate) @ clap.embed_text(texts).T
    own = torch.tensor([texts.index(prompt.text) for prompt in prompts])
    right = angles[torch.arange(len(own)), own]
    wrong = (angles.sum(dim=1) - right) / max(1, len(texts) - 1)
    found = row(
        "clap_score",
        "CLAP score: cosine of clip and text",
        subject.estimate(right.numpy()),
        "higher",
        beside=subject.estimate(wrong.numpy()) if len(texts) > 1 else None,
        beside_label="other clips' texts",
    )
    best = float((angles.argmax(dim=1) == own).double().mean())
    return Finding((found,), {"clap": clap.name, "texts": len(texts), "own_text_scores_best": best})
