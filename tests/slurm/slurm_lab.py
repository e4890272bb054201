"""A folder from which `dora grid` is called, and what it said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from micro_musicgen import paths

GRIDS = {
    "three": """
        for lr in (1e-3, 1e-2):
            lm({"optim.lr": lr})
        lm.slurm(gpus=2)(label="ddp")
    """,
    "preempted": """
        for label in ("unbroken", "preempted"):
            lm({"label": label, "optim.epochs": 20})
    """,
    "cancelled": """
        lm({"label": "cancelled", "optim.epochs": 4000})
    """,
}
GRID = """
from micro_musicgen.explorers import LMExplorer

def explore(launcher):
    launcher.slurm_(gpus=0, cpus_per_task=1, mem_per_gpu=1, time=10)
    lm = launcher.bind(
        "solver=musicgen/debug", "dset=audio/toy", "compression_model_checkpoint=//sig/c0dec000", "device=cpu",
        "num_threads=1", "generate.every=never",
    )
    {body}

explorer = LMExplorer(explore)
"""


def write_package(folder: Path) -> None:
    """Writes the package `lab`: the project's own `main` with other grids."""
    grids = folder / "lab" / "grids"
    grids.mkdir(parents=True)
    (grids.parent / "__init__.py").touch()
    (grids / "__init__.py").touch()
    (grids.parent / "train.py").write_text(
        "from micro_musicgen.train import main\n\nmain.dora.grid_package = 'lab.grids'\n"
    )
    for name, body in GRIDS.items():
        lines = textwrap.indent(textwrap.dedent(body).strip(), "    ")
        (grids / f"{name}.py").write_text(GRID.format(body=lines.strip()))


@dataclass(frozen=True)
class Lab:
    """A folder from which `dora` is called: its grids, its data home, and the Slurm (or not) that runs them."""

    folder: Path
    home: Path
    environment: dict[str, str]

    def dora(self, *arguments: str) -> str:
        """Gives what `dora -P lab ...` says, without colours."""
        command = (sys.executable, "-m", "dora", "-P", "lab", *arguments)
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment(), capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return re.sub(r"\x1b\[[\d;]*m", "", done.stdout)

    def grid(self, name: str, *flags: str) -> list[Row]:
        """Gives the last table that `dora grid NAME` prints. It is printed here too, for `pytest -rP`."""
        said = self.dora("grid", name, *flags)
        print(said[said.rindex("Base name:") :] if "Base name:" in said else said)
        return rows(said)

    def history(self, row: Row) -> list[dict[str, Any]]:
        """Gives a run's history, empty before its first commit."""
        path = self.home / "xps" / row.sig / "history.json"
        return json.loads(path.read_text()) if path.is_file() else []

    def elsewhere(self, home: Path, environment: dict[str, str]) -> Lab:
        """Gives the same grids on a copy of the data without the runs, under another environment."""
        home.mkdir()
        for name in ("dset", "egs"):
            shutil.copytree(self.home / name, home / name)
        shutil.copytree(self.home / "xps" / "c0dec000", home / "xps" / "c0dec000")
        return replace(self, home=home, environment=environment)

    def _environment(self) -> dict[str, str]:
        # pytest-cov's variables would have every job measure coverage.
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "SLURM_"))}
        return {**kept, **self.environment, paths.HOME_VARIABLE: str(self.home)}


@dataclass(frozen=True)
class Row:
    """One line of a grid's table: what Dora says of the job, and the groups of columns to the right of that.

    learnt: the groups that neither clock nor machine have a say in.
    """

    name: str
    state: str
    sig: str
    job_id: str
    model: str
    progress: str
    learnt: tuple[str, ...]


def rows(text: str) -> list[Row]:
    """Gives the lines of the last table in what `dora grid` printed."""
    last = re.split(r"\n\s+Meta +\|.*\n", text)[-1]
    found = []
    for line in last.splitlines():
        meta, *groups = (group.strip() for group in line.split("|"))
        facts = re.fullmatch(r"\d+\s+(.*?)\s*([A-Z/]{3})\s+([0-9a-f]{8})\s*(\S*)", meta)
        if facts:
            model, progress, *learnt = groups
            found.append(Row(*facts.groups(), model, progress, tuple(learnt)))
    return found


def wait_for(ready: Callable[[], Any], what: str, *, seconds: float = 90) -> Any:
    """Gives the first true value of `ready()`."""
    end = time.monotonic() + seconds
    while not (value := ready()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.2)
    return value
