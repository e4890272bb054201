"""Pictures for the demo page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from micro_musicgen import storage


def save_spectrogram(wav: np.ndarray, sample_rate: int, path: Path) -> None:
    """Writes a PNG of the magnitude spectrogram (dB over an 80 dB range, up to Nyquist) of audio [L]."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(4.4, 1.8))
    axis.specgram(wav + 1e-6 * np.random.default_rng(0).standard_normal(wav.size), NFFT=1024, Fs=sample_rate,
                  noverlap=768, cmap="magma", vmin=-120, vmax=-30)  # fmt: skip
    axis.set(xlabel="s", ylabel="Hz")
    axis.tick_params(labelsize=7)
    figure.tight_layout(pad=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=90)
    pyplot.close(figure)
    with storage.atomic_write(path) as file:
        file.write(image.getvalue())
