"""The sounds that the synthesised breakbeats are made of: drum one-shots and bass notes, numpy only.

A drum is a few decaying sines plus coloured noise, which is close to what the sampled funk breaks of jungle are once
they have been pitched up and compressed. Filters are spectral envelopes on a whole one-shot: no recursion, no scipy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Wave = npt.NDArray[np.float64]

DRUMS = ("kick", "snare", "ghost", "closed_hat", "open_hat", "ride", "crash")


@dataclass(frozen=True, kw_only=True)
class Kit:
    """One drum kit in one room. Invariant: `shots[name]` holds float64 one-shots [L] for every name in `DRUMS`.

    Several shots of a name are takes of the same drum; a player never hits twice alike.
    """

    name: str
    shots: dict[str, tuple[Wave, ...]]
    room: Wave
    drive: float


def _seconds(duration_s: float, sample_rate: int) -> Wave:
    return np.arange(round(duration_s * sample_rate), dtype=np.float64) / sample_rate


def _decay(t: Wave, half_s: float) -> Wave:
    """Gives an envelope that halves every `half_s` seconds, with a 0.5 ms attack against clicks."""
    return np.asarray(np.exp2(-t / half_s) * np.minimum(1.0, t / 5e-4), dtype=np.float64)


def _coloured_noise(
    rng: np.random.Generator, num_samples: int, sample_rate: int, *, low_hz: float, high_hz: float
) -> Wave:
    """Gives unit-RMS noise [L] between two corner frequencies, falling 12 dB an octave beyond each."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequency = np.maximum(np.fft.rfftfreq(num_samples, 1 / sample_rate), 1.0)
    gain = 1 / (1 + (low_hz / frequency) ** 2) / (1 + (frequency / high_hz) ** 2)
    noise: Wave = np.fft.irfft(spectrum * gain, num_samples)
    return np.asarray(noise / np.sqrt(np.mean(noise**2) + 1e-12), dtype=np.float64)


def _peak(wave: Wave, level: float) -> Wave:
    return np.asarray(wave * (level / np.max(np.abs(wave))), dtype=np.float64)


def kick(rng: np.random.Generator, sample_rate: int, *, tune: float, length: float) -> Wave:
    """Gives a kick [L]: a sine that falls to 48 Hz times `tune`, with a beater click."""
    t = _seconds(0.32 * length, sample_rate)
    frequency = 48 * tune * (1 + 3.2 * np.exp(-t / 0.018))
    body = np.sin(2 * np.pi * np.cumsum(frequency) / sample_rate) * _decay(t, 0.055 * length)
    click = _coloured_noise(rng, len(t), sample_rate, low_hz=900, high_hz=5000) * _decay(t, 0.002)
    return _peak(body + 0.12 * click, 1.0)


def snare(rng: np.random.Generator, sample_rate: int, *, tune: float, length: float, bright: float) -> Wave:
    """Gives a snare [L]: two drum modes under a rattle of noise."""
    t = _seconds(0.3 * length, sample_rate)
    bend = 1 + 0.25 * np.exp(-t / 0.012)
    modes = sum(
        level * np.sin(2 * np.pi * np.cumsum(hz * tune * bend) / sample_rate) * _decay(t, half * length)
        for hz, level, half in ((190, 1.0, 0.03), (335, 0.6, 0.02), (520, 0.25, 0.012))
    )
    rattle = _coloured_noise(rng, len(t), sample_rate, low_hz=1200, high_hz=4500 * bright)
    return _peak(modes + 0.45 * rattle * _decay(t, 0.042 * length), 0.9)


def cymbal(
    rng: np.random.Generator, sample_rate: int, *, duration_s: float, half_s: float, low_hz: float, bell: float
) -> Wave:
    """Gives a hat, ride or crash [L]: inharmonic partials (`bell` of them loud) over hissing noise."""
    t = _seconds(duration_s, sample_rate)
    partials = low_hz * np.array([0.52, 0.71, 0.93, 1.0, 1.34, 1.71]) * (1 + 0.01 * rng.standard_normal(6))
    phases = 2 * np.pi * (partials[:, None] * t + rng.random(6)[:, None])
    metal = np.sin(phases).sum(axis=0) / 6
    hiss = _coloured_noise(rng, len(t), sample_rate, low_hz=low_hz, high_hz=13000)
    fade = np.minimum(1.0, (duration_s - t) / 0.01)
    return _peak((bell * metal + 0.4 * hiss) * _decay(t, half_s) * fade, 0.5)


def make_kit(rng: np.random.Generator, sample_rate: int, name: str, *, takes: int = 2) -> Kit:
    """Gives a kit with its own tuning, decays, noise colours, room and drive, drawn from `rng`."""
    tune, length, bright = rng.uniform(0.85, 1.3), rng.uniform(0.75, 1.3), rng.uniform(0.6, 1.6)
    hat_hz, ride_hz = rng.uniform(5500, 8500), rng.uniform(3200, 5200)

    def take(drum: str) -> Wave:
        wobble = 1 + 0.02 * rng.standard_normal()
        if drum == "kick":
            return kick(rng, sample_rate, tune=tune * wobble, length=length)
        if drum == "snare":
            return snare(rng, sample_rate, tune=tune * wobble, length=length, bright=bright)
        if drum == "ghost":
            return 0.28 * snare(rng, sample_rate, tune=1.06 * tune * wobble, length=0.6 * length, bright=0.6 * bright)
        duration_s, half_s, low_hz, bell = {
            "closed_hat": (0.07, 0.012, hat_hz, 0.2),
            "open_hat": (0.28 * length, 0.07 * length, hat_hz, 0.3),
            "ride": (0.35, 0.06, ride_hz, 0.8),
            "crash": (1.1 * length, 0.22 * length, 0.9 * ride_hz, 0.3),
        }[drum]
        return cymbal(rng, sample_rate, duration_s=duration_s, half_s=half_s, low_hz=low_hz * wobble, bell=bell)

    shots = {drum: tuple(take(drum) for _ in range(takes)) for drum in DRUMS}
    t = _seconds(0.12, sample_rate)
    room = _coloured_noise(rng, len(t), sample_rate, low_hz=150, high_hz=6000) * _decay(t, rng.uniform(0.008, 0.02))
    return Kit(name=name, shots=shots, room=_peak(room, 0.05), drive=rng.uniform(1.2, 2.6))


def room_echo(rng: np.random.Generator, sample_rate: int, *, half_s: float, level: float = 0.05) -> Wave:
    """Gives the echo [L] of a room, which halves every `half_s` seconds."""
    t = _seconds(8 * half_s, sample_rate)
    return _peak(_coloured_noise(rng, len(t), sample_rate, low_hz=150, high_hz=6000) * _decay(t, half_s), level)


def bass_note(
    sample_rate: int, *, frequency: float, duration_s: float, cutoff: float, glide: float, is_saw: bool
) -> Wave:
    """Gives a bass note [L], peak about 1: a sine, or a saw through a low-pass that closes as the note sounds.

    cutoff: how many harmonics the low-pass lets through at first. glide: start pitch over final pitch, 60 ms apart.
    """
    t = _seconds(duration_s, sample_rate)
    phase = 2 * np.pi * np.cumsum(frequency * (1 + (glide - 1) * np.exp(-t / 0.02))) / sample_rate
    envelope = np.minimum(1.0, t / 0.004) * np.minimum(1.0, (duration_s - t) / 0.015) * np.exp2(-t / 0.6)
    if not is_saw:
        return np.asarray(np.tanh(1.6 * np.sin(phase)) * envelope, dtype=np.float64)
    corner = 1.5 + cutoff * np.exp(-t / 0.09)
    # A sum of harmonics, each faded by the moving corner (24 dB an octave), is a swept saw without a recursive filter.
    harmonics = range(1, max(2, min(25, int(0.4 * sample_rate / frequency))))
    wave = sum(np.sin(n * phase) / n / (1 + (n / corner) ** 4) for n in harmonics)
    return np.asarray(wave * envelope, dtype=np.float64)
