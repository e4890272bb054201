"""What `prepare` tells: the numbers of a data set, every skipped file with its reason, and the Hydra config."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from micro_musicgen import paths
from micro_musicgen.data.beat_tempos import Tempos
from micro_musicgen.data.coverage import Coverage
from micro_musicgen.data.manifest import Track

REPORT_VERSION = 1
_MAX_SKIPPED_LINES = 20


@dataclass(frozen=True)
class Skipped:
    """A file that was left out. path: below the source folder. reason: what is wrong and the way out."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """A data set as it was prepared. num_ignored counts files that are hidden or neither audio nor metadata.

    coverage: what is known about the sounds. tempos: how fast they are, None where nobody asked.
    """

    name: str
    source: str
    train: tuple[Track, ...]
    valid: tuple[Track, ...]
    skipped: tuple[Skipped, ...]
    num_ignored: int
    max_sample_rate: int
    max_channels: int
    seed: int
    valid_fraction: float
    dataset_hash: str
    config_path: str
    coverage: Coverage
    tempos: Tempos | None = None

    @property
    def is_single_file(self) -> bool:
        """True where one file had to serve as both splits."""
        return self.train == self.valid

    @property
    def tracks(self) -> tuple[Track, ...]:
        """Every file that was kept, once."""
        return self.train if self.is_single_file else self.train + self.valid

    def to_dict(self) -> dict[str, Any]:
        """Gives plain data for `prepare.json` and `--json`."""
        return {
            "version": REPORT_VERSION,
            "name": self.name,
            "source": self.source,
            "dataset_hash": self.dataset_hash,
            "seed": self.seed,
            "valid_fraction": self.valid_fraction,
            "num_files": len(self.tracks),
            "num_train": len(self.train),
            "num_valid": len(self.valid),
            "num_skipped": len(self.skipped),
            "num_ignored": self.num_ignored,
            "hours": _seconds(self.tracks) / 3600,
            "train_hours": _seconds(self.train) / 3600,
            "valid_hours": _seconds(self.valid) / 3600,
            "max_sample_rate": self.max_sample_rate,
            "max_channels": self.max_channels,
            "is_single_file": self.is_single_file,
            "config_path": self.config_path,
            "metadata": self.coverage.to_dict(),
            "skipped": [asdict(skipped) for skipped in self.skipped],
            **({} if self.tempos is None else {"tempos": self.tempos.to_dict()}),
        }

    def summary_lines(self) -> list[str]:
        """Gives the report as lines of text: hours and counts, then the skipped files."""
        durations_s = [track.duration for track in self.tracks]
        lines = [
            f"{self.name}: {_count(len(self.tracks), 'file')}, {_length(self.tracks)} in all, from {self.source}",
            f"  train {_count(len(self.train), 'file')}, {_length(self.train)}; "
            f"valid {_count(len(self.valid), 'file')}, {_length(self.valid)}",
            f"  shortest {min(durations_s):.2f} s, median {statistics.median(durations_s):.2f} s, "
            f"longest {max(durations_s):.2f} s; a clip shorter than a training segment is looped, never padded",
        ]
        if self.is_single_file:
            lines.append("  a single file is both train and valid: the validation loss can't show overfitting")
        lines += self.coverage.lines()
        if self.tempos is not None:
            lines += [f"  {line}" for line in self.tempos.lines()]
        if self.num_ignored:
            lines.append(f"  ignored {_count(self.num_ignored, 'file')}: hidden or not audio")
        if self.skipped:
            lines.append(f"  skipped {_count(len(self.skipped), 'file')}:")
            lines += [f"    {skipped.path}: {skipped.reason}" for skipped in self.skipped[:_MAX_SKIPPED_LINES]]
        if len(self.skipped) > _MAX_SKIPPED_LINES:
            lines.append(f"    and {len(self.skipped) - _MAX_SKIPPED_LINES} more, listed in prepare.json")
        return lines

    def config_text(self) -> str:
        """Gives the Hydra config of group `dset` that names this data set's manifests."""
        folder = paths.manifests_dir(self.name)
        train, valid = (_yaml_string((folder / split).as_posix()) for split in ("train", "valid"))
        return (
            "# @package _global_\n"
            f"# Written by micro-musicgen prepare; run it again rather than edit this. Data set {self.dataset_hash}.\n"
            "datasource:\n"
            f"  max_sample_rate: {self.max_sample_rate}   # Hz, highest among the files\n"
            f"  max_channels: {self.max_channels}   # most channels among the files\n"
            f"  train: {train}   # folder of the manifest data.jsonl.gz\n"
            f"  valid: {valid}\n"
            f"  evaluate: {valid}\n"
            f"  generate: {valid}\n"
        )


def _yaml_string(text: str) -> str:
    """Gives `text` as a quoted YAML scalar in which OmegaConf sees no interpolation."""
    return json.dumps(text.replace("${", r"\${"), ensure_ascii=False)


def _seconds(tracks: Sequence[Track]) -> float:
    return sum(track.duration for track in tracks)


def _length(tracks: Sequence[Track]) -> str:
    """Gives a duration such as "3.1 min (0.052 h)"."""
    seconds = _seconds(tracks)
    return f"{seconds / 60:.1f} min ({seconds / 3600:.3f} h)"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
