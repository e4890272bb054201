"""From a prepared data set to a trained model, for people who don't want to know Dora.

Both runs go through Dora all the same: same folders, same signatures, resumable by either door.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen import paths, references, storage
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm import scales

if TYPE_CHECKING:
    from micro_musicgen.solvers.reporting.progress import Reporter

CODEC_SHARE = 0.4
"""Share of the minutes that the codec gets when it is trained too."""

CODEC_SCALES = ("nano", "micro", "base")
BACKBONES = {"llama": "model=lm/llama_lm"}
"""What chooses a language model that is not the solver's own, by the `lm_model` of its config."""

CPU_BATCH_SIZE = 4

NO_CONDITIONER, BARS_CONDITIONER = "none", "bars"
AUTO = "auto"

CLOCK, BEATS = "clock", "beats"
TIME_KEYS = ("dset.time=", "dset.frames_per_beat=")
FRAMES_PER_BEAT = (16, 32, 64)

SAMPLE_RATE, NUM_DELAYS = 32000, 4
"""What the config of an LM says where nobody says otherwise."""

SMALL_SET_S = 3600.0
SMALL_SET_DROPOUT = 0.2
"""Below an hour of sound an LM starts to recite before it is done learning; dropout puts that off."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What `micro-musicgen train` was asked for.

    minutes: wall time, None to follow the configs' epochs. scale: of those that the backbone has. codec: a
    reference; None trains one on the data set, or takes the one already trained on it. start_from: a model whose
    weights, codec and size the LM takes. patience: epochs without a better validation before the LM's run ends.
    conditioner: what the LM listens to, a name in the config group of that name; auto for bars in beat time and
    nothing in clock time. text_encoder: reference of the encoder that reads its texts, None for the conditioner's
    own. time: beats for models in beat time, of `frames_per_beat` codec frames a beat. overrides: Hydra overrides
    for both runs; lm_overrides: for the second only.
    """

    dataset: str
    minutes: float | None = 30.0
    scale: str = "mini"
    backbone: str = scales.TRANSFORMER
    codec: str | None = None
    codec_scale: str = "nano"
    start_from: str | None = None
    patience: int | None = None
    conditioner: str = AUTO
    text_encoder: str | None = None
    seed: int | None = None
    time: str = CLOCK
    frames_per_beat: int | None = None
    overrides: tuple[str, ...] = ()
    lm_overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        scales.spec(self.scale, backbone=self.backbone)
        if self.start_from is not None and self.backbone != scales.TRANSFORMER:
            raise MicroMusicGenError(
                f"--from {self.start_from} brings its own backbone, so --backbone {self.backbone} can't be had; leave "
                "one out"
            )
        if self.start_from is not None and self.codec is not None:
            raise MicroMusicGenError(
                f"--from {self.start_from} brings its own codec, so --codec {self.codec} can't be had; leave one out"
            )
        if self.codec_scale not in CODEC_SCALES:
            raise MicroMusicGenError(f"unknown codec scale {self.codec_scale!r}; known: {', '.join(CODEC_SCALES)}")
        self._check_conditions()
        self._check_time()
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise MicroMusicGenError(f"--minutes {self.minutes:g} must be above 0")
        if not (paths.dset_dir() / "audio" / f"{self.dataset}.yaml").is_file():
            raise MicroMusicGenError(
                f"no data set {self.dataset!r} in {paths.dset_dir()}; make it: micro-musicgen prepare FOLDER "
                f"--name {self.dataset}"
            )

    def _check_time(self) -> None:
        if self.time not in (CLOCK, BEATS):
            raise MicroMusicGenError(f"unknown time {self.time!r}; known: {CLOCK}, {BEATS}")
        if self.frames_per_beat is not None and self.time != BEATS:
            raise MicroMusicGenError(f"--frames-per-beat {self.frames_per_beat} is for beat time; add --time beats")
        if self.frames_per_beat not in (None, *FRAMES_PER_BEAT):
            known = ", ".join(map(str, FRAMES_PER_BEAT))
            raise MicroMusicGenError(f"--frames-per-beat {self.frames_per_beat} is not one of {known}")

    @property
    def listens_to(self) -> str:
        """The conditioner of the LM, `auto` settled."""
        if self.conditioner != AUTO:
            return self.conditioner
        return BARS_CONDITIONER if self.time == BEATS and self.start_from is None else NO_CONDITIONER

    @property
    def time_overrides(self) -> list[str]:
        """The Hydra overrides that say how time is counted; none for clock time."""
        if self.time == CLOCK:
            return []
        return [f"dset.time={self.time}", f"dset.frames_per_beat={self.frames_per_beat or FRAMES_PER_BEAT[0]}"]

    def _check_conditions(self) -> None:
        known = conditioner_names()
        if self.conditioner not in (AUTO, *known):
            raise MicroMusicGenError(f"unknown conditioner {self.conditioner!r}; known: {', '.join(known)}")
        if self.text_encoder is not None and not self.conditioner.startswith("text"):
            raise MicroMusicGenError(
                f"--text-encoder {self.text_encoder} is for models that listen to text; add --conditioner text_cross"
            )
        if self.start_from is not None and self.conditioner not in (AUTO, NO_CONDITIONER):
            raise MicroMusicGenError(
                f"--from {self.start_from} starts a model without conditions; leave --conditioner {self.conditioner} "
                "out, or train through dora run continue_from=..."
            )


def conditioner_names() -> list[str]:
    """Gives what a model can listen to: the configs that ship and those in the data home."""
    folders = (paths.config_dir() / "conditioner", paths.home() / "conditioner")
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def train(request: TrainingRequest, reporter: Reporter | None = None) -> Path:
    """Gives the LM's run folder after training codec (where needed) and LM. Starting again resumes, or extends.

    Raises:
        MicroMusicGenError: the request cannot be met; nothing that exists is touched.
    """
    from micro_musicgen.train import run_xp

    codec = request.start_from or request.codec or _trained_codec(request)
    lm_minutes = request.minutes
    if codec is None:
        minutes = None if request.minutes is None else request.minutes * CODEC_SHARE
        folder = run_xp(codec_overrides(request, minutes), reporter)
        codec = f"//sig/{folder.name}"
        lm_minutes = None if request.minutes is None else request.minutes * (1 - CODEC_SHARE)
    return run_xp(lm_overrides(request, codec, lm_minutes), reporter)


def codec_of(request: TrainingRequest) -> str | None:
    """Gives the codec that a request names, or else the one trained on its data set; None when there is none."""
    return request.codec or _trained_codec(request)


def _trained_codec(request: TrainingRequest) -> str | None:
    """Gives the data set's newest codec of this time when its run is complete; None when one has to be trained or
    finished.
    """

    def counts_alike(summary: Mapping[str, Any]) -> bool:
        said = [argument for argument in summary.get("argv", []) if argument.startswith(TIME_KEYS)]
        return said == request.time_overrides

    folder = references.newest_run(request.dataset, solver="compression", fits=counts_alike)
    if folder is None:
        return None
    summary = storage.read_json(folder / "summary.json")
    wanted = f"model=encodec/{request.codec_scale}_32khz"
    complete = summary["updates_done"] >= summary["total_updates"]
    return f"//sig/{folder.name}" if complete and wanted in summary["argv"] else None


def codec_overrides(request: TrainingRequest, minutes: float | None) -> list[str]:
    """Gives the Hydra overrides of the codec's run, as they would be typed after `dora run`."""
    argv = [
        "solver=compression/micro_32khz",
        f"model=encodec/{request.codec_scale}_32khz",
        f"dset=audio/{request.dataset}",
    ]
    return argv + common_overrides(request, minutes)


def lm_overrides(request: TrainingRequest, codec: str, minutes: float | None) -> list[str]:
    """Gives the Hydra overrides of the LM's run; the codec decides card and number of codebooks."""
    from micro_musicgen.codec.resolve import load_codec

    loaded = load_codec(codec)
    reference = codec if codec.startswith("//") else quoted(codec)
    shape = (loaded.cardinality, loaded.num_codebooks)
    fit = [] if loaded.sample_rate == SAMPLE_RATE else [f"sample_rate={loaded.sample_rate}"]
    if loaded.num_codebooks != NUM_DELAYS:
        fit.append(f"codebooks_pattern.delay.delays=[{','.join(map(str, range(loaded.num_codebooks)))}]")
    return [f"compression_model_checkpoint={reference}", *fit, *_lm_overrides(request, shape, minutes)]


def _lm_overrides(request: TrainingRequest, codec_shape: tuple[int, int], minutes: float | None) -> list[str]:
    """Gives all but the codec's name. codec_shape: card and number of codebooks."""
    from micro_musicgen.engine.device import pick_device

    argv = [
        "solver=musicgen/micro_32khz",
        *_shape_overrides(request),
        f"conditioner={request.listens_to}",
        *_encoder_overrides(request),
        f"dset=audio/{request.dataset}",
        f"transformer_lm.card={codec_shape[0]}",
        f"transformer_lm.n_q={codec_shape[1]}",
        f"transformer_lm.dropout={_dropout(request.dataset)}",
        "transformer_lm.attention_dropout=0.0",  # torch's fast attention has none on a CPU: 1.9 times the speed
    ]
    if pick_device().type == "cpu":
        # A CPU does few steps: small batches make more of them in the same time.
        argv.append(f"dataset.batch_size={CPU_BATCH_SIZE}")
    if request.patience is not None:
        argv.append(f"optim.patience={request.patience}")
    return [*argv, *common_overrides(request, minutes), *request.lm_overrides]


def _encoder_overrides(request: TrainingRequest) -> list[str]:
    if request.text_encoder is None:
        return []
    return [f"conditioners.description.text.encoder={quoted(request.text_encoder)}"]


def _shape_overrides(request: TrainingRequest) -> list[str]:
    """Gives what decides the LM's size: a scale, or the shape of the model that it starts from."""
    if request.start_from is None:
        return [*_backbone_overrides(request.backbone), f"model/lm/model_scale={request.scale}"]
    from micro_musicgen.release.source import read_parts
    from micro_musicgen.train import main

    found = read_parts(request.start_from)
    theirs = CLOCK if found.beat_time is None else BEATS
    if theirs != request.time:
        raise MicroMusicGenError(f"--from {request.start_from} is a model in {theirs} time; add --time {theirs}")
    if found.lm["conditioners"]:
        raise MicroMusicGenError(
            f"--from {request.start_from} is a model with conditions; train it through dora run continue_from=..."
        )
    model = _backbone_overrides(found.lm["lm_model"])
    composed = main.experiment(["solver=musicgen/micro_32khz", *model, f"dset=audio/{request.dataset}"]).cfg
    decided = ("card", "n_q", "dropout", "attention_dropout")  # the codec's, and this training's own
    shape = [
        f"transformer_lm.{key}={json.dumps(value)}"
        for key, value in found.lm["transformer_lm"].items()
        if key not in decided and key in composed.transformer_lm and composed.transformer_lm[key] != value
    ]
    pattern = found.lm["codebooks_pattern"]["modeling"]
    if pattern != composed.codebooks_pattern.modeling:
        shape.append(f"codebooks_pattern.modeling={pattern}")
    reference = request.start_from if request.start_from.startswith("//") else quoted(request.start_from)
    return [*model, *shape, f"continue_from={reference}"]


def _backbone_overrides(backbone: str) -> list[str]:
    return [BACKBONES[backbone]] if backbone in BACKBONES else []


def _dropout(dataset: str) -> float:
    from micro_musicgen.data.manifest import read_manifest

    duration_s = sum(track.duration for track in read_manifest(paths.manifests_dir(dataset) / "train"))
    return SMALL_SET_DROPOUT if duration_s < SMALL_SET_S else 0.0


def common_overrides(request: TrainingRequest, minutes: float | None) -> list[str]:
    """Gives the overrides that every run of a request has: time, minutes, seed, and what the person set."""
    argv = [*request.time_overrides, *([] if minutes is None else [f"optim.minutes={minutes:g}"])]
    argv += [] if request.seed is None else [f"seed={request.seed}"]
    return argv + list(request.overrides)


def quoted(value: str) -> str:
    """Gives `value` as a Hydra string, so that spaces, colons and umlauts in a path stay part of it."""
    path = Path(value).expanduser()
    value = str(path.resolve()) if path.exists() else value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def dry_run(request: TrainingRequest) -> dict[str, Any]:
    """Gives what `train` would do on this machine: steps, minutes, memory and disk for each model. Writes nothing."""
    from micro_musicgen.solvers.estimate import estimate_codec, estimate_lm
    from micro_musicgen.train import main

    codec = request.start_from or request.codec or _trained_codec(request)
    plan: dict[str, Any] = {"dataset": request.dataset, "request": asdict(request)}
    lm_minutes = request.minutes
    if codec is None:
        minutes = None if request.minutes is None else request.minutes * CODEC_SHARE
        lm_minutes = None if request.minutes is None else request.minutes * (1 - CODEC_SHARE)
        argv = codec_overrides(request, minutes)
        cfg = main.experiment(argv).cfg
        plan["codec"] = {"argv": argv, **estimate_codec(cfg, minutes)}
        argv = _lm_overrides(request, (cfg.rvq.bins, cfg.rvq.n_q), lm_minutes)
    else:
        argv = lm_overrides(request, codec, lm_minutes)
    plan["lm"] = {"argv": argv, **estimate_lm(main.experiment(argv).cfg, lm_minutes)}
    return plan
