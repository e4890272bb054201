"""The one checkpoint format of training: a dict of tensors and plain values that torch reads without unpickling.

Layout (`checkpoint.th`, version 1):
    format        "micro_musicgen.checkpoint"      version      1
    solver        registry name ("musicgen", "compression")
    signature     Dora signature                   config       the resolved config as YAML text
    model         weights as trained               best         the weights to play: best by validation loss, EMA if on
    training      optimiser, EMA, RNG, step, plan  history      per-epoch metrics
    provenance    package versions, patches, seed

Read with `weights_only=True`: a checkpoint from a stranger can hold wrong numbers but can't run code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from micro_musicgen import storage
from micro_musicgen.errors import MicroMusicGenError, MissingFileError

FORMAT = "micro_musicgen.checkpoint"
VERSION = 1

TORN = Exception
"""What torch.load raises for a damaged file: its reader obeys the bytes until they make no sense, so random ones end in
UnpicklingError mostly, and in IndexError, KeyError, UnicodeDecodeError or RuntimeError in one file of twelve."""


def save(state: dict[str, Any], path: Path) -> None:
    """Replaces `path` by `state` at once: temporary name, fsync, rename."""
    import torch

    with storage.atomic_write(path) as file:
        torch.save({"format": FORMAT, "version": VERSION, **state}, file)


def load(path: Path, *, lazily: bool = False) -> dict[str, Any]:
    """Gives the state in `path`, tensors on the CPU.

    lazily: tensors stay in the file until they are used, which spares the optimiser's to whoever wants the weights
    only. Copy what is to outlive the call: some systems can't replace a file that is in use.

    Raises:
        MissingFileError: there is no such file.
        MicroMusicGenError: it is cut off, is not one of our checkpoints, or is from a newer version.
    """
    import torch

    if not path.is_file():
        raise MissingFileError(f"checkpoint {path} does not exist; name a run that has been trained")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except TORN as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line.strip() for line in lines if "GLOBAL" in line), lines[0])[:120]
        raise MicroMusicGenError(f"checkpoint {path} is damaged or not ours ({reason}); use another one") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "version" not in state:
        raise MicroMusicGenError(f"{path} is not a micro_musicgen checkpoint; export it from the tool that wrote it")
    if state["version"] > VERSION:
        raise MicroMusicGenError(f"{path} has version {state['version']}, newer than {VERSION}; upgrade micro-musicgen")
    return state
