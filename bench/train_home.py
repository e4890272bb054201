"""The data home in which both sides train: synthesised breaks and the base codec, made once.

The codec has the published topology and random weights, which cost the same time; its codebooks hold latents of the
breaks, so that what sounds alike has like codes and there is something to learn.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pool import run_process

DATASET = "breaks"
SOUND_MINUTES = 2.0
CODEC = "base_32khz"
VERSION = 1
"""Part of the folder's name: raise it when the home is to be made anew."""


def home_of(cache: Path) -> Path:
    """Gives the folder of the home, made or not."""
    return cache / f"train-{VERSION}" / "home"


def codec_reference(home: Path) -> str:
    """Gives what either side takes for `compression_model_checkpoint`."""
    from micro_musicgen.upstream.packages import CODEC_PACKAGE

    return f"//pretrained/{home.parent / CODEC_PACKAGE}"


def prepare(cache: Path) -> Path:
    """Gives the home, made in a process of its own where it isn't there.

    Raises:
        WorkerFailure: it can't be made.
    """
    home = home_of(cache)
    if not (home.parent / "finished").is_file():
        run_process([sys.executable, str(Path(__file__).resolve()), str(home)], timeout_s=900)
    return home


def make(home: Path) -> None:
    """Fills `home` with a data set and the folder above it with the codec."""
    from micro_musicgen import paths, storage

    storage.ensure_writable(home)
    os.environ[paths.HOME_VARIABLE] = str(home)
    from models import build_bench_codec, codec_plain

    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.data.prepare import prepare as prepare_sounds
    from micro_musicgen.upstream.packages import CODEC_PACKAGE, write_package

    sounds = home.parent / "sounds"
    if not sounds.is_dir():
        write_breaks(sounds, seed=0, minutes=SOUND_MINUTES)
    prepare_sounds(sounds, DATASET, seed=0, valid_fraction=0.2, overwrite=True)
    model: Any = build_bench_codec(CODEC)
    _fit_codebooks(model)
    write_package(home.parent / CODEC_PACKAGE, model.state_dict(), {**codec_plain(CODEC), "device": "cpu"})
    storage.write_text(home.parent / "finished", "yes\n")


def _fit_codebooks(model: Any) -> None:
    """Fills every codebook with what the levels before it leave of latents of the training sounds."""
    import torch

    from micro_musicgen import paths
    from micro_musicgen.data.crops import AudioCrops
    from micro_musicgen.data.manifest import read_manifest

    tracks = read_manifest(paths.manifests_dir(DATASET) / "train")
    crops = AudioCrops(tracks, sample_rate=32000, segment_s=1.0, seed=0)
    wanted = 2 * model.cardinality
    with torch.no_grad():
        found = [model.encoder(crops.batch(step, 8)).transpose(1, 2).flatten(0, 1) for step in range(-(-wanted // 400))]
        rest = torch.cat(found)
        for layer in model.quantizer.vq.layers:
            chosen = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))[: model.cardinality]]
            layer._codebook.embed.copy_(chosen)
            layer._codebook.embed_avg.copy_(chosen)
            rest = rest - chosen[torch.cdist(rest, chosen).argmin(dim=1)]


if __name__ == "__main__":
    make(Path(sys.argv[1]))
