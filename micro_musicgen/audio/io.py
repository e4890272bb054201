"""Audio files in and out: probe, read from any sample on, mix down and resample, write without clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from micro_musicgen import storage
from micro_musicgen.audio.decode import AudioStream, Samples, open_stream
from micro_musicgen.errors import MicroMusicGenError

CONTEXT_S = 0.1
"""Audio read beyond both ends of a range before it is resampled; the filter of soxr HQ is far shorter."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file says it holds. num_samples counts one channel."""

    path: Path
    sample_rate: int
    channels: int
    num_samples: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate


def probe(path: Path | str) -> AudioInfo:
    """Gives rate, channels and exact length of an audio file.

    Only the header is read where it states a length that can be trusted; else (bare AAC, wma) the file is decoded.
    That the rest of the file is sound is known after reading it.

    Raises:
        UnreadableAudioError: missing, empty or not audio.
    """
    stream = open_stream(path)
    num_samples = stream.stated_samples
    if num_samples is None:
        num_samples = sum(block.shape[1] for block in stream.blocks())
    return AudioInfo(stream.path, stream.sample_rate, stream.channels, num_samples)


def read_audio(path: Path | str, *, start_s: float = 0.0, duration_s: float | None = None) -> tuple[Samples, int]:
    """Gives float32 samples [C, L] as stored, and their sample rate.

    Starts at the sample nearest to `start_s`, the same one however the format seeks. Fewer than `duration_s` come
    back where the file ends; duration_s None reads to the end.

    Raises:
        UnreadableAudioError: missing, empty, not audio, damaged or cut off, NaN or infinite samples.
        MicroMusicGenError: start_s lies beyond the end, a negative start_s, or duration_s not above 0.
    """
    stream = open_stream(path)
    start, num_samples = _range(stream, start_s, duration_s)
    blocks = list(stream.blocks(start, num_samples))
    if not blocks:
        raise _beyond_end(stream, start_s)
    return np.concatenate(blocks, axis=1), stream.sample_rate


def load_mono(
    path: Path | str, sample_rate: int, *, start_s: float = 0.0, duration_s: float | None = None, wraps: bool = False
) -> npt.NDArray[np.float32]:
    """Gives float32 samples [L] at `sample_rate`: the mean of the channels, resampled.

    A range of a file is the same audio as that range of the whole file, to within 1e-5: what lies beyond its ends
    takes part in the resampling. L is round(duration_s * sample_rate), less where the file ends. wraps: the whole
    file is a loop (see `resample`).

    Raises:
        UnreadableAudioError: missing, empty, not audio, damaged or cut off, NaN or infinite samples.
        MicroMusicGenError: start_s lies beyond the end, a negative start_s, or duration_s not above 0.
    """
    stream = open_stream(path)
    _range(stream, start_s, duration_s)
    first = round(start_s * sample_rate)
    wanted = None if duration_s is None else max(1, round(duration_s * sample_rate))
    step_in, step_out = _smallest_steps(stream.sample_rate, sample_rate)
    # Whole steps of the rates' ratio, so that the cut-out is sampled at the same instants as the whole file is.
    context = 0 if step_in == step_out else math.ceil(CONTEXT_S * stream.sample_rate / step_in)
    skipped_steps = max(0, first // step_out - context)
    num_in = None
    if wanted is not None:
        num_in = math.ceil((first + wanted) / step_out + context) * step_in - skipped_steps * step_in
    blocks = [block.mean(axis=0) for block in stream.blocks(skipped_steps * step_in, num_in)]
    if not blocks:
        raise _beyond_end(stream, start_s)
    begin = first - skipped_steps * step_out
    assert not (wraps and (first or wanted)), "a part of a file is not a loop"
    resampled = resample(np.concatenate(blocks), stream.sample_rate, sample_rate, wraps=wraps)
    cut = resampled[begin : None if wanted is None else begin + wanted]
    if not len(cut):
        raise _beyond_end(stream, start_s)
    return np.ascontiguousarray(cut)


def resample(
    wav: npt.NDArray[np.float32], from_rate: int, to_rate: int, *, wraps: bool = False
) -> npt.NDArray[np.float32]:
    """Gives `wav` [L] at another rate, `resampled_length` samples.

    wraps: the audio is a loop, so its end is what comes before its start: the seam stays as smooth as it was.
    """
    if from_rate == to_rate:
        return wav
    import soxr

    length = resampled_length(len(wav), from_rate, to_rate)
    step_in, step_out = _smallest_steps(from_rate, to_rate)
    steps = math.ceil(CONTEXT_S * from_rate / step_in)
    # Context on both sides, of whole steps so that the sampling instants stay: the loop itself, or silence.
    padded = np.pad(wav, steps * step_in, mode="wrap" if wraps else "constant")
    resampled = soxr.resample(padded, from_rate, to_rate, quality="HQ")
    return np.ascontiguousarray(resampled[steps * step_out :][:length], dtype=np.float32)


def resampled_length(num_samples: int, from_rate: int, to_rate: int) -> int:
    """Gives how many samples `num_samples` are at another rate: the nearest whole number, halves up, at least one."""
    return max(1, (2 * num_samples * to_rate + from_rate) // (2 * from_rate))


BLOCK_SAMPLES = 1 << 18
"""Samples of each channel that are converted at once."""


def write_wav(path: Path | str, wav: npt.ArrayLike, sample_rate: int) -> None:
    """Writes audio [C, L] or [L] as 16-bit PCM, replacing `path` at once.

    A peak above 1 scales the whole clip down to 1: nothing is clamped flat. The same samples give the same bytes.

    Raises:
        MicroMusicGenError: NaN or infinite samples, or the folder cannot be written to.
    """
    import soundfile

    samples = np.atleast_2d(np.asarray(wav))
    assert samples.ndim == 2, f"expected [L] or [C, L], got {samples.shape}"
    # Block by block: a long clip's copies in double precision would be several times the clip.
    blocks = [samples[:, at : at + BLOCK_SAMPLES] for at in range(0, samples.shape[1], BLOCK_SAMPLES)]
    if not all(np.isfinite(block).all() for block in blocks):
        raise MicroMusicGenError(f"cannot write {path}: the audio holds NaN or infinite samples; the model is broken")
    peak = max((float(np.abs(block).max(initial=1.0)) for block in blocks), default=1.0)
    with (
        storage.atomic_write(path) as file,
        soundfile.SoundFile(file, "w", sample_rate, len(samples), subtype="PCM_16", format="WAV") as sound,
    ):
        for block in blocks:
            sound.write(np.rint(block.astype(np.float64) / peak * 32767).astype(np.int16).T)


def _smallest_steps(from_rate: int, to_rate: int) -> tuple[int, int]:
    """Gives the fewest samples at both rates that last equally long, such as 441 and 320."""
    divisor = math.gcd(from_rate, to_rate)
    return from_rate // divisor, to_rate // divisor


def _range(stream: AudioStream, start_s: float, duration_s: float | None) -> tuple[int, int | None]:
    """Gives the first sample and the number of samples, checked."""
    if not start_s >= 0:
        raise MicroMusicGenError(f"start {start_s:g} s of {stream.path} is negative; give 0 or more seconds")
    if duration_s is not None and not duration_s > 0:
        raise MicroMusicGenError(f"duration {duration_s:g} s of {stream.path} must be above 0 seconds")
    start = round(start_s * stream.sample_rate)
    if stream.stated_samples is not None and start >= stream.stated_samples:
        raise _beyond_end(stream, start_s)
    return start, None if duration_s is None else max(1, round(duration_s * stream.sample_rate))


def _beyond_end(stream: AudioStream, start_s: float) -> MicroMusicGenError:
    length = "" if stream.stated_samples is None else f" ({stream.stated_samples / stream.sample_rate:.3f} s)"
    return MicroMusicGenError(f"start {start_s:g} s lies beyond the end of {stream.path}{length}; give an earlier one")
