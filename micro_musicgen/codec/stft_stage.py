"""Audio as complex spectra and back, exactly: the first stage of an encoder and the last of a decoder.

Frame f covers the n_fft samples that end where hop f ends, so it holds nothing of later hops: analysis is causal, and
a beat of whole hops has whole frames. Audio of hop f is the sum of frames f to f + n_fft / hop - 1: synthesis has to
wait for `tail` more frames, which is the only look-ahead there is.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from micro_musicgen.codec.beat_layers import Past
from micro_musicgen.errors import MicroMusicGenError

MAX_FFT = 1 << 16
QUIET = 1e-8
"""Magnitude under which a compressed bin's gradient is that of silence."""


class StftStage(nn.Module):
    """Complex STFT with a Hann window, magnitudes raised to `power`, as real numbers [B, 2 * bins, F].

    The first half of the channels is real, the second imaginary. Invariant: `synthesis` of `analysis` with its tail is
    the audio, whatever the power. The window has unit energy: white noise has the magnitude of its RMS.

    Raises:
        MicroMusicGenError: sizes under which frames don't add up to the audio, or a power that loses the phase.
    """

    window: torch.Tensor

    def __init__(self, n_fft: int, hop_samples: int, power: float = 1.0) -> None:
        super().__init__()
        faults = stft_faults(n_fft, hop_samples, power)
        if faults:
            raise MicroMusicGenError("; ".join(faults))
        self.n_fft, self.hop_samples, self.power = n_fft, hop_samples, float(power)
        self.bins = n_fft // 2 + 1
        self.tail = n_fft // hop_samples - 1
        # On the CPU whatever the default: it is no weight, so nobody would fill it after a build on the meta device.
        window = torch.hann_window(n_fft, device="cpu")
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)

    @property
    def channels(self) -> int:
        """Real numbers of a frame."""
        return 2 * self.bins

    @property
    def delay_samples(self) -> int:
        """Samples by which `synthesis` is behind its frames."""
        return self.tail * self.hop_samples

    def analysis(self, wav: torch.Tensor, *, with_tail: bool = False) -> torch.Tensor:
        """Gives frames [B, 2 * bins, F] of mono audio [B, 1, L], F = L / hop_samples.

        with_tail: also the `tail` frames that `synthesis` needs to give the last hops.

        Raises:
            MicroMusicGenError: L is no multiple of the hop.
        """
        if wav.shape[-1] % self.hop_samples:
            raise MicroMusicGenError(
                f"audio of {wav.shape[-1]} samples is no whole number of hops of {self.hop_samples}; cut or pad it"
            )
        padded = functional.pad(wav[:, 0], (self.delay_samples, self.delay_samples if with_tail else 0))
        spectrum = torch.stft(
            padded, self.n_fft, self.hop_samples, window=self.window, center=False, return_complex=True
        )
        parts = torch.view_as_real(spectrum)
        size = parts.square().sum(dim=-1, keepdim=True).add(QUIET**2).sqrt()
        return (parts * size ** (self.power - 1)).permute(0, 3, 1, 2).flatten(1, 2)

    def synthesis(self, frames: torch.Tensor, past: Past | None = None) -> torch.Tensor:
        """Gives audio [B, 1, F * hop_samples] of frames [B, 2 * bins, F], `delay_samples` late.

        So the first `delay_samples` belong to what was before frame 0: silence, of frames that `analysis` gave.
        """
        parts = frames.view(len(frames), 2, self.bins, frames.shape[-1]).permute(0, 2, 3, 1)
        size = parts.square().sum(dim=-1, keepdim=True).add(QUIET**2).sqrt()
        # The inverse of a' = a * |a|^(p - 1); QUIET makes it inexact only far below what a float32 spectrum holds.
        parts = (parts * size ** (1 / self.power - 1)).contiguous()
        pieces = torch.fft.irfft(torch.view_as_complex(parts), n=self.n_fft, dim=1) * self.window[:, None]
        # Frames before the first of this piece reach into it: they are kept, or were silence.
        joined = functional.pad(pieces, (self.tail, 0)) if past is None else past.join(self, pieces, self.tail)
        length = (joined.shape[-1] + self.tail) * self.hop_samples
        summed = functional.fold(joined, (1, length), (1, self.n_fft), stride=(1, self.hop_samples))[:, 0]
        begin = self.delay_samples
        # Squared Hann windows add up to a constant, which is 1 / hop for a window of unit energy.
        return summed[..., begin : begin + frames.shape[-1] * self.hop_samples] * self.hop_samples


def stft_faults(n_fft: int, hop_samples: int, power: float) -> list[str]:
    """Gives what is wrong with these sizes, a sentence each; nothing when they will do."""
    faults = []
    if not 8 <= n_fft <= MAX_FFT or n_fft % 2:
        faults.append(f"stft.n_fft={n_fft} must be an even number from 8 to {MAX_FFT}")
    # Squared Hann windows have three harmonics, which cancel from three frames a window on.
    if hop_samples < 1 or n_fft % max(1, hop_samples) or n_fft // max(1, hop_samples) < 3:
        faults.append(f"stft.hop_samples={hop_samples} must be a third of n_fft {n_fft} or a smaller whole part of it")
    if not 0.1 <= power <= 1:
        faults.append(f"stft.power={power:g} must lie in [0.1, 1]")
    return faults
