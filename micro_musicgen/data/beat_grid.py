"""How a run counts time in beats: the config section `dset`, and crops as whole beats and bars.

A codec hears beat time as sound at its usual rate whose beat is `frames_per_beat * 640` samples: so many frames of the
codecs of hop 640 at 32 kHz that ship, fewer or more of others. Seconds and Hz in the configs of such runs are nominal:
those of the codec, not of a clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from micro_musicgen.contracts import BeatTime
from micro_musicgen.errors import MicroMusicGenError

UNITS = ("clock", "beats")
ALIGNS = ("bar", "beat")
FRAMES_PER_BEAT = (16, 32, 64)
USUAL_HOP = 640
"""Samples of a frame of the codecs in the shipped configs, by which frames_per_beat counts."""


@dataclass(frozen=True)
class BarPlace:
    """Where a crop in beat time starts. beat: of its bar, from 0. loop_bars: bars of its loop; 0 for none."""

    beat: int = 0
    loop_bars: int = 0


@dataclass(frozen=True)
class BeatSteps:
    """Beats on a line of samples or frames. per_beat: how many a beat. aligns_bars: crops start on bars, else beats."""

    per_beat: int
    beats_per_bar: int = 4
    aligns_bars: bool = True

    @property
    def per_bar(self) -> int:
        """How many a bar."""
        return self.per_beat * self.beats_per_bar

    @property
    def grain(self) -> int:
        """What starts of crops are multiples of."""
        return self.per_bar if self.aligns_bars else self.per_beat

    def place(self, start: int, loop: int | None) -> BarPlace:
        """Gives where in its bar a crop starts, of a track whose first beat is a bar's. loop: length of a loop."""
        return BarPlace(beat=start // self.per_beat % self.beats_per_bar, loop_bars=(loop or 0) // self.per_bar)


@dataclass(frozen=True)
class BeatGrid:
    """What the section `dset` of a run in beat time says. frames_per_beat: of a codec of hop 640. align: bar | beat."""

    frames_per_beat: int = 16
    beats_per_bar: int = 4
    align: str = "bar"

    def __post_init__(self) -> None:
        if self.frames_per_beat not in FRAMES_PER_BEAT:
            known = ", ".join(map(str, FRAMES_PER_BEAT))
            raise MicroMusicGenError(f"frames_per_beat {self.frames_per_beat} is not one of {known}")
        BeatTime(frames_per_beat=self.frames_per_beat, beats_per_bar=self.beats_per_bar)
        if self.align not in ALIGNS:
            raise MicroMusicGenError(f"dset.align={self.align} is not one of {', '.join(ALIGNS)}")

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> BeatGrid | None:
        """Gives the grid of a run's config (plain or Hydra's); None in clock time, and for runs older than beat time.

        Raises:
            MicroMusicGenError: an unknown unit or a grid that can't be.
        """
        section = config.get("dset")
        if not section or isinstance(section, str) or section.get("time") is None:
            return None
        if section["time"] not in UNITS:
            raise MicroMusicGenError(f"dset.time={section['time']} is not one of {', '.join(UNITS)}")
        if section["time"] == "clock":
            return None
        return cls(int(section["frames_per_beat"]), int(section["beats_per_bar"]), str(section["align"]))

    @property
    def samples_per_beat(self) -> int:
        """Samples of a beat in beat time."""
        return self.frames_per_beat * USUAL_HOP

    def samples(self) -> BeatSteps:
        """Gives the beats on a line of samples in beat time."""
        return BeatSteps(self.samples_per_beat, self.beats_per_bar, self.align == "bar")

    def frames_of(self, hop_samples: int) -> int:
        """Gives the frames of a beat of a codec of any hop.

        Raises:
            MicroMusicGenError: they are no whole number.
        """
        frames, rest = divmod(self.samples_per_beat, hop_samples)
        if rest or not frames:
            raise MicroMusicGenError(
                f"a beat of {self.samples_per_beat} samples is no whole number of frames of a codec of hop "
                f"{hop_samples}; choose another dset.frames_per_beat, or a codec of hop {USUAL_HOP}"
            )
        return frames

    def whole_beats(self, nominal_s: float, sample_rate: int) -> float:
        """Gives the nominal seconds of the whole beats nearest to `nominal_s`, one at least."""
        beat_s = self.samples_per_beat / sample_rate
        return max(1, round(nominal_s / beat_s)) * beat_s

    def whole_bars(self, nominal_s: float, sample_rate: int, bars: int | None = None) -> float:
        """Gives the nominal seconds of `bars`, or of the power of two of bars that is nearest to `nominal_s`.

        Loops are powers of two long, nearly all of them: so a crop holds them whole, or is a whole part of them.

        Raises:
            MicroMusicGenError: less than a bar.
        """
        bar_s = self.samples_per_beat * self.beats_per_bar / sample_rate
        if bars is None:
            bars = 1 << max(0, round(math.log2(nominal_s / bar_s)))
        if bars < 1:
            raise MicroMusicGenError(f"dataset.segment_bars={bars} must be 1 or more")
        return bars * bar_s


def settle_beats(cfg: Any) -> None:
    """Rounds the lengths of a run's crops in `cfg` to whole beats (codec) or bars (LM). Changes it in place.

    What a run's config then says, in nominal seconds, holds for all who read it: trial steps, releases, the engine.
    """
    grid = BeatGrid.parse(cfg)
    if grid is None:
        return
    section, rate = cfg.dataset, int(cfg.sample_rate)
    if cfg.solver == "compression":
        section.segment_duration = grid.whole_beats(float(section.segment_duration), rate)
        section.valid.segment_duration = grid.whole_bars(float(section.valid.segment_duration), rate)
    elif cfg.solver == "musicgen":
        bars = None if section.segment_bars is None else int(section.segment_bars)
        section.segment_duration = grid.whole_bars(float(section.segment_duration), rate, bars)
        for each in (cfg.get("conditioners") or {}).values():
            if isinstance(each, Mapping) and each.get("model") == "bars":
                each["bars"]["beats_per_bar"] = grid.beats_per_bar
    else:
        raise MicroMusicGenError(
            f"solver={cfg.solver} knows no beat time; leave dset.time=beats out, or use solver=compression or musicgen"
        )
