"""A data set of synthesised breaks and a codec run with random weights, in a data home of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_models import write_codec_run

from micro_musicgen import paths


@pytest.fixture(scope="module")
def toy_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data home with the data set `toy` and the codec `c0dec000`, shared by a module's tests."""
    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.data.prepare import prepare
    from micro_musicgen.train import main

    root = tmp_path_factory.mktemp("toy")
    kept = os.environ.get(paths.HOME_VARIABLE), main.dora.dir
    os.environ[paths.HOME_VARIABLE] = str(root / "home")
    main.dora.dir = paths.runs_dir()
    write_breaks(root / "sounds", seed=0, minutes=0.4)
    prepare(root / "sounds", "toy", valid_fraction=0.3)
    write_codec_run()
    yield root / "home"
    if kept[0] is None:
        del os.environ[paths.HOME_VARIABLE]
    else:
        os.environ[paths.HOME_VARIABLE] = kept[0]
    main.dora.dir = kept[1]
