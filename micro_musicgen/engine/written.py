"""What was written, for people and for programs: files, what the clip in each was told, guidance and seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SHOWN_FILES = 8
SHOWN_TEXT = 60


@dataclass(frozen=True)
class Scores:
    """What the candidates for a clip scored, NaN for those without a score, and which of them it is."""

    values: tuple[float, ...]
    chosen: int

    def plain(self) -> dict[str, Any]:
        """Gives the same as plain data; JSON knows no NaN."""
        return {"scores": [None if math.isnan(value) else value for value in self.values], "chosen": self.chosen}

    def line(self) -> str:
        """Gives the same for a person."""
        best = self.values[self.chosen]
        if math.isnan(best):
            return "not scored"
        least = min(value for value in self.values if not math.isnan(value))
        return f"score {best:.3f}" + (
            f", best of {len(self.values)} from {least:.3f} up" if len(self.values) > 1 else ""
        )


@dataclass(frozen=True, kw_only=True)
class WrittenClip:
    """A file, what the clip in it was told, and where it was chosen among candidates, their scores."""

    path: Path
    text: str | None = None
    audio_prompt: Path | None = None
    scores: Scores | None = None

    def plain(self) -> dict[str, Any]:
        """Gives the same as plain data, without what wasn't said."""
        said = {"file": str(self.path), "text": self.text, "audio_prompt": self.audio_prompt and str(self.audio_prompt)}
        known = {key: value for key, value in said.items() if value is not None}
        return known if self.scores is None else {**known, **self.scores.plain()}

    def line(self) -> str:
        """Gives the same for a person."""
        said = [] if self.text is None else [f'"{_shortened(self.text)}"']
        said += [] if self.audio_prompt is None else [f"like {self.audio_prompt.name}"]
        said += [] if self.scores is None else [self.scores.line()]
        return f"{self.path}  {', '.join(said)}".rstrip()


@dataclass(frozen=True, kw_only=True)
class WrittenClips:
    """What was written. seed: the one that makes the same clips again. cfg_coef, cfg_coef_audio: guidance, None where
    there was nothing to guide. scorer: the name of what chose among candidates. notes: lines about all of them. beats:
    length and tempo in beat time, None in clock time.
    """

    clips: tuple[WrittenClip, ...]
    seed: int
    cfg_coef: float | None = None
    cfg_coef_audio: float | None = None
    scorer: str | None = None
    notes: tuple[str, ...] = ()
    beats: Mapping[str, Any] | None = None

    def and_also(self, clip: WrittenClip) -> WrittenClips:
        """Gives the same with one clip more."""
        return replace(self, clips=(*self.clips, clip))

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths alone."""
        return tuple(clip.path for clip in self.clips)

    def plain(self) -> dict[str, Any]:
        """Gives what `--json` prints: the seed and the files, and with conditions what each clip was told."""
        found: dict[str, Any] = {"seed": self.seed, "files": [str(path) for path in self.files]}
        if self.cfg_coef is not None:
            found["clips"] = [clip.plain() for clip in self.clips]
            found["cfg_coef"] = self.cfg_coef
        if self.cfg_coef_audio is not None:
            found["cfg_coef_audio"] = self.cfg_coef_audio
        if self.scorer is not None:
            found["scorer"] = self.scorer
        if self.notes:
            found["notes"] = list(self.notes)
        return found if self.beats is None else {**found, **self.beats}

    def lines(self) -> list[str]:
        """Gives what to tell a person: some of the files, guidance, and the seed."""
        shown = [clip.line() for clip in self.clips[:SHOWN_FILES]]
        if len(self.clips) > SHOWN_FILES:
            shown.append(f"and {len(self.clips) - SHOWN_FILES} more in {self.clips[0].path.parent}")
        if self.cfg_coef is not None:
            apart = "" if self.cfg_coef_audio is None else f", {self.cfg_coef_audio:g} for the audio prompt"
            shown.append(f"guidance {self.cfg_coef:g}{apart}")
        return [*shown, *self.notes, f"seed {self.seed} (--seed {self.seed} gives these clips again)"]


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN_TEXT else f"{words[: SHOWN_TEXT - 4]} ..."
