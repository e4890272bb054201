"""An embedding that needs no weights: what each band of a mel spectrogram does within a second of sound."""

from __future__ import annotations

import torch

from micro_musicgen.audio.mel import MelScale, magnitudes, mel_filters
from micro_musicgen.metrics.embedders import Array, clip_means, in_batches, mono_at

SAMPLE_RATE = 32000
"""Sounds of every rate are looked at through this one, so that rows of different sets compare."""

SCALE = MelScale(n_fft=1024, hop_samples=320, n_mels=32)
"""Few bands: with three numbers a band, a minute or two of sound gives more rows than a row has numbers."""

WINDOW_S = 1.0
"""Seconds that a row sums up, about."""

FLOOR = 1e-4
"""-80 dB: what is below that is not heard, and must not decide a distance."""

BATCH_SAMPLES = 60 * SAMPLE_RATE


class LogMelEmbedder:
    """Per band of a log-mel spectrogram: mean, standard deviation and mean absolute change from frame to frame.

    The first is timbre, the second dynamics, the third rhythm. A clip is cut into windows of equal length, as near to
    a second as that goes; each is a row.
    """

    def __init__(self) -> None:
        self.name = f"log_mel-v1-{SAMPLE_RATE}hz-{SCALE.n_fft}-{SCALE.hop_samples}-{SCALE.n_mels}bands-{WINDOW_S:g}s"
        self.width = 3 * SCALE.n_mels
        self._filters = mel_filters(SCALE, SAMPLE_RATE).T

    def embed(self, wav: torch.Tensor, sample_rate: int) -> Array:
        """Gives a row for about each second of clips [B, C, L], float64 [N, D]; a shorter clip has one row.

        Raises:
            MicroMusicGenError: the clips are empty, have other axes, or hold NaN.
        """
        return in_batches(mono_at(wav, sample_rate, SAMPLE_RATE), BATCH_SAMPLES, self._rows)

    def embed_clips(self, wav: torch.Tensor, sample_rate: int) -> Array:
        """Gives the mean row of each clip, float64 [B, D]."""
        return clip_means(self.embed(wav, sample_rate), len(wav))

    def _rows(self, mono: torch.Tensor) -> torch.Tensor:
        """Gives rows [B * windows, D] of clips [B, L]."""
        frames = torch.log(self._filters @ magnitudes(mono.double()[:, None], SCALE) + FLOOR)  # [B, bands, frames]
        num_windows = max(1, round(mono.shape[-1] / (WINDOW_S * SAMPLE_RATE)))
        parts = torch.tensor_split(frames, num_windows, dim=-1)
        return torch.stack([_summary(part) for part in parts], dim=1).flatten(0, 1)


def _summary(frames: torch.Tensor) -> torch.Tensor:
    """Gives mean, deviation and change [B, 3 * bands] of frames [B, bands, frames]; one frame has no change."""
    change = frames.diff(dim=-1).abs().sum(dim=-1) / max(1, frames.shape[-1] - 1)
    return torch.cat([frames.mean(dim=-1), frames.std(dim=-1, correction=0), change], dim=-1)
