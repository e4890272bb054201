"""A grid to try grids with: four tiny language models in a few minutes of a CPU, on a machine with nothing prepared.

    dora -P micro_musicgen grid demo -i 0.1

The first call makes what the runs need, half a minute of a CPU: a data set of synthesised breaks and a toy codec.
"""

from __future__ import annotations

from dora import Launcher
from dora.log import simple_log

from micro_musicgen import paths
from micro_musicgen.explorers import LMExplorer, read_summary

from ._choices import only_looking

DATASET = "demo-grid"
SOUND_MINUTES = 2.0
# One thread: for models this small, others only wait for each other, on a busy machine for minutes.
MACHINE = ("device=cpu", "num_threads=1")
CODEC = ("solver=compression/debug", f"dset=audio/{DATASET}", "optim.updates_per_epoch=100", *MACHINE)
LEARNING_RATES = (2e-3, 1e-2)
WIDTHS = (64, 128)


def explore(launcher: Launcher) -> None:
    """Schedules the runs, or none for a look at a grid that is not prepared yet."""
    if not _has_dataset() or not _has_codec():
        if only_looking():
            simple_log("Grid:", f"the first real call makes the data set {DATASET} and a codec; until then no runs")
            return
        _prepare()
    launcher.slurm_(gpus=0, cpus_per_task=1, mem_per_gpu=2, time=30)
    lm = launcher.bind("solver=musicgen/debug", f"dset=audio/{DATASET}", *MACHINE)
    lm.bind_({"compression_model_checkpoint": f"//sig/{_codec_signature()}"})
    lm.bind_({"optim.epochs": 6, "optim.updates_per_epoch": 50, "dataset.batch_size": 8})
    lm.bind_({"dataset.valid.num_samples": 32, "generate.every": "never", "evaluate.every": 6})
    for width in WIDTHS:
        for lr in LEARNING_RATES:
            lm({"transformer_lm.dim": width, "optim.lr": lr})


def _has_dataset() -> bool:
    return (paths.dset_dir() / "audio" / f"{DATASET}.yaml").is_file()


def _codec_signature() -> str:
    """Gives the codec's signature, which is a matter of its config: no need to have trained it."""
    from micro_musicgen.train import main

    return str(main.experiment(CODEC).sig)


def _has_codec() -> bool:
    summary = read_summary(paths.xp_dir(_codec_signature()))
    return bool(summary) and summary["updates_done"] >= summary["total_updates"]


def _prepare() -> None:
    """Makes data set and codec, where they are not there. A second call, also at the same time, does no harm."""
    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.data.prepare import prepare
    from micro_musicgen.train import run_xp

    if not _has_dataset():
        sounds = paths.home() / "sounds" / DATASET
        simple_log("Grid:", f"making {SOUND_MINUTES:g} minutes of breaks in {sounds}")
        write_breaks(sounds, seed=0, minutes=SOUND_MINUTES)
        prepare(sounds, DATASET, valid_fraction=0.2)
    if not _has_codec():
        simple_log("Grid:", f"training a toy codec, run {_codec_signature()}")
        run_xp(list(CODEC))


explorer = LMExplorer(explore)
