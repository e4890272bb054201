"""How many jobs this machine runs at once, and on which of its GPUs. Finds out without torch.

With N GPUs: N jobs, one GPU each, unless a job asks for more. With none: one job on all cores. `DORA_LOCAL_JOBS` sets
another number; more jobs than GPUs share GPUs, and jobs share the cores evenly.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from micro_musicgen import storage
from micro_musicgen.errors import MicroMusicGenError

JOBS_VARIABLE = "DORA_LOCAL_JOBS"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What jobs share. jobs: at once. gpus: as CUDA_VISIBLE_DEVICES names them. cores: CPU cores."""

    jobs: int
    gpus: tuple[str, ...]
    cores: int

    def threads(self, tasks: int) -> int:
        """Gives the CPU threads of each of a job's `tasks`, at least 1."""
        return max(1, self.cores // self.jobs // tasks)

    def place(self, gpus: int, running: Sequence[Sequence[str]]) -> tuple[str, ...] | None:
        """Gives the GPUs for a job that wants `gpus` of them (none for a CPU job), or None while there is no room.

        running: the GPUs of each running job. The least used come first; one job never gets the same GPU twice.
        """
        if len(running) >= self.jobs:
            return None
        if not self.gpus or gpus == 0:
            return ()
        used = Counter(gpu for given in running for gpu in given)
        share = -(-self.jobs // len(self.gpus))
        free = sorted((gpu for gpu in self.gpus if used[gpu] < share), key=lambda gpu: used[gpu])
        return tuple(free[:gpus]) if len(free) >= gpus else None

    def check(self, gpus: int) -> None:
        """Does nothing when a job may ask for `gpus` here.

        Raises:
            MicroMusicGenError: the machine has GPUs, and not that many.
        """
        if self.gpus and gpus > len(self.gpus):
            raise MicroMusicGenError(
                f"the job asks for {gpus} GPUs and this machine has {len(self.gpus)}; add -g {len(self.gpus)}"
            )

    def save(self, root: Path) -> None:
        """Makes it the rule for the jobs below `root`: who submitted last decides."""
        storage.write_json(root / "machine.json", dataclasses.asdict(self))

    @classmethod
    def load(cls, root: Path) -> Machine:
        """Gives the rule for the jobs below `root`."""
        kept = storage.read_json(root / "machine.json")
        return cls(kept["jobs"], tuple(kept["gpus"]), kept["cores"])

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Machine:
        """Gives what this machine has and `environment` allows.

        Raises:
            MicroMusicGenError: DORA_LOCAL_JOBS is not a number of jobs.
        """
        gpus = visible(environment.get("CUDA_VISIBLE_DEVICES"), count_gpus())
        jobs = environment.get(JOBS_VARIABLE) or str(len(gpus) or 1)
        if not jobs.isdecimal() or int(jobs) < 1:
            raise MicroMusicGenError(f"{JOBS_VARIABLE}={jobs!r} is not a number of jobs; give 1 or more")
        return cls(int(jobs), gpus, count_cores())


def visible(setting: str | None, count: int) -> tuple[str, ...]:
    """Gives the names of the GPUs that CUDA would show: those in `setting` up to the first invalid one."""
    if setting is None or count == 0:
        return tuple(map(str, range(count)))
    names: list[str] = []
    for name in setting.split(","):
        name = name.strip()
        if not name or name.startswith("-") or (name.isdecimal() and int(name) >= count):
            break
        names.append(name)
    return tuple(names)


@functools.cache
def count_gpus() -> int:
    """Gives the number of NVIDIA GPUs that this process may use.

    The driver's own tool first: in a container /proc shows the whole machine.
    """
    tool = shutil.which("nvidia-smi")
    if tool:
        try:
            listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            pass  # a driver that does not answer; the files below may know
        else:
            return len(re.findall(r"^GPU \d+:", listing, re.MULTILINE))
    devices = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return len(devices) or len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def count_cores() -> int:
    """Gives the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
