"""Looking through a folder: which files are audio, and what each of them holds once it is decoded to the end."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from micro_musicgen import paths
from micro_musicgen.audio.decode import open_stream

AUDIO_SUFFIXES = frozenset(
    ".wav .wave .w64 .rf64 .mp3 .mp2 .flac .ogg .oga .opus .m4a .m4b .mp4 .aac .aif .aiff .aifc .wma .caf .au .snd "
    ".mka .webm .ape .wv .tta .ac3 .amr".split()
)
SILENCE_DBFS = -60.0


@dataclass(frozen=True)
class Found:
    """What a folder holds: audio files in sorted order, and how many files were passed over as hidden or not audio."""

    audio: tuple[Path, ...]
    num_ignored: int


@dataclass(frozen=True)
class Sound:
    """A file decoded to its end. peak: largest magnitude. audio_hash: names samples, rate and channels."""

    path: Path
    sample_rate: int
    channels: int
    num_samples: int
    peak: float
    audio_hash: str

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate


@dataclass(frozen=True)
class Limits:
    """What a file must be to be trained on. Each fault that is found names the option that lets the file pass."""

    min_duration_s: float = 0.25
    min_sample_rate: int = 16_000
    keep_silence: bool = False

    def fault(self, sound: Sound) -> str | None:
        """Gives why `sound` is left out and the way out, or None when it is welcome."""
        if sound.channels > 2:
            return f"has {sound.channels} channels, at most 2 are read; mix it down to mono or stereo"
        if sound.sample_rate < self.min_sample_rate:
            return (
                f"sample rate {sound.sample_rate} Hz is below {self.min_sample_rate} Hz; "
                f"pass --min-sample-rate {sound.sample_rate} to keep it"
            )
        if sound.duration_s < self.min_duration_s:
            shortest = math.floor(sound.duration_s * 1000) / 1000
            return (
                f"{sound.duration_s:.3f} s is shorter than {self.min_duration_s:g} s; "
                f"pass --min-duration {shortest:g} to keep it"
            )
        peak_dbfs = 20 * math.log10(sound.peak) if sound.peak else -math.inf
        if peak_dbfs < SILENCE_DBFS and not self.keep_silence:
            return f"silent: peak {peak_dbfs:.0f} dBFS is below {SILENCE_DBFS:.0f} dBFS; pass --keep-silence to keep it"
        return None


def find_audio(folder: Path) -> Found:
    """Gives the audio files below `folder`, through links too, each folder once.

    Hidden files, hidden folders and the data home (which holds clips that models made) are passed over.
    """
    audio: list[Path] = []
    num_ignored = 0
    for path in _walk(folder, seen=set()):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith("."):
            audio.append(path)
        else:
            num_ignored += 1
    audio.sort(key=lambda path: path.relative_to(folder).as_posix())
    return Found(tuple(audio), num_ignored)


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, followlinks=True):
        real = Path(root).resolve()
        if real in seen or real == paths.home():
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in files)


def scan(path: Path) -> Sound:
    """Gives what the file at `path` holds, decoding all of it in pieces.

    Raises:
        UnreadableAudioError: not audio, damaged, cut off, without samples, NaN or infinite samples.
    """
    stream = open_stream(path)
    digest = hashlib.sha256(f"{stream.sample_rate} {stream.channels}".encode())
    peak, num_samples = 0.0, 0
    for block in stream.blocks():
        # Interleaved, so that the size of the decoder's blocks does not show in the hash.
        digest.update(np.ascontiguousarray(block.T, dtype="<f4").tobytes())
        peak = max(peak, float(np.abs(block).max()))
        num_samples += block.shape[1]
    return Sound(path, stream.sample_rate, stream.channels, num_samples, peak, digest.hexdigest()[:32])
