"""Mel spectra: the one frequency scale that training losses and metrics share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from micro_musicgen.errors import MicroMusicGenError


@dataclass(frozen=True)
class MelScale:
    """One resolution of a mel spectrogram: window and hop in samples, number of bands, their range in Hz."""

    n_fft: int
    hop_samples: int
    n_mels: int
    f_min: float = 40.0
    f_max: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.hop_samples <= self.n_fft:
            raise MicroMusicGenError(f"hop of {self.hop_samples} samples must lie in 1..n_fft ({self.n_fft})")
        if self.n_mels < 1:
            raise MicroMusicGenError(f"n_mels {self.n_mels} must be 1 or more")


def at_rate(scale: MelScale, sample_rate: float, nominal_rate: float, max_hz: float | None = None) -> MelScale:
    """Gives the resolution that looks at sound of `sample_rate` as `scale` looks at sound of `nominal_rate`.

    Windows and hops last about as long (to a power of two), bands end at `max_hz` if not before, and are fewer where
    they would hold no bin. For beat time, whose rate is its tempo's.
    """
    factor = 2.0 ** round(math.log2(sample_rate / nominal_rate))
    hop = max(1, round(scale.hop_samples * factor))
    f_max = None if max_hz is None or max_hz >= sample_rate / 2 else max_hz
    found = replace(scale, n_fft=max(hop, round(scale.n_fft * factor)), hop_samples=hop, f_max=f_max)
    while found.n_mels > 1:
        try:
            mel_filters(found, sample_rate)
        except MicroMusicGenError:
            found = replace(found, n_mels=max(1, found.n_mels * 7 // 8))
        else:
            break
    return found


def mel_filters(scale: MelScale, sample_rate: float) -> torch.Tensor:
    """Gives triangular filters [n_fft // 2 + 1, n_mels], peak 1, evenly spaced on the mel scale (HTK formula).

    Raises:
        MicroMusicGenError: a band is so narrow that no bin of the spectrum falls into it.
    """
    f_max = scale.f_max or sample_rate / 2
    low, high = (2595 * math.log10(1 + f / 700) for f in (scale.f_min, f_max))
    corners = 700 * (10 ** (torch.linspace(low, high, scale.n_mels + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, scale.n_fft // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    empty = int((filters.sum(dim=0) == 0).sum())
    if empty:
        raise MicroMusicGenError(
            f"{empty} of {scale.n_mels} mel bands hold no bin of a {scale.n_fft}-sample window; use fewer n_mels"
        )
    return filters


def complex_spectrum(wav: torch.Tensor, scale: MelScale) -> torch.Tensor:
    """Gives the complex STFT [B, n_fft // 2 + 1, frames] of mono audio [B, 1, L].

    The window has unit energy, so white noise has magnitude about its RMS at every resolution. A clip shorter than
    half a window is padded with zeros.
    """
    window = torch.hann_window(scale.n_fft, dtype=wav.dtype, device=wav.device)
    return torch.stft(
        wav.squeeze(1),
        scale.n_fft,
        scale.hop_samples,
        window=window / window.square().sum().sqrt(),
        center=True,
        # Padding with zeros, unlike reflection, has no shortest clip and makes up no sound.
        pad_mode="constant",
        return_complex=True,
    )


def magnitudes(wav: torch.Tensor, scale: MelScale, *, floor: float = 0.0) -> torch.Tensor:
    """Gives STFT magnitudes [B, n_fft // 2 + 1, frames] of mono audio [B, 1, L]; see `complex_spectrum`.

    No magnitude is below `floor`; with a floor the gradient at silence is finite.
    """
    spectrum = complex_spectrum(wav, scale)
    return (spectrum.real.square() + spectrum.imag.square() + floor**2).sqrt()
