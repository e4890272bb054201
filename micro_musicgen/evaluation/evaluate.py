"""An evaluation from request to report: everything checked first, then clips, then one measure after the other."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from micro_musicgen import storage
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.evaluation.clips import Progress, made_clips
from micro_musicgen.evaluation.findings import measures, ordered
from micro_musicgen.evaluation.likeness import reference_statistics
from micro_musicgen.evaluation.report import Report
from micro_musicgen.evaluation.request import DEFAULT_EMBEDDERS, EvaluationRequest
from micro_musicgen.evaluation.sounds import SoundSet, find_sounds, track_labels
from micro_musicgen.evaluation.subject import NamedEmbedder, Subject
from micro_musicgen.metrics.embedders import embedders, make_embedder
from micro_musicgen.metrics.statistics import Statistics, read_statistics, write_statistics
from micro_musicgen.release import provenance
from micro_musicgen.release.source import ModelParts, read_parts

Stages = Callable[[str], AbstractContextManager[Progress]]
"""Gives, for the name of a stage, a hook that hears (done, total) while the block lasts."""


@contextlib.contextmanager
def _unwatched(title: str) -> Iterator[Progress]:
    yield lambda done, total: None


@dataclass(frozen=True)
class Plan:
    """What an evaluation will do, everything found and checked, nothing made."""

    request: EvaluationRequest
    model: MicroMusicGen
    facts: dict[str, Any]
    embedders: tuple[NamedEmbedder, ...]
    reference: SoundSet | None
    training: SoundSet | None
    statistics: Statistics | None

    def to_dict(self) -> dict[str, Any]:
        """Gives plain data for the report."""
        request = {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self.request).items()
        }
        statistics = self.statistics and {
            "name": str(self.request.reference),
            "embedder": self.statistics.embedder,
            "num_embeddings": self.statistics.num_embeddings,
        }
        return {
            "request": request,
            "model": self.facts,
            "reference": self.reference.to_dict() if self.reference else statistics,
            "training": self.training.to_dict() if self.training else None,
            "embedders": {each.kind: each.embedder.name for each in self.embedders},
        }

    def lines(self) -> list[str]:
        """Gives what to tell a person before anything is made."""
        texts = [prompt.text for prompt in self.request.prompts()]
        clips = f"{self.request.num_clips} clips of {self.model.num_frames / self.model.frame_rate:g} s"
        nothing = "none: most measures will be left out"
        return [
            f"model      {self.facts['name']}, {self.facts['parameters'] / 1e6:.2f} M parameters, {self.facts['hash']}",
            f"clips      {clips}, seed {self.request.seed}, {f'{len(texts)} texts' if texts else 'no text'}",
            f"reference  {self.reference.describe() if self.reference else self.request.reference or nothing}",
            f"training   {self.training.describe() if self.training else 'none: novelty will not be measured'}",
            f"embedders  {', '.join(each.embedder.name for each in self.embedders)}",
            f"measures   {', '.join(ordered())}",
            f"output     {self.request.out}",
        ]


def plan(request: EvaluationRequest) -> Plan:
    """Gives what `request` comes to, after finding all that it names.

    Raises:
        MissingFileError: a release, data set, folder or file that does not exist.
        MicroMusicGenError: no model, unknown or other embedder, no sound, fewer than two clips of reference.
    """
    prompts = request.prompts()
    kinds = [text.partition(":")[0] for text in request.embedders]
    for kind in kinds:
        embedders.get(kind)
    statistics = read_statistics(str(request.reference)) if request.reference_is_statistics else None
    reference, training = _sounds(request, statistics)
    if request.save_statistics is not None and reference is None:
        raise MicroMusicGenError(
            "--save-stats keeps the statistics of the reference's sounds; give --reference a folder"
        )
    parts = read_parts(request.release)
    model = MicroMusicGen.get_pretrained(
        request.release, device=request.device, precision=request.precision, decoder=request.decoder
    )
    model.set_generation_params(
        duration=request.duration_s,
        seed=request.seed,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        cfg_coef=request.cfg_coef,
    )
    if prompts and not parts.lm["conditioners"]:
        raise MicroMusicGenError(
            f"this model was trained without text, so {prompts[0].text!r} means nothing to it; leave the texts out"
        )
    if reference is not None:
        _check_count(reference, request.duration_s)
    named = _embedders(request, model, statistics)
    return Plan(request, model, _facts(parts, model), named, reference, training, statistics)


def _sounds(request: EvaluationRequest, statistics: Statistics | None) -> tuple[SoundSet | None, SoundSet | None]:
    limits = {"max_minutes": request.max_minutes, "seed": request.seed}
    reference = training = None
    if request.reference is not None and statistics is None:
        reference = find_sounds(request.reference, split=request.split, **limits)  # type: ignore[arg-type]
    if request.training is not None:
        training = find_sounds(request.training, split="train", **limits)  # type: ignore[arg-type]
    if request.labels_file is not None:
        for sounds in (reference, training):
            if sounds is not None:
                track_labels(sounds, request.label, request.labels_file)
    return reference, training


def _check_count(reference: SoundSet, duration_s: float) -> None:
    count = sum(max(1, int(track.duration / duration_s)) for track in reference.tracks)
    if count < 2:
        raise MicroMusicGenError(
            f"the reference {reference.name} gives {count} clip of {duration_s:g} s, and 2 are needed; "
            "name more sounds, or a shorter --duration"
        )


def _embedders(
    request: EvaluationRequest, model: MicroMusicGen, statistics: Statistics | None
) -> tuple[NamedEmbedder, ...]:
    """Gives the embedders asked for; without a wish the usual ones, or the one that the statistics were made by."""
    wanted = request.embedders or DEFAULT_EMBEDDERS
    if statistics is not None and not request.embedders:
        wanted = tuple(name for name in DEFAULT_EMBEDDERS if statistics.embedder.startswith(f"{name}-")) or ("log_mel",)
    found: list[NamedEmbedder] = []
    for text in dict.fromkeys(wanted):
        kind, _, reference = text.partition(":")
        made = make_embedder(kind, codec=model.codec, reference=reference or None, device=model.device)
        taken = any(each.kind == kind for each in found)
        found.append(NamedEmbedder(text if taken else kind, made))
    if statistics is not None:
        for each in found:
            read_statistics(str(request.reference), each.embedder.name)
    return tuple(found)


def _facts(parts: ModelParts, model: MicroMusicGen) -> dict[str, Any]:
    """Gives what names the model, whatever its folder is called, and where it says that it comes from."""
    digest, weights = hashlib.sha256(), parts.read_lm()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    return {
        "name": parts.name,
        "hash": digest.hexdigest()[:16],
        "codec": model.codec.content_hash,
        "parameters": model.num_parameters,
        "window_s": model.window_s,
        "sample_rate": model.sample_rate,
        "precision": str(model.precision),
        "provenance": dict(parts.provenance),
    }


def evaluate(found: Plan, stages: Stages = _unwatched) -> Report:
    """Gives the report of a plan, after writing it, the plot and the clips to the folder that it names.

    A measure that lacks something or fails is left out with the reason; the others go on.

    Raises:
        MicroMusicGenError: the folder can't be written to, or holds clips of another evaluation.
    """
    request = found.request
    began = time.monotonic()
    storage.ensure_writable(request.out.expanduser())
    shaping = {"hash": found.facts["hash"], "codec": found.facts["codec"]}
    if request.decoder is not None:
        shaping["decoder"] = request.decoder
    with stages("generating") as progress:
        made = made_clips(found.model, request, shaping, progress)
    seconds = {"clips": round(time.monotonic() - began, 2)}
    subject = Subject(
        request,
        found.model,
        made,
        embedders=found.embedders,
        reference=found.reference,
        training=found.training,
        statistics=found.statistics,
    )
    report = Report(
        {
            **found.to_dict(),
            "clips": {"num": len(made.codes), "found_from_before": made.num_found, "duration_s": subject.clip_s},
            "software": provenance.software(),
        }
    )
    for name in ordered():
        began = time.monotonic()
        with _on_demand(stages, name) as subject.progress:
            report = _measured(report, name, subject)
        seconds[name] = round(time.monotonic() - began, 2)
    if request.save_statistics is not None:
        report = replace(report, saved=_save_statistics(subject, request.save_statistics))
    report = replace(report, facts={**report.facts, "seconds": seconds})
    report.write(request.out.expanduser())
    return report


@contextlib.contextmanager
def _on_demand(stages: Stages, name: str) -> Iterator[Progress]:
    """Gives a hook that begins the stage when it is first called: a measure that lacks something has none to show."""
    with contextlib.ExitStack() as stack:
        begun: list[Progress] = []

        def progress(done: int, total: int) -> None:
            if not begun:
                begun.append(stack.enter_context(stages(name)))
            begun[0](done, total)

        yield progress


def _measured(report: Report, name: str, subject: Subject) -> Report:
    try:
        finding = measures.get(name)(subject)
        if not all(np.isfinite(each.value) for each in finding.rows):
            raise MicroMusicGenError("it gave NaN or infinity; listen to the clips")
    except MicroMusicGenError as error:
        return replace(report, missing={**report.missing, name: " ".join(str(error).split())})
    except Exception as error:  # what one measure breaks on must not cost the others
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return replace(report, missing={**report.missing, name: f"failed ({reason})"})
    return replace(report, findings={**report.findings, name: finding})


def _save_statistics(subject: Subject, path: Path) -> tuple[str, ...]:
    """Gives the files written: `path`, with the embedder's name before its ending where there are several."""
    path = path.expanduser().with_suffix(".npz")
    written = []
    for named in subject.embedders:
        name = path if len(subject.embedders) == 1 else path.with_name(f"{path.stem}-{named.kind.split(':')[0]}.npz")
        write_statistics(name, reference_statistics(subject, named))
        written.append(str(name))
    return tuple(written)
