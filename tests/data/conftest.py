from pathlib import Path

import numpy as np
import pytest
import soundfile

from micro_musicgen.data.manifest import Track
from micro_musicgen.data.scan import scan


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A data home of the test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MICRO_MUSICGEN_HOME", str(folder))
    return folder.resolve()


@pytest.fixture
def make_track(tmp_path):
    """Writes a sound as a 32-bit float wav and gives its manifest track."""

    def make(name: str, wav: np.ndarray, sample_rate: int = 32_000, weight: float | None = None) -> Track:
        path = tmp_path / "sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.asarray(wav, dtype=np.float32).T, sample_rate, subtype="FLOAT")
        sound = scan(path)
        return Track(
            path.as_posix(), sound.duration_s, sample_rate, sound.peak, weight=weight, audio_hash=sound.audio_hash
        )

    return make


@pytest.fixture
def music():
    """Gives noise that no two seeds share: float32 [L] below 0.5."""

    def make(duration_s: float, seed: int, sample_rate: int = 32_000) -> np.ndarray:
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(duration_s * sample_rate))
        return noise.astype(np.float32)

    return make
