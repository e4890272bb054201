"""How far a decoded clip is from its original: as spectra, which is what ears compare, and as waveforms."""

from __future__ import annotations

import torch

from micro_musicgen.audio.mel import MelScale, magnitudes, mel_filters
from micro_musicgen.errors import MicroMusicGenError

MEL = MelScale(n_fft=1024, hop_samples=256, n_mels=64)
"""The resolution of every mel distance that this project reports."""

FLOOR = 1e-5
"""-100 dB: digital silence compares as that."""


def _pair(estimate: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives both clips in float64: sums over a long clip lose digits in float32."""
    if estimate.shape != reference.shape:
        raise MicroMusicGenError(
            f"clips of shapes {tuple(estimate.shape)} and {tuple(reference.shape)} cannot be compared; cut them alike"
        )
    return estimate.detach().double().cpu(), reference.detach().double().cpu()


def log_mel_distance(
    estimate: torch.Tensor, reference: torch.Tensor, sample_rate: float, *, scale: MelScale = MEL
) -> float:
    """Gives the mean distance of the natural logs of two mel spectrograms; times 8.7 it is decibels.

    Both mono [B, 1, L]. 0 for equal clips; a gain g everywhere gives |ln g|. Any level, silence included, is finite.
    sample_rate, scale: of clips in beat time the rate that they have at their tempo, and `at_rate(MEL, ...)`.

    Raises:
        MicroMusicGenError: the shapes differ.
    """
    filters = mel_filters(scale, sample_rate).T
    logs = [torch.log(filters @ magnitudes(wav, scale) + FLOOR) for wav in _pair(estimate, reference)]
    return float((logs[0] - logs[1]).abs().mean())


def spectral_convergence(estimate: torch.Tensor, reference: torch.Tensor) -> float:
    """Gives the error of the magnitude spectrogram over its norm: 0 for equal clips, 1 for silence.

    Both mono [B, 1, L]. 0 when both are silent, infinite when only the reference is.

    Raises:
        MicroMusicGenError: the shapes differ.
    """
    found, wanted = (magnitudes(wav, MEL) for wav in _pair(estimate, reference))
    error, size = float((found - wanted).norm()), float(wanted.norm())
    return error / size if size else (float("inf") if error else 0.0)


def log_magnitude_error(estimate: torch.Tensor, reference: torch.Tensor) -> float:
    """Gives the mean distance of the natural logs of two magnitude spectrograms, every frequency alike.

    Both mono [B, 1, L]. 0 for equal clips; a gain g everywhere gives |ln g|. Any level, silence included, is finite.

    Raises:
        MicroMusicGenError: the shapes differ.
    """
    found, wanted = (torch.log(magnitudes(wav, MEL) + FLOOR) for wav in _pair(estimate, reference))
    return float((found - wanted).abs().mean())


def si_sdr(estimate: torch.Tensor, reference: torch.Tensor) -> float:
    """Gives the scale-invariant signal-to-distortion ratio in dB, averaged over the clips [B, 1, L].

    Clamped to [-100, 100] dB a clip, so that a perfect or a silent one leaves the mean finite.

    Raises:
        MicroMusicGenError: the shapes differ.
    """
    found, wanted = (wav.flatten(1) for wav in _pair(estimate, reference))
    found, wanted = (wav - wav.mean(dim=1, keepdim=True) for wav in (found, wanted))
    tiny = torch.finfo(torch.float64).tiny
    scale = (found * wanted).sum(dim=1, keepdim=True) / wanted.square().sum(dim=1, keepdim=True).clamp(min=tiny)
    signal = (scale * wanted).square().sum(dim=1)
    noise = (found - scale * wanted).square().sum(dim=1)
    ratio = 10 * torch.log10(signal.clamp(min=tiny) / noise.clamp(min=tiny))
    return float(ratio.clamp(-100, 100).mean())
