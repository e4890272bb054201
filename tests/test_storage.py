"""A reader sees the old file or the new one, whatever happens to the writer."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from micro_musicgen import storage
from micro_musicgen.errors import MicroMusicGenError


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "Träume und Töne" / "a b.json"
    storage.write_json(path, {"ü": [1, 2.5, None]})
    assert storage.read_json(path) == {"ü": [1, 2.5, None]}
    assert "ü" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["a b.json"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    storage.write_text(path, "old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), storage.atomic_write(path) as file:
            file.write(b"half of the n")
            raise error
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    storage.write_text(path, "old")
    code = (
        "import os, signal, sys\nfrom micro_musicgen import storage\n"
        "with storage.atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert found.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for write in (lambda: storage.write_text(blocked / "x", ""), lambda: storage.ensure_writable(blocked / "folder")):
        with pytest.raises(MicroMusicGenError, match=r"cannot write .*file.*; choose a folder that you can write to"):
            write()


def test_a_folder_is_made_and_left_clean(tmp_path: Path) -> None:
    folder = storage.ensure_writable(tmp_path / "a" / "b")
    assert folder.is_dir() and not list(folder.iterdir())


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    for name in ("x.json", "missing.json"):
        with pytest.raises(MicroMusicGenError, match=f"cannot read .*{name}"):
            storage.read_json(tmp_path / name)


def test_the_hash_is_sha256_of_all_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert storage.file_hash(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_full_disk_is_told_in_one_line_and_the_old_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "kept.txt"
    storage.write_text(target, "old")
    with pytest.raises(MicroMusicGenError, match="disk is full"), storage.atomic_write(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
