"""Where things are: the files that ship with the package, and the home in which everything a user makes is kept.

`config/`, `grids/` and `patches/` sit beside the package in a checkout and inside it in a wheel (setup.py).
The data home is `$MICRO_MUSICGEN_HOME`, else `./micro_runs`: never a temporary folder, and never the package's own.
"""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "MICRO_MUSICGEN_HOME"
_PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str, marker: str) -> Path:
    """Gives the folder `name` that ships with the package: inside it (wheel) or beside it (checkout, editable)."""
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if (folder / marker).is_file():
            return folder
    raise FileNotFoundError(f"{name}/{marker} is missing from the installation in {_PACKAGE}: reinstall micro-musicgen")


def config_dir() -> Path:
    """Gives the absolute folder of the Hydra tree that ships with the package."""
    return _shipped("config", "config.yaml")


def patches_dir() -> Path:
    """Gives the absolute folder of the patches that ship with the package."""
    return _shipped("patches", "__init__.py")


def home() -> Path:
    """Gives the absolute data home. It need not exist yet."""
    return Path(os.environ.get(HOME_VARIABLE) or "micro_runs").expanduser().resolve()


def dset_dir() -> Path:
    """Gives the root of the Hydra group `dset` that `prepare` writes to: `dset_dir()/audio/NAME.yaml`."""
    return home() / "dset"


def manifests_dir(name: str) -> Path:
    """Gives the folder of one data set's manifests: `train/data.jsonl.gz` and `valid/data.jsonl.gz` under it."""
    return home() / "egs" / name


def tokens_dir() -> Path:
    """Gives the folder of the token stores, one folder a (data set split, codec) below it."""
    return home() / "tokens"


def frames_dir() -> Path:
    """Gives the folder of the frame stores, one folder a (data set split, representation) below it."""
    return home() / "frames"


def runs_dir() -> Path:
    """Gives Dora's folder. Experiment folders are `runs_dir()/xps/SIGNATURE`."""
    return home()


def xp_dir(signature: str) -> Path:
    """Gives one experiment's folder. It need not exist."""
    return runs_dir() / "xps" / signature
