"""Log-mel spectra as frames: coarse in what the ear is coarse in, and without a codec. Griffin-Lim leads back.

Bands are triangles of peak 1, evenly spaced on the mel scale by the HTK formula, from 0 Hz up, over magnitudes (not
powers): torchaudio's `mel_scale="htk"`, `norm=None`. Frames are cut as a codec's are, frame n centred on the middle
of its own hop, with silence before the sound and behind it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property

import torch

from micro_musicgen.audio.mel import MelScale, mel_filters
from micro_musicgen.contracts import Codec
from micro_musicgen.diffusion.representation import Representation, representations

FLOOR = 1e-4
"""Silence: no band is below it before the logarithm. White noise of that RMS is a bit below 16-bit audio's last bit."""
GRIFFIN_LIM_STEPS = 64
_MOMENTUM = 0.99  # of the fast Griffin-Lim algorithm (Perraudin, Balazs, Soendergaard 2013)
_NON_NEGATIVE_STEPS = 32
_LEAST = 1e-8


@dataclass(frozen=True)
class MelFrames:
    """Natural logarithms of mel magnitudes, [B, n_mels, T]. Invariant: encode is a function of each clip alone.

    The window has unit energy, so white noise has magnitude about its RMS at every resolution.
    """

    name: str
    sample_rate: int
    scale: MelScale

    @property
    def channels(self) -> int:
        """The number of bands."""
        return self.scale.n_mels

    @property
    def hop_samples(self) -> int:
        """Samples that one frame stands for."""
        return self.scale.hop_samples

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.scale.hop_samples

    @cached_property
    def content_hash(self) -> str:
        """Names the settings."""
        facts = {"sample_rate": self.sample_rate, "floor": FLOOR, "version": 1, **asdict(self.scale)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _filters(self) -> torch.Tensor:
        """The bands, float32 [n_mels, n_fft // 2 + 1]."""
        return mel_filters(self.scale, self.sample_rate).T.float()

    @cached_property
    def _inverse(self) -> torch.Tensor:
        """The pseudo-inverse of the bands, float32 [n_fft // 2 + 1, n_mels]."""
        inverse: torch.Tensor = torch.linalg.pinv(mel_filters(self.scale, self.sample_rate).T)
        return inverse.float()

    @cached_property
    def _window(self) -> torch.Tensor:
        window = torch.hann_window(self.scale.n_fft, dtype=torch.float64)
        return (window / window.square().sum().sqrt()).float()

    @torch.no_grad()
    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives float32 log-mel frames [B, n_mels, T] of audio [B, 1, L], T = ceil(L / hop_samples)."""
        return (self._filters.to(wav.device) @ self.magnitudes(wav)).clamp(min=FLOOR).log()

    def magnitudes(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives the STFT magnitudes [B, n_fft // 2 + 1, T] that the bands are sums of."""
        n_fft, hop = self.scale.n_fft, self.scale.hop_samples
        missing = -wav.shape[-1] % hop
        margin = n_fft - hop
        padded = torch.nn.functional.pad(wav[:, 0].float(), (margin // 2, margin - margin // 2 + missing))
        window = self._window.to(wav.device)
        return torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True).abs()

    @torch.no_grad()
    def decode(self, frames: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, 1, T * hop_samples] whose frames are near to `frames`; the phases are Griffin-Lim's guess."""
        magnitudes = self.linear(frames.float())
        # One by one, so that what a clip becomes does not depend on its batch.
        return torch.stack([self._griffin_lim(clip) for clip in magnitudes])[:, None]

    def linear(self, frames: torch.Tensor) -> torch.Tensor:
        """Gives non-negative magnitudes [B, n_fft // 2 + 1, T] whose bands are nearly those of log-mel frames.

        The pseudo-inverse with its negative bins cut off, made better by multiplicative steps (Lee, Seung 2001), which
        keep every bin non-negative and never move away from the bands.
        """
        wanted = frames.exp()
        filters = self._filters.to(frames.device)
        found = (self._inverse.to(frames.device) @ wanted).clamp(min=_LEAST)
        pulled = filters.T @ wanted
        for _ in range(_NON_NEGATIVE_STEPS):
            found = found * (pulled / (filters.T @ (filters @ found)).clamp(min=_LEAST))
        return found

    def _griffin_lim(self, magnitudes: torch.Tensor) -> torch.Tensor:
        """Gives audio [T * hop_samples] of magnitudes [n_fft // 2 + 1, T]."""
        n_fft, hop = self.scale.n_fft, self.scale.hop_samples
        # torchaudio centres frame n on sample n * hop and reflects at the ends. Frames beyond both ends, the outermost
        # repeated, keep the ends out of what is kept, and make the shortest clip long enough.
        extra = math.ceil(n_fft / 2 / hop) + 1
        padded = torch.nn.functional.pad(magnitudes[None], (extra, extra), mode="replicate")[0]
        first = extra * hop - hop // 2
        wav = self._phased(padded)
        return wav[first : first + magnitudes.shape[-1] * hop]

    def _phased(self, magnitudes: torch.Tensor) -> torch.Tensor:
        from micro_musicgen import upstream

        upstream.patcher()  # torchaudio doesn't load everywhere without its patch
        from torchaudio.functional import griffinlim

        found: torch.Tensor = griffinlim(
            magnitudes,
            window=self._window.to(magnitudes.device),
            n_fft=self.scale.n_fft,
            hop_length=self.scale.hop_samples,
            win_length=self.scale.n_fft,
            power=1.0,
            n_iter=GRIFFIN_LIM_STEPS,
            momentum=_MOMENTUM,
            length=None,
            rand_init=False,  # as near as random phases on breaks, and the same every time
        )
        return found


@representations.register("mel_16k")
def make_mel_16k(codec: Codec | None) -> Representation:
    """Gives 80 bands of sound at 16 kHz, 62.5 frames a second."""
    return MelFrames("mel_16k", 16_000, MelScale(n_fft=1024, hop_samples=256, n_mels=80, f_min=0.0))


@representations.register("mel_32k")
def make_mel_32k(codec: Codec | None) -> Representation:
    """Gives 128 bands of sound at 32 kHz, 50 frames a second: those of the 32 kHz codecs here."""
    return MelFrames("mel_32k", 32_000, MelScale(n_fft=2048, hop_samples=640, n_mels=128, f_min=0.0))
