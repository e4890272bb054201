"""Where a diffusion run gets its frames from: a store that is made once per (data set, representation), or files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from micro_musicgen.contracts import Codec
from micro_musicgen.data.frame_crops import FrameCrops
from micro_musicgen.data.frame_store import FrameStore, prepared_store
from micro_musicgen.data.manifest import read_manifest
from micro_musicgen.diffusion.denoiser import check_frames
from micro_musicgen.diffusion.representation import Representation, representations
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.reporting.progress import Reporter
from micro_musicgen.solvers.running.overview import dataset_name

CODES, FILES, NONE = "codes", "files", "none"


def open_representation(name: str, codec: Codec | None) -> Representation:
    """Gives the representation called `name`; see `diffusion.representation`.

    Raises:
        MicroMusicGenError: nothing has that name, or it needs a codec and there is none.
    """
    return representations.get(name)(codec)


def check_pair(target: str, condition: str) -> None:
    """Refuses what can't be trained: files told anything but files, and the other way round.

    Raises:
        MicroMusicGenError: naming both.
    """
    if (target == FILES) != (condition == FILES) and condition != NONE:
        raise MicroMusicGenError(
            f"frames.condition={condition} can't be made for frames.target={target}; use "
            f"{'files or none' if target == FILES else 'codes, codec, mel_16k, mel_32k or none'}"
        )


def frame_sources(
    cfg: DictConfig, codec: Codec | None, target: Representation | None, argv: list[str], reporter: Reporter
) -> dict[str, FrameCrops]:
    """Gives the crops of both splits, after encoding the data set where that is still to be done.

    target: None for files.
    """
    if target is None:
        return _from_files(cfg)
    name = dataset_name(argv, cfg)
    found = {}
    for split in ("train", "valid"):
        store = _store(cfg, codec, target, split, name, reporter)
        frames = round(cfg.dataset.segment_duration * store.frame_rate)
        found[split] = FrameCrops(store, segment_frames=frames, seed=cfg.seed)
    return found


def _from_files(cfg: DictConfig) -> dict[str, FrameCrops]:
    from micro_musicgen.data.frame_files import open_frame_files

    files = cfg.frames.files
    if not files.target:
        raise MicroMusicGenError("frames.target=files needs frames.files.target=FILE, a .npy or .safetensors")
    told = cfg.frames.condition == FILES
    if told and not files.condition:
        raise MicroMusicGenError(
            "frames.condition=files needs frames.files.condition=FILE; add frames.condition=none for frames alone"
        )
    sources = open_frame_files(
        Path(files.target),
        Path(files.condition) if told else None,
        valid_fraction=float(files.valid_fraction),
        seed=cfg.seed,
        frame_rate=float(files.frame_rate),
    )
    seconds = cfg.dataset.segment_duration
    found = {}
    for split, source in sources.items():
        frames = source.tracks[0].num_frames if seconds is None else round(seconds * source.frame_rate)
        found[split] = FrameCrops(source, segment_frames=frames, seed=cfg.seed)
    return found


def _store(
    cfg: DictConfig, codec: Codec | None, target: Representation, split: str, dataset: str, reporter: Reporter
) -> FrameStore:
    tracks = read_manifest(cfg.datasource[split])
    told = cfg.frames.condition
    condition = None if told in (CODES, NONE) else open_representation(told, codec)
    with_codes = codec if told == CODES else None
    reporter.message(f"frames of {len(tracks)} {split} files")
    return prepared_store(
        dataset,
        split,
        tracks,
        target,
        with_codes,
        condition,
        segment_s=float(cfg.dataset.segment_duration),
        progress=_stage(reporter, split),
    )


def _stage(reporter: Reporter, split: str) -> Callable[[int, int], None]:
    def report(split: str, done: int, total: int) -> None:
        reporter.stage(f"encoding {split} {done}/{total}")

    return partial(report, split)


def check_segment(num_frames: int, stride: int) -> None:
    """Refuses a window that the network can't take, in the words of the config.

    Raises:
        MicroMusicGenError: naming both.
    """
    try:
        check_frames(num_frames, stride)
    except MicroMusicGenError as error:
        raise MicroMusicGenError(f"dataset.segment_duration: {error} frames' worth of seconds") from error
