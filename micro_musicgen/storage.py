"""Writing files so that nothing is lost: to a temporary name beside the target, fsync, rename.

A reader sees the old file or the new one, never half of one, also after a power cut. Works on any file system with
an atomic replace (`os.replace`), Windows included.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from micro_musicgen.errors import DiskFullError, MicroMusicGenError

_TORCH_WRITER = ("PytorchStreamWriter", "inline_container")


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[IO[bytes]]:
    """Gives a binary file that takes the place of `path` when the block ends without an error.

    Parent folders are made. When the block raises, `path` is as it was and the temporary file is gone.

    Raises:
        MicroMusicGenError: the folder cannot be written to.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(scratch, "wb")
    except OSError as error:
        reason = error.strerror or error
        raise MicroMusicGenError(f"cannot write {path}: {reason}; choose a folder that you can write to") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        if disk_is_full(error):
            raise DiskFullError(f"cannot write {path}: the disk is full; make room and start again") from error
        raise


def disk_is_full(error: BaseException | None) -> bool:
    """Says whether `error`, or what led to it, means that no room was left.

    torch's writer gives a RuntimeError of its own when a write has failed, depending on where in the file.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITER):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sync_folder(folder: Path) -> None:
    """Makes a rename itself durable. Not possible, nor needed, on Windows."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Replaces `path` by `text` (UTF-8) at once."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Replaces `path` by `value` as indented JSON (UTF-8) at once."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Gives the value in a JSON file.

    Raises:
        MicroMusicGenError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MicroMusicGenError(f"cannot read {path}: {error}") from error


def file_hash(path: Path | str) -> str:
    """Gives the sha256 of a file's bytes, in hex, reading it in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def ensure_writable(folder: Path | str) -> Path:
    """Gives `folder` as a path after making it and proving that a file can be written there.

    Called before long work, so that a read-only folder costs seconds and not hours.

    Raises:
        MicroMusicGenError: it cannot be made or written to.
    """
    folder = Path(folder)
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise MicroMusicGenError(
            f"cannot write to {folder}: {reason}; choose a folder that you can write to"
        ) from error
    return folder
