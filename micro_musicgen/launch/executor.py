"""Turns what Dora wants run into jobs of this machine's queue: the counterpart of submitit's Slurm executor."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from pathlib import Path
from typing import Any

from submitit.core import core, utils

from micro_musicgen import paths
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.launch import schedule
from micro_musicgen.launch.job import LocalJob
from micro_musicgen.launch.record import JobSpec
from micro_musicgen.launch.slots import Machine

MINUTE_VARIABLE = "DORA_LOCAL_MINUTE_S"
"""Seconds in a minute of a job's time limit. Tests shorten it."""
WARNING_MIN = 1.5
"""Minutes before the limit at which tasks save themselves, as submitit has it on Slurm; half the limit if less."""


def check(slurm: Any) -> None:
    """Does nothing when this machine can do what a Dora SlurmConfig asks for.

    Raises:
        MicroMusicGenError: it cannot.
    """
    if slurm.dependents:
        raise MicroMusicGenError(
            f"slurm.dependents={slurm.dependents} needs Slurm; set it to 0: here a job continues by itself at its limit"
        )
    Machine.here().check(slurm.gpus)


class LocalExecutor(core.Executor):
    """Submits to the queue of one data home."""

    job_class = LocalJob

    def __init__(self, name: str, folder: Path, dora_dir: Path, by_id: Path, slurm: Any) -> None:
        super().__init__(folder)
        self.job_name, self.dora_dir, self.by_id, self.slurm = name, dora_dir, by_id, slurm
        self.root = dora_dir / "local"

    def spec(self, array: str = "") -> JobSpec:
        """Gives what the queue has to know. `array`: the id of the array that the job is part of."""
        slurm = self.slurm
        minute_s = float(os.environ.get(MINUTE_VARIABLE) or 60.0)
        python = shlex.split(slurm.python) if slurm.python else [sys.executable]
        command = [*python, "-u", "-m", "submitit.core._submit", str(self.folder)]
        if slurm.setup:
            command = ["/bin/sh", "-c", " && ".join([*slurm.setup, f"exec {shlex.join(command)}"])]
        return JobSpec(
            name=self.job_name,
            command=command,
            cwd=os.getcwd(),
            log_folder=str(self.folder),
            tasks=1 if slurm.one_task_per_node else max(1, slurm.gpus),
            gpus=slurm.gpus,
            limit_s=slurm.time * minute_s,
            grace_s=min(WARNING_MIN, slurm.time / 2) * minute_s,
            requeues=slurm.max_num_timeout + 1,
            array=array,
            array_parallelism=max(1, slurm.array_parallelism),
        )

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[core.Job[Any]]:
        """Gives one job for each submission, in the queue. The work is on disk before the queue knows of it."""
        Machine.here().save(self.root)
        environment = dict(os.environ)
        # The home need not be named in the shell, and a job may run in a clone elsewhere (git_save).
        environment[paths.HOME_VARIABLE] = str(self.dora_dir)
        spec = self.spec(uuid.uuid4().hex if len(delayed_submissions) > 1 else "")
        self.folder.mkdir(parents=True, exist_ok=True)
        jobs: list[core.Job[Any]] = []
        for delayed in delayed_submissions:
            record = schedule.reserve_job(self.root, self.by_id)
            delayed.set_timeout(self.slurm.time, self.slurm.max_num_timeout)
            job = LocalJob(self.folder, record)
            delayed.dump(job.paths.submitted_pickle)
            schedule.enqueue(record, spec, environment)
            jobs.append(job)
        schedule.dispatch(self.root)
        return jobs
