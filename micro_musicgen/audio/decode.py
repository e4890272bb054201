"""Files to blocks of samples: libsndfile where it can, FFmpeg's libraries (through PyAV) for everything else.

Two decoders because each has what the other lacks: libsndfile knows the exact length of whatever it opens and seeks to
the sample in lossless formats, FFmpeg knows m4a, wma and the rest. No `ffmpeg` binary is involved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from micro_musicgen.errors import UnreadableAudioError

Samples = npt.NDArray[np.float32]

BLOCK_SAMPLES = 1 << 16
CUT_OFF_S = 0.1
"""A file that ends this much before its header says is cut off; less is rounding and padding."""
AV_PREROLL_SAMPLES = 8192
"""Decoded and dropped before the wanted sample: AAC overlaps frames of up to 2048 samples."""
_INEXACT_SEEK = frozenset({"VORBIS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"})
"""Decoded by FFmpeg from the start. In libsndfile 1.2.2 a seek into the last page of Vorbis lands on wrong samples and
one in a VBR mp3 goes by its table of contents; and python-soundfile seeks after every block that it reads."""


@dataclass(frozen=True)
class AudioStream:
    """An audio file that can be decoded from any sample on.

    stated_samples: length by the header, None where the format states none that can be trusted.
    """

    path: Path
    sample_rate: int
    channels: int
    stated_samples: int | None
    decode_from: Callable[[int], Iterator[Samples]]

    def blocks(self, start: int = 0, num_samples: int | None = None) -> Iterator[Samples]:
        """Gives float32 blocks [C, n] of the samples [start, start + num_samples), fewer where the file ends.

        Raises:
            UnreadableAudioError: damaged or cut off, no samples at all, NaN or infinite samples.
        """
        position = start
        stop = None if num_samples is None else start + num_samples
        if stop is not None and stop <= start:
            return
        for block in self.decode_from(start):
            if stop is not None:
                block = block[:, : stop - position]
            if not np.isfinite(block).all():
                raise UnreadableAudioError(f"{self.path} holds NaN or infinite samples; export it again")
            position += block.shape[1]
            yield block
            if position == stop:
                return
        self._check_end(start, position)

    def _check_end(self, start: int, position: int) -> None:
        if position == 0:
            raise UnreadableAudioError(f"{self.path} holds no samples; leave it out or export it again")
        missing_s = ((self.stated_samples or 0) - position) / self.sample_rate
        if missing_s > CUT_OFF_S and start < (self.stated_samples or 0):
            raise UnreadableAudioError(
                f"{self.path} is cut off: {position / self.sample_rate:.2f} s of the stated "
                f"{(self.stated_samples or 0) / self.sample_rate:.2f} s can be read; copy or export it again"
            )


def open_stream(path: Path | str) -> AudioStream:
    """Gives the file at `path`, ready to decode.

    Raises:
        UnreadableAudioError: missing, a folder, empty, not audio, or without an audio stream.
    """
    path = Path(path)
    _check_file(path)
    stream = _open_soundfile(path) or _open_av(path)
    if stream is None:
        raise UnreadableAudioError(f"{path} is not audio that can be decoded; export it again as wav or flac")
    if stream.stated_samples == 0:
        raise UnreadableAudioError(f"{path} holds no samples; leave it out or export it again")
    return stream


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UnreadableAudioError(f"{path} is a folder; name an audio file in it")
    try:
        with open(path, "rb") as file:
            first = file.read(1)
    except FileNotFoundError as error:
        raise UnreadableAudioError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableAudioError(f"cannot open {path}: {reason}; check the path and its permissions") from error
    if not first:
        raise UnreadableAudioError(f"{path} is empty (0 bytes); copy or export it again")


def _open_soundfile(path: Path) -> AudioStream | None:
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            if file.subtype in _INEXACT_SEEK:
                stated = file.frames if file.subtype == "VORBIS" or _has_lame_tag(path) else None
                return AudioStream(
                    path, file.samplerate, file.channels, stated, lambda start: _av_blocks(path, start, stated)
                )
            return AudioStream(
                path, file.samplerate, file.channels, file.frames, lambda start: _soundfile_blocks(path, start)
            )
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a .raw file, which has no header
        return None


def _has_lame_tag(path: Path) -> bool:
    """Says whether an mp3 states its length and priming; without that tag any stated length is a guess by bit rate."""
    import av

    try:
        with _av_container(path) as container:
            return bool(container.streams.audio and container.streams.audio[0].start_time)
    except (av.FFmpegError, OSError):
        return False


def _soundfile_blocks(path: Path, start: int) -> Iterator[Samples]:
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            file.seek(min(start, file.frames))
            while len(block := file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                yield np.ascontiguousarray(block.T)
    except soundfile.LibsndfileError as error:
        raise _damaged(path, error) from error


def _open_av(path: Path) -> AudioStream | None:
    import av

    try:
        with _av_container(path) as container:
            streams = container.streams.audio
            if not streams:
                raise UnreadableAudioError(f"{path} has no audio stream; leave it out")
            found = streams[0]
            stated = _av_stated(container, found)
            return AudioStream(path, found.rate, found.channels, stated, lambda start: _av_blocks(path, start, stated))
    except (av.FFmpegError, OSError):
        return None


def _av_container(path: Path) -> Any:
    import av

    # Absolute: FFmpeg takes "take:1.m4a" for a protocol. "file" only: a playlist in disguise must not open addresses.
    return av.open(os.path.abspath(path), options={"protocol_whitelist": "file"})


def _av_stated(container: Any, stream: Any) -> int | None:
    """Gives the length in samples. Only the mp4 family states the length without priming and padding."""
    if "mp4" not in container.format.name.split(",") or stream.duration is None:
        return None
    return int(round(stream.duration * stream.time_base * stream.rate))


def _av_blocks(path: Path, start: int, stated: int | None) -> Iterator[Samples]:
    """Gives the samples from `start` on, not beyond the stated length: what follows that is the encoder's padding."""
    import av

    try:
        with _av_container(path) as container:
            stream = container.streams.audio[0]
            position = None if _av_seek(container, stream, start) else 0
            resampler = av.AudioResampler(format="fltp", rate=stream.rate)
            for frame in _av_frames(container, stream, tolerant=stated is not None):
                if position is None:  # only after a seek, where the time base counts samples
                    position = int(frame.pts)
                for planar in resampler.resample(frame):
                    block = planar.to_ndarray()
                    begin, position = position, position + block.shape[1]
                    kept = block[:, max(0, start - begin) : None if stated is None else max(0, stated - begin)]
                    if kept.shape[1]:
                        yield np.ascontiguousarray(kept, dtype=np.float32)
    except (av.FFmpegError, OSError, ValueError) as error:  # ValueError: rate or layout changes midway
        raise _damaged(path, error) from error


def _av_frames(container: Any, stream: Any, *, tolerant: bool) -> Iterator[Any]:
    """Gives the decoded frames, passing over what is no audio at the end of the file, such as the tags of an mp3.

    tolerant: passes over it anywhere. Only safe where the length is known, so that missing audio is noticed.
    """
    import av

    passed_over: Exception | None = None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            passed_over = error
            continue
        if frames and passed_over is not None and not tolerant:
            raise passed_over
        yield from frames


def _av_seek(container: Any, stream: Any, start: int) -> bool:
    """Moves to a frame well before `start` where that can be done exactly; says whether it moved.

    mp4 keeps the time of every packet in samples. Other containers round times (Matroska, to a millisecond) or guess
    them (bare AAC), so those are decoded from the start.
    """
    exact = "mp4" in container.format.name.split(",") and stream.time_base == Fraction(1, stream.rate)
    if not exact or start <= 2 * AV_PREROLL_SAMPLES:
        return False
    container.seek(start - AV_PREROLL_SAMPLES, stream=stream)
    return True


def _damaged(path: Path, error: Exception) -> UnreadableAudioError:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    reason = text.splitlines()[0].removeprefix("Error : ").strip(" .")
    return UnreadableAudioError(f"{path} is damaged or cut off ({reason}); copy or export it again")
