"""Puts this machine's queue in the place where Dora speaks to Slurm.

On where there is no `srun`; DORA_LOCAL=1 and DORA_LOCAL=0 force it on and off.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dora import explore, grid, info, launch, run, shep

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.launch import locks
from micro_musicgen.launch.shepherd import WAITING, LocalSheep, LocalShepherd, queue_root, told

VARIABLE = "DORA_LOCAL"
CONFIGS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")


def is_wanted() -> bool:
    """Whether grids are to run on this machine.

    Raises:
        MicroMusicGenError: DORA_LOCAL is neither 0 nor 1.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting not in ("", "0", "1"):
        raise MicroMusicGenError(f"{VARIABLE}={setting!r} is not known; 1 runs grids on this machine, 0 asks Slurm")
    return setting == "1" or (not setting and not _has_slurm())


def _has_slurm() -> bool:
    """Whether there is a Slurm. Its client programs alone are none: they know no controller, and say so."""
    if shutil.which("srun") is None:
        return False
    if "SLURM_CONF" in os.environ or any(Path(found).is_file() for found in CONFIGS) or shutil.which("sinfo") is None:
        return True
    try:
        asked = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return True
    return "Could not establish a configuration source" not in asked.stderr


def install() -> bool:
    """Changes Dora where grids are to run on this machine; whether they are. Doing it twice changes nothing more.

    Raises:
        MicroMusicGenError: DORA_LOCAL is neither 0 nor 1.
    """
    if not is_wanted():
        return False
    if shep.Shepherd is not LocalShepherd:
        for module in (shep, explore, grid, info, launch, run):  # each has taken the names for itself
            module.Shepherd = LocalShepherd
            if hasattr(module, "Sheep"):
                module.Sheep = LocalSheep
        _patch_grid()
    return True


def _patch_grid() -> None:
    """Lets two commands on one grid schedule one after the other, as both write its links, and minds Ctrl-C."""
    schedule_and_show, show = grid.run_grid, grid.monitor
    scheduling: list[int] = []  # the lock of the grid that this process is scheduling

    def release() -> None:
        while scheduling:
            locks.release(scheduling.pop())

    @told
    @functools.wraps(schedule_and_show)
    def run_grid(
        main: Any, explorer: Any, grid_name: str, rules: Any = None, slurm: Any = None, args: Any = None
    ) -> Any:
        locks.require()
        args = grid.RunGridArgs() if args is None else args
        rules = grid.SubmitRules() if rules is None else rules
        scheduling.append(locks.acquire(_lock(main, grid_name), WAITING))
        before = LocalShepherd.num_cancelled
        try:
            sheeps = schedule_and_show(main, explorer, grid_name, rules, slurm, args)
        except KeyboardInterrupt:
            if scheduling or not args._from_commandline:
                raise
            sys.stderr.write(f"\nthe jobs go on: dora grid {grid_name} shows them again, dora grid -C ends them\n")
            sys.exit(130)
        finally:
            release()
        if args.cancel and LocalShepherd.num_cancelled == before:
            grid.log(f"No job of grid {grid_name} is running or waiting")
        return sheeps

    @functools.wraps(show)
    def monitor(*args: Any, **kwargs: Any) -> Any:
        release()  # all is scheduled; from here on this is a spectator
        return show(*args, **kwargs)

    grid.run_grid, grid.monitor = run_grid, monitor


def _lock(main: Any, grid_name: str) -> Path:
    return queue_root(main) / "grids" / f"{grid_name}.lock"
