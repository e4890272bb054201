"""The pool of codes: one file a track, written the moment it is encoded, from which token stores are put together.

    pool/KEY/SOUND.codes   magic "MMGCODES", header's length (uint32 little-endian), header (JSON), codes
                           header {version, codec_hash, settings, sound, K, num_frames, loop, checksum}
                           codes: int16 little-endian [T, K]

KEY names the codec and the settings, SOUND the audio. So a build that was killed goes on where it was, and a data set
that grew, or was split in another way, has only its new tracks encoded. The pool may be deleted at any time: stores
don't need it once they are made. Two sounds of one name would need two equal halves of a SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from micro_musicgen import storage
from micro_musicgen.contracts import Codec
from micro_musicgen.data import tokens
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.tokens import CODE_DTYPE, TokenSettings

VERSION = 1
MAGIC = b"MMGCODES"
POOL_NAME = "pool"
_LENGTH = struct.Struct("<I")
_MAX_HEADER_BYTES = 1 << 16
_SCRATCH_AGE_S = 24 * 3600.0


@dataclass(frozen=True)
class PooledCodes:
    """One track's codes [T, K] and whether the track was looped."""

    codes: npt.NDArray[np.int16]
    loop: bool
    checksum: str


@dataclass(frozen=True)
class TokenPool:
    """The codes that one codec gave under one set of settings. Invariant: a file in it is whole or is not there.

    Nothing in it but what was checked is ever given: size, header, range and checksum.
    """

    folder: Path
    codec_hash: str
    num_codebooks: int
    card: int
    settings: TokenSettings

    @classmethod
    def beside(cls, store_folder: Path, codec: Codec, settings: TokenSettings) -> TokenPool:
        """Gives the pool that the stores in one folder share. It need not exist."""
        facts = {"version": VERSION, "codec": codec.content_hash, "settings": settings.plain()}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        folder = store_folder.parent / POOL_NAME / key
        return cls(folder, codec.content_hash, codec.num_codebooks, codec.cardinality, settings)

    def path(self, track: Track) -> Path:
        """Gives the file of one track's codes. It need not exist."""
        return self.folder / f"{self.sound(track)}.codes"

    def sound(self, track: Track) -> str:
        """Gives 32 hex digits that name a track's audio, in beat time with its tempo."""
        return sound_key(track, tokens.tempo_key(track, self.settings))

    def read(self, track: Track) -> PooledCodes | None:
        """Gives the codes of one track; None when they are not there, or not sound."""
        path = self.path(track)
        try:
            with open(path, "rb") as file:
                return self._parse(file, path.stat().st_size, self.sound(track))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _parse(self, file: IO[bytes], num_bytes: int, sound: str) -> PooledCodes | None:
        if file.read(len(MAGIC)) != MAGIC:
            return None
        (header_bytes,) = _LENGTH.unpack(file.read(_LENGTH.size).ljust(_LENGTH.size, b"\xff"))
        if header_bytes > _MAX_HEADER_BYTES:
            return None
        header = json.loads(file.read(header_bytes))
        num_frames, loop, checksum = header["num_frames"], header["loop"], header["checksum"]
        if header != self._header(sound, num_frames, loop, checksum) or type(num_frames) is not int:
            return None
        size = num_frames * self.num_codebooks * CODE_DTYPE.itemsize
        # Before anything of that size is read: a header can say whatever it likes.
        if size < 1 or num_bytes != len(MAGIC) + _LENGTH.size + header_bytes + size:
            return None
        codes = np.frombuffer(file.read(size), dtype=CODE_DTYPE).reshape(num_frames, self.num_codebooks)
        if codes.min() < 0 or codes.max() >= self.card or tokens.checksum(codes) != checksum:
            return None
        return PooledCodes(codes, bool(loop), checksum)

    def _header(self, sound: str, num_frames: int, loop: bool, checksum: str) -> dict[str, Any]:
        return {
            "version": VERSION,
            "codec_hash": self.codec_hash,
            "settings": self.settings.plain(),
            "sound": sound,
            "K": self.num_codebooks,
            "num_frames": num_frames,
            "loop": loop,
            "checksum": checksum,
        }

    def write(self, track: Track, codes: npt.NDArray[np.int16], loop: bool) -> None:
        """Keeps one track's codes [T, K], durably, all at once or not at all.

        Raises:
            MicroMusicGenError: the disk is full, or the folder cannot be written to.
        """
        codes = np.ascontiguousarray(codes, dtype=CODE_DTYPE)
        header = self._header(self.sound(track), len(codes), loop, tokens.checksum(codes))
        packed = json.dumps(header, sort_keys=True).encode()
        with storage.atomic_write(self.path(track)) as file:
            file.write(MAGIC + _LENGTH.pack(len(packed)) + packed)
            file.write(codes.tobytes())

    def sweep(self) -> None:
        """Removes what killed builds left half written. What is younger than a day may be another build's."""
        for scratch in self.folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - scratch.stat().st_mtime > _SCRATCH_AGE_S:
                    scratch.unlink()


def sound_key(track: Track, more: Sequence[Any] = ()) -> str:
    """Gives 32 hex digits that name a track's audio: by its samples, or by file and time in a stranger's manifest.

    more: what else tells sounds apart.
    """
    sound: Any = track.audio_hash
    if sound is None:
        try:
            facts = Path(track.path).stat()
            sound = [track.path, facts.st_size, facts.st_mtime_ns]
        except OSError:
            sound = [track.path]
    return hashlib.sha256(json.dumps([sound, track.duration, *more]).encode()).hexdigest()[:32]
