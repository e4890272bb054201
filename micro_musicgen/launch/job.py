"""What Dora keeps of a job and asks about it, in the shape of submitit's jobs.

Dora pickles these into an experiment's `job.pkl`; they hold paths and an id, and everything else is looked up.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from submitit.core import core

from micro_musicgen.launch import schedule
from micro_musicgen.launch.record import FINAL, Record

logger = logging.getLogger(__name__)


class Watcher(core.InfoWatcher):
    """Answers for the jobs below one folder. Files are cheap to read, so nothing is cached."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """Gives the state in Slurm's words."""
        return Record(self.root / job_id).state()

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether it has come to an end, good or bad."""
        return self.get_state(job_id) in FINAL

    def get_info(self, job_id: str, mode: str = "standard") -> dict[str, str]:
        """Gives its state, keyed as Slurm's accounting does."""
        return {"JobID": job_id, "State": self.get_state(job_id)}

    def update(self) -> None:
        """Nothing is cached, so nothing is brought up to date."""

    def register_job(self, job_id: str) -> None:
        """Every job is known by its folder."""


class LocalJob(core.Job[Any]):
    """A job of this machine. All tasks of a job are one to Dora, so they are here."""

    def __init__(self, folder: Path, record: Record) -> None:
        self._root = record.root
        super().__init__(folder, record.id)

    @property
    def record(self) -> Record:
        """What is known of it."""
        return Record(self._root / self.job_id)

    @property
    def watcher(self) -> Watcher:  # type: ignore[override]
        """Who knows the state."""
        return Watcher(self._root)

    def cancel(self, check: bool = True) -> None:
        """Cancels it, and waits until nothing of it is left."""
        cancel([self])


def cancel(jobs: list[LocalJob]) -> None:
    """Cancels jobs at once, and waits until nothing of them is left."""
    for root in {job.record.root for job in jobs}:
        for record in schedule.cancel(root, [job.record for job in jobs if job.record.root == root]):
            logger.warning("job %s does not end; see %s", record.id, record.folder / "controller.log")
