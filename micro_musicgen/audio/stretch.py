"""Sound of another length at the pitch that it has, by the library python-stretch (Signalsmith Stretch)."""

from __future__ import annotations

import numpy as np

from micro_musicgen.audio.lines import Samples
from micro_musicgen.errors import MissingExtraError

CONTEXT_S = 0.25
"""Sound before and behind that a time stretch hears besides; its blocks last half as long."""


def stretched(wav: Samples, sample_rate: int, length: int, *, loops: bool) -> Samples:
    """Gives [C, length] at the pitch that it has; a loop is begun early and ended late, and still closes.

    Raises:
        MissingExtraError: python-stretch is not installed.
    """
    try:
        from python_stretch.Signalsmith import Stretch
    except ImportError as error:
        raise MissingExtraError(
            "keeping the pitch needs python-stretch; run: pip install 'micro-musicgen[beats]'"
        ) from error
    around = round(CONTEXT_S * sample_rate)
    sound = np.pad(wav, ((0, 0), (around, around)), mode="wrap" if loops else "constant")
    faster = wav.shape[1] / length
    stretch = Stretch(0)
    stretch.preset(len(sound), sample_rate)
    stretch.setTimeFactor(faster)
    begin = round(around / faster)
    made = np.asarray(stretch.process(sound), dtype=np.float32)[:, begin : begin + length]
    assert made.shape[1] == length, f"{made.shape[1]} of {length} samples"
    return np.ascontiguousarray(made)
