"""What a codec is trained to get right: the waveform a little, its spectra at several resolutions a lot.

    l1      mean |x - y| of the samples: phase, and with it bass and attacks
    msspec  mean |ln mel(x) - ln mel(y)|: what is heard, quiet sounds as much as loud ones
    mrstft  |X - Y| / |X| of linear magnitudes: the loud parts, weighted as energy is
    low     the same of complex spectra below a few hundred Hz: there a frame of 20 ms is about one period, and codes
            without phase can only make tones at multiples of the frame rate, which turns every bass line into a hum

The weights and what they apply to come from the Hydra sections `losses` and `spectral`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from micro_musicgen.audio.mel import MelScale, at_rate, complex_spectrum, magnitudes, mel_filters
from micro_musicgen.errors import MicroMusicGenError

MAGNITUDE_FLOOR = 3e-5
"""-90 dB under the root, so that the gradient of a magnitude at silence is finite."""

UPSTREAM_ONLY = ("l2", "mel", "sisnr")
"""Losses that audiocraft's solver knows and ours does without; their weight has to be 0."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses and the resolutions of the spectral ones, checked.

    adv, feat: weights of the adversary's verdict and of its feature distance; used when there are adversaries.
    low: weight of `low`, whose band ends at low_hz. log_floor: magnitude under which two sounds are equally quiet.
    """

    l1: float
    msspec: float
    mrstft: float
    adv: float
    feat: float
    low: float
    low_hz: float
    resolutions: tuple[MelScale, ...]
    log_floor: float

    @classmethod
    def parse(cls, losses: Mapping[str, Any], spectral: Mapping[str, Any]) -> LossConfig:
        """Gives the config that the two Hydra sections describe.

        Raises:
            MicroMusicGenError: unknown or missing keys, a negative weight, a loss that only upstream has: all at once.
        """
        of_spectra = ["low", "low_hz", "resolutions", "log_floor"]
        weights = [f.name for f in fields(cls) if f.name not in of_spectra]
        known = {"losses": [*weights, *UPSTREAM_ONLY], "spectral": of_spectra}
        faults = []
        for section, given in (("losses", losses), ("spectral", spectral)):
            faults += [f"unknown key {section}.{key}" for key in sorted(set(given) - set(known[section]))]
            required = set(known[section]) - set(UPSTREAM_ONLY)
            faults += [f"missing key {section}.{key}" for key in sorted(required - set(given))]
        faults += [f"losses.{key}={value} is negative" for key, value in losses.items() if value < 0]
        faults += [
            f"spectral.{key}={spectral[key]} is negative" for key in ("low", "low_hz") if spectral.get(key, 0) < 0
        ]
        faults += [
            f"losses.{key}={losses[key]} is upstream's only; set it to 0" for key in UPSTREAM_ONLY if losses.get(key)
        ]
        if faults:
            raise MicroMusicGenError("; ".join(faults))
        return cls(
            **{name: float(losses[name]) for name in weights},
            low=float(spectral["low"]),
            low_hz=float(spectral["low_hz"]),
            resolutions=_resolutions(spectral["resolutions"]),
            log_floor=float(spectral["log_floor"]),
        )

    def at_rate(self, sample_rate: float, nominal_rate: float, max_hz: float | None = None) -> LossConfig:
        """Gives the config whose spectra look at sound of `sample_rate` as these do at sound of `nominal_rate`."""
        found = tuple(at_rate(scale, sample_rate, nominal_rate, max_hz) for scale in self.resolutions)
        return replace(self, resolutions=found)


def _resolutions(rows: Sequence[Sequence[int]]) -> tuple[MelScale, ...]:
    if not rows or any(len(row) != 3 for row in rows):
        raise MicroMusicGenError("spectral.resolutions must be a list of [n_fft, hop, n_mels], in samples and bands")
    return tuple(MelScale(n_fft=int(n), hop_samples=int(hop), n_mels=int(mels)) for n, hop, mels in rows)


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    ratio: torch.Tensor = torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted)
    return ratio


class ReconstructionLoss(nn.Module):
    """The distances of a decoded clip from its original, unweighted and weighted.

    sample_rate: in Hz, of clips in beat time the one that they have at their tempo; the config's resolutions are then
    brought to that rate first (`LossConfig.at_rate`).
    """

    def __init__(self, config: LossConfig, sample_rate: float) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = sample_rate
        for index, scale in enumerate(config.resolutions):
            # Not persistent: a loss has nothing to remember.
            self.register_buffer(f"filters{index}", mel_filters(scale, sample_rate).T.float(), persistent=False)

    def forward(self, estimate: torch.Tensor, reference: torch.Tensor) -> dict[str, torch.Tensor]:
        """Gives the unweighted losses `l1`, `msspec`, `mrstft`, `low` of audio [B, 1, L], each a scalar."""
        # Spectra stay in fp32: the square of a quiet bin underflows in half precision.
        estimate, reference = estimate.float(), reference.float()
        log_distance, convergence = torch.zeros(2, device=reference.device)
        for index, scale in enumerate(self.config.resolutions):
            found = magnitudes(estimate, scale, floor=MAGNITUDE_FLOOR)
            wanted = magnitudes(reference, scale, floor=MAGNITUDE_FLOOR)
            filters, floor = getattr(self, f"filters{index}"), self.config.log_floor
            logs = [torch.log(filters @ spectrum + floor) for spectrum in (found, wanted)]
            log_distance = log_distance + (logs[0] - logs[1]).abs().mean()
            convergence = convergence + _relative(found, wanted)
        count = len(self.config.resolutions)
        return {
            "l1": (estimate - reference).abs().mean(),
            "msspec": log_distance / count,
            "mrstft": convergence / count,
            "low": self._low(estimate, reference),
        }

    def _low(self, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Gives the error of the complex spectrum below `low_hz`, over the spectrum itself; the longest window's."""
        scale = max(self.config.resolutions, key=lambda scale: scale.n_fft)
        bins = int(self.config.low_hz / self.sample_rate * scale.n_fft) + 1
        wanted = complex_spectrum(reference, scale)[:, :bins]
        error = complex_spectrum(estimate, scale)[:, :bins] - wanted
        size = torch.view_as_real(wanted).abs().mean().clamp(min=MAGNITUDE_FLOOR)
        return torch.view_as_real(error).abs().mean() / size

    def weighted(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Gives the sum of `losses` (any of the config's names) under the config's weights."""
        total = torch.stack([getattr(self.config, name) * value for name, value in losses.items()])
        return total.sum()
