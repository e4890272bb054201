"""Dora's Shepherd, who submits, cancels and asks after jobs, with this machine's queue where it calls Slurm.

Written against Dora 0.1.13. Two commands may work on one data home at once: what one submits is under a lock, and it
looks again under the lock before it submits.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dora import shep

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.launch import job as jobs
from micro_musicgen.launch import locks, schedule
from micro_musicgen.launch.executor import LocalExecutor, check
from micro_musicgen.launch.record import FINAL, records

_T = TypeVar("_T")
WAITING = "another command is submitting; waiting for it"


def told(function: Callable[..., _T]) -> Callable[..., _T]:
    """Gives `function`, which now ends the process with one line where it would raise one of our errors."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> _T:
        try:
            return function(*args, **kwargs)
        except MicroMusicGenError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(error.exit_code)

    return wrapped


def queue_root(main: Any) -> Path:
    """Gives the folder of the queue of a project's data home."""
    return Path(main.dora.dir) / "local"


class LocalSheep(shep.Sheep):  # type: ignore[misc]
    """An experiment and its job."""

    @property
    def log(self) -> Path:
        """Its job's log, which need not exist. Dora's is None without a job, on which `-l` and `-t` break."""
        path: Path = super().log or self.xp.submitit / "not_submitted_yet"
        return path


class LocalShepherd(shep.Shepherd):  # type: ignore[misc]
    """Submits to this machine's queue."""

    num_cancelled = 0
    """Jobs that this process has cancelled."""
    _has_committed = False

    @property
    def root(self) -> Path:
        """The folder of the queue."""
        return queue_root(self.main)

    @told
    def maybe_submit_lazy(self, sheep: Any, slurm_config: Any, rules: Any) -> None:
        """Marks an experiment for submission, after making sure that this machine can, before anything is written."""
        locks.require()
        check(slurm_config)
        sheep.seen_job = sheep.job.job_id if sheep.job else None
        super().maybe_submit_lazy(sheep, slurm_config, rules)

    def commit(self) -> None:
        """Cancels and submits what was marked."""
        super().commit()
        self._has_committed = True

    def update(self) -> None:
        """Starts what waits, should the job that would have be lost. States are not cached, so none is brought up to
        date. Before something was submitted this is a look around, which starts nothing.
        """
        if self._has_committed:
            schedule.dispatch(self.root)

    def _get_submitit_executor(self, name: str, folder: Path, slurm_config: Any) -> LocalExecutor:
        return LocalExecutor(name, folder, Path(self.main.dora.dir), self._by_id, slurm_config)

    def _cancel(self, cancelled: Sequence[Any]) -> None:
        LocalShepherd.num_cancelled += len(cancelled)
        ours = [job for job in cancelled if isinstance(job, jobs.LocalJob)]
        for job in cancelled:
            if job not in ours:
                self.log(f"job {job.job_id} was submitted to Slurm; cancel it there: scancel {job.job_id}")
        jobs.cancel(ours)

    @told
    def _submit(self, job_array: Any) -> None:
        """Submits experiments, except those that another command has submitted since this one looked."""
        with locks.hold(self.root / "submit.lock", WAITING):
            ours = []
            for sheep in job_array.sheeps:
                now = shep.Sheep(sheep.xp)
                if now.job is None or now.job.job_id == sheep.seen_job:
                    ours.append(sheep)
                else:
                    sheep.job, sheep._other_jobs = now.job, now._other_jobs
            job_array.sheeps[:] = ours
            super()._submit(job_array)

    def _check_orphans(self) -> None:
        """Cancels jobs of which nobody knows: the command that submitted them was killed before it noted their ids."""
        if not any(self._orphans.iterdir()):
            return
        # A token that is still there under the lock has nobody who would take it away.
        with locks.hold(self.root / "submit.lock", WAITING):
            names = {token.name for token in self._orphans.iterdir()}
            lost = [one for one in records(self.root) if one.state() not in FINAL and one.spec.name in names]
            for one in lost:
                self.log(f"cancelling job {one.id}, of which no experiment knows: its submission was killed half-way")
            schedule.cancel(self.root, lost)
            for name in names:
                (self._orphans / name).unlink()
