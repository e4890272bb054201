"""The head of a .tiaf file: what is in it, checked before anything is allocated. docs/tiaf.md has the layout."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from micro_musicgen.audio.warp import MAX_OFFSET_S, MAX_SAMPLES_PER_BEAT, Tempo, TempoMap, as_map, check_bpm
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

MAGIC = b"TIAF"
VERSION = 1
PREFIX = struct.Struct("<4sHHII")
"""Magic, version, reserved (0), bytes of JSON, CRC32 of all that stands before the first beat but itself."""
ALIGNMENT = 64
CRC_BYTES = 4
MAX_JSON_BYTES = 1 << 20
MAX_CHANNELS = 64
MAX_SAMPLES = 1 << 62
MAX_RATE = 1 << 22
MAX_PEAK = 1e6
DTYPES: dict[str, npt.DTypeLike] = {"float32": "<f4", "int16": "<i2"}
FULL_SCALE = 32767
"""What the peak of a file is in int16. -32768 is never written: it has no counterpart."""


@dataclass(frozen=True, kw_only=True)
class TiafHeader:
    """All that a .tiaf file says about its beats.

    tempo: of the sound as it was recorded. num_beats is what `valid_samples` fill, the last beat perhaps in part.
    beat_offset_s: where beat 0 lay in the source; what came before it is not kept. loops: the last beat leads into the
    first. source_*: of the file that was encoded. peak: greatest absolute sample, what full scale is in int16.
    metadata: plain JSON.
    """

    samples_per_beat: int
    channels: int
    dtype: str
    valid_samples: int
    tempo: Tempo
    source_sample_rate: int
    source_num_samples: int
    peak: float
    beat_offset_s: float = 0.0
    loops: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_range("samples_per_beat", self.samples_per_beat, 1, MAX_SAMPLES_PER_BEAT)
        _check_range("channels", self.channels, 1, MAX_CHANNELS)
        _check_range("valid_samples", self.valid_samples, 1, MAX_SAMPLES)
        _check_range("source_sample_rate", self.source_sample_rate, 1, MAX_RATE)
        _check_range("source_num_samples", self.source_num_samples, 1, MAX_SAMPLES)
        if self.dtype not in DTYPES:
            raise MicroMusicGenError(f"dtype {self.dtype!r} is none that .tiaf has; take {' or '.join(DTYPES)}")
        if not 0 <= self.peak <= MAX_PEAK:
            raise MicroMusicGenError(f"peak {self.peak:g} of a .tiaf file must lie in 0..{MAX_PEAK:g}")
        if not abs(self.beat_offset_s) <= MAX_OFFSET_S:
            raise MicroMusicGenError(
                f"beat_offset_s {self.beat_offset_s:g} must lie in -{MAX_OFFSET_S:g}..{MAX_OFFSET_S:g}"
            )
        if not isinstance(self.tempo, TempoMap):
            check_bpm(self.tempo)

    @property
    def num_beats(self) -> int:
        """Gives how many beats there are, the last one perhaps in part."""
        return -(-self.valid_samples // self.samples_per_beat)

    @property
    def tempo_map(self) -> TempoMap:
        """Gives the tempo as a map, also where it is one number."""
        return as_map(self.tempo)

    @property
    def duration_s(self) -> float:
        """Gives the length of the recorded sound from beat 0 on."""
        return self.tempo_map.seconds_at(self.valid_samples / self.samples_per_beat)

    @property
    def mean_bpm(self) -> float:
        """Gives the tempo; of a map, the one at which the whole lasts as long."""
        return self.tempo_map.mean_bpm(self.valid_samples / self.samples_per_beat)

    @property
    def block_bytes(self) -> int:
        """Gives the bytes of a beat in the file, its checksum included."""
        return self.samples_per_beat * self.channels * np.dtype(DTYPES[self.dtype]).itemsize + CRC_BYTES

    def to_plain(self) -> dict[str, Any]:
        """Gives the header as JSON can hold it."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        tempo = self.tempo.to_plain() if isinstance(self.tempo, TempoMap) else float(self.tempo)
        return {**plain, "tempo": tempo, "num_beats": self.num_beats, "metadata": dict(self.metadata)}

    @staticmethod
    def from_plain(plain: Any) -> TiafHeader:
        """Gives the header that `to_plain` gave.

        Raises:
            MicroMusicGenError: something is missing, unknown, of another type or out of range.
        """
        if not isinstance(plain, dict):
            raise MicroMusicGenError("the header is no JSON object")
        if odd := sorted(_FIELDS.keys() ^ plain.keys()):
            raise MicroMusicGenError(f"the header lacks, or should not have, {', '.join(map(repr, odd))}"[:200])
        for name, is_right in _FIELDS.items():
            if not is_right(plain[name]):
                raise MicroMusicGenError(f"{name} of the header has the wrong type ({type(plain[name]).__name__})")
        told = {name: value for name, value in plain.items() if name != "num_beats"}
        if isinstance(told["tempo"], dict):
            told["tempo"] = TempoMap.from_plain(told["tempo"])
        header = TiafHeader(**told)
        if plain["num_beats"] != header.num_beats:
            raise MicroMusicGenError(
                f"{str(plain['num_beats'])[:30]} beats are stated, {header.num_beats} is what the samples are"
            )
        return header

    def head_bytes(self) -> bytes:
        """Gives what stands before the first beat.

        Raises:
            MicroMusicGenError: metadata or tempo map are too long, or are not plain JSON.
        """
        try:
            text = json.dumps(self.to_plain(), allow_nan=False, separators=(",", ":")).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            raise MicroMusicGenError(f"metadata of a .tiaf file must be plain JSON: {error}") from error
        # Spaces up to where a memory map likes its numbers to begin.
        text += b" " * (-(PREFIX.size + len(text)) % ALIGNMENT)
        if len(text) > MAX_JSON_BYTES:
            raise MicroMusicGenError(
                f"tempo map and metadata are {len(text)} bytes, more than the {MAX_JSON_BYTES} that a .tiaf file "
                "has for them; leave some out"
            )
        return PREFIX.pack(MAGIC, VERSION, 0, len(text), _head_crc(text)) + text


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Says whether JSON's `value` is a finite number that a float holds."""
    return isinstance(value, float) and math.isfinite(value) or (_is_whole(value) and abs(value) < 2**53)  # type: ignore[arg-type]


_FIELDS: dict[str, Callable[[object], bool]] = {
    "samples_per_beat": _is_whole,
    "channels": _is_whole,
    "dtype": lambda value: isinstance(value, str),
    "valid_samples": _is_whole,
    "tempo": lambda value: _is_number(value) or isinstance(value, dict),
    "source_sample_rate": _is_whole,
    "source_num_samples": _is_whole,
    "peak": _is_number,
    "beat_offset_s": _is_number,
    "loops": lambda value: isinstance(value, bool),
    "num_beats": _is_whole,
    "metadata": lambda value: isinstance(value, dict),
}


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise MicroMusicGenError(f"{name} {str(value)[:30]} of a .tiaf file must lie in {low}..{high}")


def _head_crc(text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(PREFIX.pack(MAGIC, VERSION, 0, len(text), 0)[:-CRC_BYTES]))


def parse_prefix(prefix: bytes, name: str) -> int:
    """Gives how many bytes of JSON follow the first `PREFIX.size` bytes of a file, checked.

    Raises:
        UnreadableAudioError: it is no .tiaf file, or one of a later version, or damaged. name: of the file.
    """
    magic, version, reserved, length, _ = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise UnreadableAudioError(f"{name} is no .tiaf file: it does not begin with {MAGIC.decode()}; encode it first")
    if version != VERSION or reserved:
        raise UnreadableAudioError(
            f"{name} is .tiaf version {version}, this is version {VERSION}: update micro_musicgen, or encode it again"
        )
    if not 2 <= length <= MAX_JSON_BYTES:
        raise UnreadableAudioError(f"{name} is damaged: a header of {length} bytes is none; encode it again")
    return int(length)


def parse_head(prefix: bytes, text: bytes, name: str) -> tuple[TiafHeader, int]:
    """Gives the header and its checksum.

    Raises:
        UnreadableAudioError: the checksum or what is said is wrong. name: of the file.
    """
    crc = PREFIX.unpack(prefix)[-1]
    if crc != _head_crc(text):
        raise UnreadableAudioError(f"{name} is damaged: the checksum of its header is wrong; encode it again")
    try:
        return TiafHeader.from_plain(json.loads(text.decode("ascii"), parse_constant=_no_constant)), crc
    except (ValueError, RecursionError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnreadableAudioError(f"{name} has a header that cannot be used: {reason}; encode it again") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
