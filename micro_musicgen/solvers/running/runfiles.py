"""What a run keeps on disk, and for how long.

    checkpoint.th            the whole state, replaced at once        checkpoint.previous.th   the one before it
    checkpoint_EPOCH.th      copies, every `save_every` epochs        best/epoch_EPOCH.th      those of the best epochs
    snapshots/step_STEP.th   those at set shares of the run

Copies hold the whole state; best epochs and snapshots only the weights to play, in the same format.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from micro_musicgen import checkpoints, references
from micro_musicgen.errors import MicroMusicGenError

logger = logging.getLogger(__name__)

PREVIOUS_NAME = "checkpoint.previous.th"
DAMAGED_NAME = "checkpoint.damaged.th"


@dataclass(frozen=True)
class Policy:
    """The section `checkpoint` of a config; see config/solver/default.yaml."""

    save_every: int | None = None
    keep_last: int = 3
    keep_best: int = 3
    keep_previous: bool = True
    every_minutes: float | None = None
    snapshots: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for share in self.snapshots:
            if not 0 < share <= 1:
                raise MicroMusicGenError(f"checkpoint.snapshots has {share:g}; give shares of the run in (0, 1]")

    @classmethod
    def parse(cls, section: Any) -> Policy:
        """Gives the policy that a config section describes."""
        return cls(
            save_every=section.save_every or None,
            keep_last=int(section.keep_last or 0),
            keep_best=int(section.keep_best or 0),
            keep_previous=bool(section.keep_previous),
            every_minutes=section.every_minutes or None,
            snapshots=tuple(float(share) for share in section.snapshots or ()),
        )

    def snapshot_steps(self, total_updates: int) -> set[int]:
        """Gives the steps after which a snapshot is due."""
        return {max(1, math.ceil(share * total_updates - 1e-9)) for share in self.snapshots}


class RunFiles:
    """The checkpoints of one run folder. Invariant: a whole checkpoint is on disk at every moment after the first."""

    def __init__(self, folder: Path, policy: Policy) -> None:
        self.folder = folder
        self.policy = policy
        self.path = folder / references.CHECKPOINT_NAME

    def sweep(self) -> None:
        """Removes what a process that was killed has left half written. Call it with the run held (`runlock`)."""
        for folder in (self.folder, self.folder / "best", self.folder / references.SNAPSHOTS):
            for path in folder.glob("*.tmp"):  # hidden ones too
                path.unlink(missing_ok=True)

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint, keeping the one before under another name."""
        if self.policy.keep_previous and self.path.is_file():
            previous = self.folder / PREVIOUS_NAME
            scratch = previous.with_suffix(f".{os.getpid()}.tmp")
            with contextlib.suppress(OSError):  # a file system without links keeps one generation
                scratch.unlink(missing_ok=True)
                os.link(self.path, scratch)
                os.replace(scratch, previous)
        checkpoints.save(state, self.path)

    def load(self) -> dict[str, Any] | None:
        """Gives the newest whole state, None when the run has none. A damaged checkpoint is set aside, not deleted.

        Raises:
            MicroMusicGenError: there are checkpoints and none can be read.
        """
        if not self.path.is_file():
            return None
        try:
            return checkpoints.load(self.path)
        except MicroMusicGenError as error:
            for other in self._older():
                with contextlib.suppress(MicroMusicGenError):
                    state = checkpoints.load(other)
                    os.replace(self.path, self.folder / DAMAGED_NAME)
                    logger.warning(
                        "%s; going on from %s, the damaged file is kept as %s", error, other.name, DAMAGED_NAME
                    )
                    return state
            raise

    def _older(self) -> list[Path]:
        """Gives the other whole states, the newest first."""
        found = [self.folder / PREVIOUS_NAME, *self._copies()[::-1]]
        return [path for path in found if path.is_file()]

    def _copies(self) -> list[Path]:
        numbered = [path for path in self.folder.glob("checkpoint_*.th") if re.fullmatch(r"\d+", path.stem[11:])]
        return sorted(numbered, key=lambda path: int(path.stem[11:]))

    def keep_copy(self, state: dict[str, Any], epoch: int) -> None:
        """Keeps every `save_every`-th checkpoint under its epoch's number, the newest `keep_last` of them."""
        if not self.policy.save_every or epoch % self.policy.save_every:
            return
        checkpoints.save(state, self.folder / f"checkpoint_{epoch}.th")
        for path in self._copies()[: -self.policy.keep_last or None]:
            path.unlink()

    def best_path(self, epoch: int) -> Path:
        """Gives the file of one of the best epochs."""
        return self.folder / "best" / f"epoch_{epoch:04d}.th"

    def keep_best(self, state: Mapping[str, Any], epochs: Sequence[int], weights: Mapping[str, Any]) -> None:
        """Writes the newest of the best `epochs` when it has no file yet, and removes those no longer among them.

        weights: those to play, as they are after the newest epoch.
        """
        kept = {self.best_path(epoch) for epoch in epochs}
        newest = self.best_path(len(state["history"]))
        if newest in kept and not newest.is_file():
            score = state["history"][-1]["valid"].get(state["best_metric"])
            checkpoints.save(played(state, weights, epoch=len(state["history"]), score=score), newest)
        for path in (self.folder / "best").glob("epoch_*.th"):
            if path not in kept:
                path.unlink()

    def snapshot(self, state: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
        """Writes the weights to play after the step that `state` has reached."""
        path = self.folder / references.SNAPSHOTS / f"step_{state['training']['updates_done']:08d}.th"
        checkpoints.save(played(state, weights, epoch=len(state["history"]), score=None), path)


def played(state: Mapping[str, Any], weights: Mapping[str, Any], *, epoch: int, score: float | None) -> dict[str, Any]:
    """Gives a checkpoint that can be played and not resumed: `weights`, the config, where it comes from."""
    small = ("solver", "signature", "config", "plan", "history", "provenance")
    return {
        **{key: state[key] for key in small},
        "best": {"score": score, "epoch": epoch, "model": dict(weights)},
        "training": {"updates_done": state["training"]["updates_done"]},
    }


def pick_best(scores: Iterable[tuple[float, int]], count: int) -> list[tuple[float, int]]:
    """Gives the `count` lowest of (score, epoch), the earlier epoch winning a tie, the best first."""
    finite = [pair for pair in scores if math.isfinite(pair[0])]
    return sorted(finite)[:count]
