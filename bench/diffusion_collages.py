"""Collages of a few recorded sounds: more of their kind than half a minute has, for codec and decoder to learn from.

Every clip lays one to three of the sounds over each other, each at a speed, a loudness and a tone of its own, some of
them backwards. Only training files are cut up: what is held out stays unheard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

CLIP_S = 6.0
OCTAVES = 1.0
"""Speeds go from half to double."""
LAYERS = (1, 2, 2, 3)
BACKWARDS = 0.2
TILT_DB = 9.0
"""Greatest tilt of a layer's spectrum between its bass and its treble, either way."""
PEAK = 0.9


def write_collages(folder: Path, sources: Sequence[Path], *, minutes: float, sample_rate: int, seed: int) -> list[Path]:
    """Gives the wav files that it wrote into `folder`, `minutes` in all, the same for the same seed."""
    from micro_musicgen.audio.io import load_mono, write_wav

    rng = np.random.default_rng(seed)
    sounds = [load_mono(path, sample_rate).reshape(-1) for path in sources]
    made = []
    for index in range(round(minutes * 60 / CLIP_S)):
        path = folder / f"collage_{index:03d}.wav"
        write_wav(path, _collage(rng, sounds, round(CLIP_S * sample_rate))[None], sample_rate)
        made.append(path)
    return made


def _collage(rng: np.random.Generator, sounds: Sequence[np.ndarray], num_samples: int) -> np.ndarray:
    mix = np.zeros(num_samples, dtype=np.float32)
    for _ in range(int(rng.choice(LAYERS))):
        mix += _layer(rng, sounds[int(rng.integers(len(sounds)))], num_samples)
    return np.asarray(mix * (PEAK * rng.uniform(0.4, 1.0) / max(1e-6, np.abs(mix).max())), dtype=np.float32)


def _layer(rng: np.random.Generator, sound: np.ndarray, num_samples: int) -> np.ndarray:
    """Gives one sound at a random speed, looped to length from a random place, its peak 0.2 to 1."""
    import soxr

    speed = 2 ** rng.uniform(-OCTAVES, OCTAVES)
    played = soxr.resample(sound, 1000 * speed, 1000)
    if rng.random() < BACKWARDS:
        played = played[::-1]
    start = int(rng.integers(len(played)))
    looped = np.take(
        _tilted(played, rng.uniform(-TILT_DB, TILT_DB)), np.arange(start, start + num_samples), mode="wrap"
    )
    return np.asarray(looped * (rng.uniform(0.2, 1.0) / max(1e-6, np.abs(looped).max())), dtype=np.float32)


def _tilted(sound: np.ndarray, tilt_db: float) -> np.ndarray:
    """Gives a loop whose level rises by `tilt_db` over the octaves from bass to treble."""
    spectrum = np.fft.rfft(sound)
    place = np.log2(np.arange(1, len(spectrum) + 1)) / np.log2(len(spectrum) + 1)
    return np.fft.irfft(spectrum * 10 ** (tilt_db * (place - 0.5) / 20), len(sound))
