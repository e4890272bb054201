"""`micro-musicgen train NAME --decoder`: a diffusion decoder for the codec of a data set, without knowing Dora."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen import references
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.training import NO_CONDITIONER, TrainingRequest, codec_of, common_overrides, quoted

if TYPE_CHECKING:
    from micro_musicgen.solvers.reporting.progress import Reporter

CPU_BATCH_SIZE = 8


def train_decoder(request: TrainingRequest, reporter: Reporter | None = None) -> Path:
    """Gives the run folder of a decoder for `request.codec`, or for the codec that was trained on the data set.

    Starting again resumes, or extends.

    Raises:
        MicroMusicGenError: there is no codec yet, or the request asks for what a decoder has not.
    """
    from micro_musicgen.train import run_xp

    return run_xp(decoder_overrides(request), reporter)


def decoder_overrides(request: TrainingRequest) -> list[str]:
    """Gives the Hydra overrides of the decoder's run, as they would be typed after `dora run`."""
    if request.listens_to != NO_CONDITIONER or request.start_from is not None:
        raise MicroMusicGenError("--decoder trains no language model; leave --conditioner and --from out")
    codec = codec_of(request)
    if codec is None:
        raise MicroMusicGenError(
            f"no codec was trained on {request.dataset} yet; run micro-musicgen train {request.dataset} first, or "
            "name one with --codec"
        )
    from micro_musicgen.codec.resolve import load_codec
    from micro_musicgen.engine.device import pick_device

    rate = load_codec(codec).sample_rate
    argv = [
        "solver=diffusion_decoder/codes",
        f"dset=audio/{request.dataset}",
        f"compression_model_checkpoint={codec if codec.startswith('//') else quoted(codec)}",
        f"sample_rate={rate}",
    ]
    if pick_device().type == "cpu":
        argv.append(f"dataset.batch_size={CPU_BATCH_SIZE}")
    if request.patience is not None:
        argv.append(f"optim.patience={request.patience}")
    return [*argv, *common_overrides(request, request.minutes)]


def dry_run(request: TrainingRequest) -> dict[str, Any]:
    """Gives what `train_decoder` would do on this machine; see `training.dry_run`."""
    from micro_musicgen.solvers.estimate import estimate
    from micro_musicgen.train import main

    argv = decoder_overrides(request)
    plan = {"argv": argv, **estimate(main.experiment(argv).cfg, request.minutes)}
    return {"dataset": request.dataset, "request": asdict(request), "decoder": plan}


def newest_lm(dataset: str) -> str | None:
    """Gives the signature of the newest language model that was trained on a data set."""
    folder = references.newest_run(dataset, solver="musicgen")
    return None if folder is None else folder.name
