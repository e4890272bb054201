"""audiocraft's own solvers under our registry, as the reference that ours are held against.

`solver=musicgen/upstream_32khz` trains the same model on the same data with upstream's loop, patched.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from dora import get_xp
from omegaconf import DictConfig

from micro_musicgen import checkpoints, references
from micro_musicgen.codec import codebooks
from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.registry import solvers
from micro_musicgen.solvers.reporting.progress import Reporter
from micro_musicgen.upstream.packages import write_package
from micro_musicgen.upstream.solvers import Kind, build_upstream_solver


def _build(kind: Kind, cfg: DictConfig, reporter: Reporter | None = None) -> Any:
    """Gives upstream's solver of that kind; it reports to the log in its own way."""
    if kind == "musicgen":
        cfg.compression_model_checkpoint = _readable_codec(cfg.compression_model_checkpoint)
    solver = build_upstream_solver(cfg, kind)

    def run_only(stage: str) -> None:
        solver.restore(replay_metrics=False)
        solver.run_one_stage(stage)

    solver.run_only = run_only
    return solver


def _readable_codec(text: str | None) -> str:
    """Gives a reference that upstream can read: a codec of our own is written as its package into the run's folder."""
    if not text:
        raise MicroMusicGenError("no codec given; add compression_model_checkpoint=//sig/SIGNATURE (or a path)")
    if codebooks.split(text)[1] is not None:
        raise MicroMusicGenError(f"audiocraft's solver takes whole codecs, not {text}; leave the number out")
    found = references.resolve(text, solver="compression")
    if found.kind == "hub" or (found.kind in ("run", "checkpoint") and not _is_ours(found)):
        return text
    codec: Any = load_codec(text)
    package = Path(get_xp().folder) / "codec" / "compression_state_dict.bin"
    package.parent.mkdir(parents=True, exist_ok=True)
    write_package(package, codec.model.state_dict(), {**codec.config, "device": "cpu"})
    return f"//pretrained/{package}"


def _is_ours(found: references.Reference) -> bool:
    path = found.local_path()
    try:
        checkpoints.load(path / references.CHECKPOINT_NAME if found.kind == "run" else path)
    except MicroMusicGenError:
        return False
    return True


solvers.register("musicgen_upstream")(functools.partial(_build, "musicgen"))
solvers.register("compression_upstream")(functools.partial(_build, "compression"))
