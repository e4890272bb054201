"""`.tiaf`, "time-independent audio format": sound with the same number of samples in every beat.

Each beat carries its own checksum, so that a stream and a memory map give out no beat that is damaged.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from micro_musicgen import storage
from micro_musicgen.audio.lines import Samples
from micro_musicgen.audio.tiaf_header import CRC_BYTES, DTYPES, FULL_SCALE, PREFIX, TiafHeader, parse_head, parse_prefix
from micro_musicgen.audio.warp import (
    SAMPLES_PER_BEAT,
    BeatPlan,
    BeatSamples,
    Tempo,
    beat_blocks,
    plan_beats,
    to_clock_time,
)
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

SUFFIX = ".tiaf"
_PIECE_BYTES = 1 << 20
"""Bytes asked of a stream at once: what it does not give is never allocated."""


class TiafWriter:
    """Writes beats one by one into `file`, which need not be seekable. The head is written at once.

    Raises:
        MicroMusicGenError: on `close`, fewer beats were written than the header states.
    """

    def __init__(self, file: BinaryIO, header: TiafHeader) -> None:
        self.header = header
        self._file, self._done = file, 0
        head = header.head_bytes()
        self._crc = parse_crc(head)
        _write_all(file, head)

    def write_beat(self, beat: npt.ArrayLike) -> None:
        """Writes the next beat, [samples_per_beat, C].

        Raises:
            MicroMusicGenError: NaN or infinite samples, a sample above the header's peak, or one beat too many.
        """
        header, samples = self.header, np.asarray(beat, dtype=np.float32)
        assert samples.shape == (header.samples_per_beat, header.channels), f"{samples.shape} is no beat of {header}"
        if self._done == header.num_beats:
            raise MicroMusicGenError(f"all {header.num_beats} beats of the .tiaf file are written; state more of them")
        greatest = float(np.abs(samples).max())
        if not greatest <= header.peak:
            raise MicroMusicGenError(
                f"beat {self._done} has a peak of {greatest:g}, above the {header.peak:g} that the header states; "
                "NaN or infinite samples are none"
            )
        stored = _to_stored(samples, header)
        crc = zlib.crc32(stored, _seed(self._crc, self._done))
        _write_all(self._file, stored + crc.to_bytes(CRC_BYTES, "little"))
        self._done += 1

    def close(self) -> None:
        """Ends the file; `file` itself stays open."""
        if self._done != self.header.num_beats:
            raise MicroMusicGenError(f"{self._done} of {self.header.num_beats} beats were written; write them all")

    def __enter__(self) -> TiafWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


class TiafReader:
    """Reads beats one by one from `file`, which may be a pipe that gives a few bytes at a time.

    Nothing is allocated for what has not arrived. What stands behind the last beat is left in `file`.

    Raises:
        UnreadableAudioError: it is no .tiaf file, or damaged or cut off in its head.
    """

    def __init__(self, file: BinaryIO, name: str = "the stream") -> None:
        self._file, self._name = file, name
        prefix = self._exactly(PREFIX.size, "head")
        text = self._exactly(parse_prefix(prefix, name), "header")
        self.header, self._crc = parse_head(prefix, text, name)

    def __iter__(self) -> Iterator[Samples]:
        """Gives float32 [samples_per_beat, C], beat by beat.

        Raises:
            UnreadableAudioError: the next beat is damaged, cut off, or holds NaN.
        """
        for index in range(self.header.num_beats):
            block = self._exactly(self.header.block_bytes, f"beat {index} of {self.header.num_beats}")
            yield _checked_beat(block, self.header, self._crc, index, self._name)

    def _exactly(self, count: int, what: str) -> bytes:
        got = bytearray()
        while len(got) < count:
            piece = self._file.read(min(count - len(got), _PIECE_BYTES))
            if not piece:
                raise UnreadableAudioError(f"{self._name} is cut off in its {what}; copy or encode it again")
            got += piece
        return bytes(got)


class TiafFile:
    """A .tiaf file in a memory map: `len` and `[index]` are beats. Close it, or use it in a `with`.

    Raises:
        UnreadableAudioError: missing, no .tiaf file, damaged, cut off, or longer than it says.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if not size:
                    raise UnreadableAudioError(f"{path} is empty (0 bytes); copy or encode it again")
                reader = TiafReader(file, str(path))
                self._start = file.tell()
                self.header, self._crc = reader.header, reader._crc
                wanted = self._start + self.header.num_beats * self.header.block_bytes
                if size != wanted:
                    short = "is cut off" if size < wanted else "is damaged"
                    raise UnreadableAudioError(
                        f"{path} {short}: it states {wanted} bytes and has {size}; copy or encode it again"
                    )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise UnreadableAudioError(f"{path} does not exist; check the path") from error
        except (OSError, ValueError) as error:
            if isinstance(error, MicroMusicGenError):
                raise
            raise UnreadableAudioError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from error

    @property
    def beats(self) -> npt.NDArray[Any]:
        """Gives the samples as stored, [N, samples_per_beat, C], without a copy and unchecked.

        float32, or int16 to be multiplied by `scale`. It must not be used when the file is closed.
        """
        header, dtype = self.header, np.dtype(DTYPES[self.header.dtype])
        shape = (header.num_beats, header.samples_per_beat, header.channels)
        strides = (header.block_bytes, header.channels * dtype.itemsize, dtype.itemsize)
        return np.ndarray(shape, dtype, self._map, self._start, strides)

    @property
    def scale(self) -> float:
        """Gives what a stored sample is multiplied by."""
        return self.header.peak / FULL_SCALE if self.header.dtype == "int16" else 1.0

    def __len__(self) -> int:
        return self.header.num_beats

    def __getitem__(self, index: int) -> Samples:
        """Gives float32 [samples_per_beat, C], checked; negative counts from the end.

        Raises:
            UnreadableAudioError: that beat is damaged.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"beat {index} of {count}")
        index %= count
        start = self._start + index * self.header.block_bytes
        block = self._map[start : start + self.header.block_bytes]
        return _checked_beat(block, self.header, self._crc, index, str(self.path))

    def __iter__(self) -> Iterator[Samples]:
        return (self[index] for index in range(len(self)))

    def verify(self) -> None:
        """Reads every beat.

        Raises:
            UnreadableAudioError: one is damaged.
        """
        for _ in self:
            pass

    def read(self) -> BeatSamples:
        """Gives all beats, checked."""
        header = self.header
        wav = np.empty((header.channels, header.num_beats * header.samples_per_beat), np.float32)
        for index, beat in enumerate(self):
            wav[:, index * header.samples_per_beat :][:, : header.samples_per_beat] = beat.T
        return BeatSamples(wav, header.valid_samples, header.samples_per_beat)

    def close(self) -> None:
        """Lets go of the file. A view that is still in use keeps the map alive, unless the system says otherwise."""
        try:
            self._map.close()
        except BufferError:  # `beats` is in use: the map goes with it
            pass

    def __enter__(self) -> TiafFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_tiaf(path: Path | str, header: TiafHeader, beats: Iterable[npt.ArrayLike]) -> None:
    """Replaces `path` by a file of these beats, [samples_per_beat, C] each, at once.

    Raises:
        MicroMusicGenError: see `TiafWriter`, or the folder cannot be written to.
    """
    with storage.atomic_write(path) as file, TiafWriter(file, header) as writer:  # type: ignore[arg-type]
        for beat in beats:
            writer.write_beat(beat)


def encode_tiaf(
    path: Path | str,
    wav: Samples,
    sample_rate: int,
    tempo: Tempo,
    *,
    samples_per_beat: int = SAMPLES_PER_BEAT,
    offset_s: float = 0.0,
    loops: bool = False,
    dtype: str = "float32",
    metadata: Mapping[str, Any] | None = None,
) -> TiafHeader:
    """Gives the header of the file that it wrote of `wav` [C, L]; the other arguments are those of `to_beat_time`.

    Beats are made twice, once for their peak and once to be written: a long sound is never held in beat time.

    Raises:
        MicroMusicGenError: see `to_beat_time`; NaN or infinite samples; or the folder cannot be written to.
    """
    sound = np.atleast_2d(np.asarray(wav, dtype=np.float32))
    plan = plan_beats(
        sound.shape[1], sample_rate, tempo, samples_per_beat=samples_per_beat, offset_s=offset_s, loops=loops
    )
    peak = max(float(np.abs(block).max(initial=0.0)) for _, block in beat_blocks(sound, plan))
    if not np.isfinite(peak):
        raise MicroMusicGenError(f"cannot write {path}: the audio holds NaN or infinite samples")
    found = plan.effective_tempo
    header = TiafHeader(
        samples_per_beat=samples_per_beat,
        channels=len(sound),
        dtype=dtype,
        valid_samples=plan.valid_samples,
        tempo=found.bpms[0] if len(found.bpms) == 1 else found,
        source_sample_rate=sample_rate,
        source_num_samples=sound.shape[1],
        peak=peak,
        beat_offset_s=offset_s,
        loops=loops,
        metadata=dict(metadata or {}),
    )
    write_tiaf(path, header, _whole_beats(sound, plan))
    return header


def decode_tiaf(
    path: Path | str, *, sample_rate: int | None = None, bpm: float | None = None, keep_pitch: bool = False
) -> tuple[Samples, int]:
    """Gives a .tiaf file as float32 [C, L] and its sample rate: from beat 0 on, by default as it was recorded.

    bpm: another tempo; the pitch moves with it unless keep_pitch.

    Raises:
        UnreadableAudioError: see `TiafFile`.
        MicroMusicGenError: no tempo, or keep_pitch is told of a tempo map.
    """
    with TiafFile(path) as file:
        header, beats = file.header, file.read()
    rate = header.source_sample_rate if sample_rate is None else sample_rate
    as_it_was = bpm is None and rate == header.source_sample_rate and header.beat_offset_s == 0
    wav = to_clock_time(
        beats.wav[:, : beats.valid_samples],
        header.samples_per_beat,
        header.tempo if bpm is None else bpm,
        rate,
        loops=header.loops,
        keep_pitch=keep_pitch,
        recorded_tempo=header.tempo,
        num_samples=header.source_num_samples if as_it_was else None,
    )
    return wav, rate


def _whole_beats(sound: Samples, plan: BeatPlan) -> Iterator[Samples]:
    """Gives [samples_per_beat, C] of the blocks, which may end anywhere; the last one padded with silence."""
    size, beat, filled = plan.samples_per_beat, np.zeros((plan.samples_per_beat, len(sound)), np.float32), 0
    for _, block in beat_blocks(sound, plan):
        while block.shape[1]:
            part = block[:, : size - filled]
            beat[filled : filled + part.shape[1]] = part.T
            filled, block = filled + part.shape[1], block[:, part.shape[1] :]
            if filled == size:
                yield beat
                filled = 0
    if filled:
        beat[filled:] = 0
        yield beat


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Writes `data` whole: an unbuffered file may take a part of it at a time."""
    left = memoryview(data)
    while left:
        taken = file.write(left)
        if not taken:
            raise MicroMusicGenError("the stream takes nothing for now; open it so that it waits")
        left = left[taken:]


def _to_stored(samples: Samples, header: TiafHeader) -> bytes:
    if header.dtype == "float32":
        return samples.astype("<f4").tobytes()
    scaled = samples.astype(np.float64) * (FULL_SCALE / header.peak if header.peak else 0.0)
    return np.rint(scaled).clip(-FULL_SCALE, FULL_SCALE).astype("<i2").tobytes()


def _checked_beat(block: bytes, header: TiafHeader, crc: int, index: int, name: str) -> Samples:
    stored, told = block[:-CRC_BYTES], int.from_bytes(block[-CRC_BYTES:], "little")
    if zlib.crc32(stored, _seed(crc, index)) != told:
        raise UnreadableAudioError(f"{name} is damaged: the checksum of beat {index} is wrong; copy or encode it again")
    samples = np.frombuffer(stored, DTYPES[header.dtype]).reshape(header.samples_per_beat, header.channels)
    if header.dtype == "int16":
        return (samples.astype(np.float64) * (header.peak / FULL_SCALE)).astype(np.float32)
    if not np.isfinite(samples).all():
        raise UnreadableAudioError(f"beat {index} of {name} holds NaN or infinite samples; encode it again")
    return samples.astype(np.float32)


def parse_crc(head: bytes) -> int:
    """Gives the checksum that a head carries."""
    return int(PREFIX.unpack(head[: PREFIX.size])[-1])


def _seed(crc: int, index: int) -> int:
    """Gives what a beat's checksum starts from: a beat of another file, or at another place, is a damaged one."""
    return (crc + index) & 0xFFFFFFFF
