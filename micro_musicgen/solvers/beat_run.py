"""What runs in beat time do beside what all runs do: tempos of the tracks, the rate that losses see, a codec's fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig

from micro_musicgen.audio.io import load_mono
from micro_musicgen.audio.mel import at_rate
from micro_musicgen.audio.warp import beat_rate, to_clock_time
from micro_musicgen.contracts import BeatTime, Codec
from micro_musicgen.data.beat_grid import FRAMES_PER_BEAT, BeatGrid, BeatSteps
from micro_musicgen.data.beat_tempos import Tempos, read_tempos
from micro_musicgen.data.beat_view import BeatView
from micro_musicgen.data.manifest import Track, read_manifest
from micro_musicgen.metrics.spectral import MEL, log_mel_distance
from micro_musicgen.solvers.reporting.progress import Reporter

DULL_HZ = 10_000.0
"""Where sound ends at the median tempo, below which a run says how to have more."""
FIT_CLIPS = 8
FIT_BEATS = 8
"""How many held-out clips a clock-time codec is tried on, and how long they are."""


def run_tracks(cfg: DictConfig, split: str, reporter: Reporter) -> list[Track]:
    """Gives the tracks of one split that a run trains on: in beat time those with a tempo, which is found first.

    Fills in `cfg.dset.bpm` and `bpm_range` from the training split.

    Raises:
        MicroMusicGenError: no manifest, or no track in it has a tempo.
    """
    grid = BeatGrid.parse(cfg)
    if grid is None:
        return read_manifest(cfg.datasource[split])
    found = read_tempos(
        cfg.datasource[split], progress=lambda done, total: reporter.stage(f"tempos of {split} {done}/{total}")
    )
    for line in found.lines():
        reporter.message(f"{split}: {line}")
    if split == "train":
        cfg.dset.bpm, cfg.dset.bpm_range = found.median_bpm, list(found.bpm_range)
    return list(found.tracks)


def known_tracks(cfg: DictConfig, split: str) -> list[Track]:
    """Gives what `run_tracks` gave, of a run whose tempos are found already."""
    tracks = read_manifest(cfg.datasource[split])
    return tracks if BeatGrid.parse(cfg) is None else list(Tempos.of(tracks).tracks)


@dataclass(frozen=True)
class RunTime:
    """The beat time of a run whose tempos are known. bpm: the median; bpm_range: slowest and fastest."""

    grid: BeatGrid
    bpm: float
    bpm_range: tuple[float, float]

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> RunTime | None:
        """Gives that of a run's config after `run_tracks`; None in clock time."""
        grid = BeatGrid.parse(cfg)
        if grid is None:
            return None
        low, high = cfg["dset"]["bpm_range"]
        return cls(grid, float(cfg["dset"]["bpm"]), (float(low), float(high)))

    @property
    def heard_rate(self) -> float:
        """The sample rate in Hz that beat time has at the median tempo: what Hz mean in losses and metrics."""
        return beat_rate(self.bpm, self.grid.samples_per_beat)

    def beat_time(self, hop_samples: int) -> BeatTime:
        """Gives how a model counts that is trained on the codes of a codec of this hop."""
        return BeatTime(
            frames_per_beat=self.grid.frames_of(hop_samples),
            beats_per_bar=self.grid.beats_per_bar,
            bpm=self.bpm,
            bpm_range=self.bpm_range,
        )

    def lines(self) -> list[str]:
        """Gives what to tell a person: the rate, and where a beat has few samples for it, what would have more."""
        frames, top = self.grid.frames_per_beat, self.heard_rate / 2
        found = [
            f"in beat time, {frames} frames a beat: at {self.bpm:g} BPM they hold sound up to {top / 1000:.1f} kHz"
        ]
        if top < DULL_HZ and frames < max(FRAMES_PER_BEAT):
            found.append(
                f"{2 * frames} frames a beat would hold {2 * top / 1000:.1f} kHz, for twice the steps "
                f"(--frames-per-beat {2 * frames})"
            )
        return found

    def rendered(self, wav: torch.Tensor, sample_rate: int) -> npt.NDArray[np.float32]:
        """Gives float32 [C, L] of sound in beat time [C, M], at the median tempo."""
        return to_clock_time(wav.cpu().numpy(), self.grid.samples_per_beat, self.bpm, sample_rate)


def codec_time(codec: Any) -> Mapping[str, Any] | None:
    """Gives what a codec says of the beat time that it was trained in; None for one of clock time."""
    config = getattr(codec, "config", None)
    found = config.get("beats") if isinstance(config, Mapping) else None
    return found if isinstance(found, Mapping) else None


def codec_warning(codec: Codec, time: RunTime | None, tracks: list[Track]) -> str | None:
    """Gives one line where a codec was trained for another time than a run's, with what that costs; None where not.

    The cost is measured on the first held-out clips, each heard in both times.
    """
    theirs = codec_time(codec)
    if time is None:
        if theirs is None:
            return None
        return (
            f"the codec was trained in beat time ({theirs['frames_per_beat']} frames a beat), and this run is in clock "
            "time: its sound will be off; add dset.time=beats, or another codec"
        )
    if theirs is not None:
        if theirs["frames_per_beat"] == time.grid.frames_per_beat:
            return None
        return (
            f"the codec was trained at {theirs['frames_per_beat']} frames a beat, this run has "
            f"{time.grid.frames_per_beat}: its sound will be off; train one at the same"
        )
    beats, clock = codec_fit(codec, time, tracks)
    return (
        f"the codec was trained in clock time: of {min(len(tracks), FIT_CLIPS)} held-out clips its mel distance is "
        f"{beats:.2f} in beat time, {clock:.2f} in clock time; train --time beats without --codec makes one for beats"
    )


@torch.no_grad()
def codec_fit(codec: Codec, time: RunTime, tracks: list[Track]) -> tuple[float, float]:
    """Gives the mel distance of held-out clips from themselves after their way through a codec: in beat time, and in
    clock time. Both are taken over windows that last about as long.
    """
    steps, rate = time.grid.samples(), time.heard_rate
    length = FIT_BEATS * steps.per_beat
    sums = np.zeros(2)
    chosen = tracks[:FIT_CLIPS]
    for track in chosen:
        assert track.tempo is not None and track.tempo.bpm is not None, track
        in_beats = BeatView.of(track, steps, length).whole()[:length]
        seconds = min(track.duration, FIT_BEATS * 60 / track.tempo.bpm)
        in_clock = load_mono(track.path, codec.sample_rate, duration_s=seconds)
        for place, (wav, sample_rate) in enumerate(((in_beats, rate), (in_clock, float(codec.sample_rate)))):
            given = torch.from_numpy(np.ascontiguousarray(wav[: len(wav) // codec.hop_samples * codec.hop_samples]))
            heard = codec.decode(codec.encode(given[None, None]))[..., : len(given)].cpu()
            scale = at_rate(MEL, sample_rate, codec.sample_rate)
            sums[place] += log_mel_distance(heard, given[None, None], sample_rate, scale=scale)
    beats, clock = sums / len(chosen)
    return float(beats), float(clock)


def codec_steps(cfg: DictConfig) -> BeatSteps | None:
    """Gives the beats on which a codec's crops start: all of them, or it would hear the first of each bar only."""
    grid = BeatGrid.parse(cfg)
    return None if grid is None else replace(grid.samples(), aligns_bars=False)
