"""A Slurm for the session, and a folder with a data home and grids to run on it."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_models import write_codec_run
from slurm_lab import Lab, write_package
from slurm_local import LocalSlurm, missing

from micro_musicgen import paths


@pytest.fixture(scope="session")
def slurm() -> Iterator[LocalSlurm]:
    """A Slurm of one machine. The tests that need it are skipped where it is not installed."""
    if missing():
        pytest.skip(f"not installed: {', '.join(missing())}; `make test-slurm` installs them")
    # Not pytest's folder: its path is too long for a socket, and closed to others, which munge refuses.
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    # Daemons and jobs would outlive a session that is told to end: pytest's own exit takes the way through here.
    kept = signal.signal(signal.SIGTERM, lambda number, frame: pytest.exit("told to end", returncode=128 + number))
    try:
        with LocalSlurm(root) as started:
            yield started
    finally:
        signal.signal(signal.SIGTERM, kept)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def lab(slurm: LocalSlurm, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Three grids of toy runs, a data set and a codec with random weights."""
    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.data.prepare import prepare

    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.HOME_VARIABLE, str(folder / "home"))
        write_breaks(folder / "sounds", seed=0, minutes=0.4)
        prepare(folder / "sounds", "toy", valid_fraction=0.3)
        write_codec_run()
    write_package(folder)
    return Lab(folder, folder / "home", slurm.environment)
