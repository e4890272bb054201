"""audiocraft's own tests, from its sdist, against the installed and patched audiocraft."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

AT_LEAST = 220
"""Of 221. The one left reads a file through torchaudio.load, which wants torchcodec."""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A folder that holds audiocraft's tests and none of its code, so that they find what is installed."""
    command = ["download", "--no-deps", "--no-binary", ":all:", "audiocraft==1.3.0"]
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", *command, "-q", "-d", str(tmp_path)], capture_output=True, text=True
    )
    archives = list(tmp_path.glob("audiocraft-*.tar.gz"))
    if not archives:
        pytest.skip(f"the sdist cannot be fetched: {fetched.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(archives[0]) as archive:
        for member in archive.getmembers():
            inside = member.name.partition("/")[2]
            if inside.startswith("tests/") and member.isfile() and ".." not in inside:
                stream = archive.extractfile(member)
                assert stream is not None
                (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / inside).write_bytes(stream.read())
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_audiocrafts_own_suite_passes(suite: Path) -> None:
    options = ["-q", "-p", "micro_musicgen.upstream", "-p", "no:cacheprovider", "-W", "ignore"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests"], cwd=suite, capture_output=True, text=True
    )
    summary = done.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed is not None and int(passed[1]) >= AT_LEAST, done.stdout[-4000:]
