"""Procedural breakbeats: a few minutes of jungle from a seed, for the demo and for tests that need real-sounding audio.

The drummer plays amen-like bars; an editor then chops them as jungle producers do (beats swapped, stuttered, rolled);
most tracks get a bass line. Every track is a loop that closes exactly: what rings past its end rings on at its start.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from micro_musicgen.audio.voices import Kit, Wave, bass_note, make_kit

STEPS_PER_BAR = 16
BARS = (2, 2, 4, 4, 4, 8)
NUM_KITS = 4
PEAK = 0.9

# Sixteenth notes of one bar. K kick, S snare, g ghost snare, o open hat, C crash; '.' is nothing.
BREAKS: tuple[tuple[str, ...], ...] = (
    ("K.K.S..g.gKKS..g", "K.K.S..g.gKKS..g", "K.K.S..g.gK...S.", "g.KKS..g.gC...S."),
    ("K.K.S.....K.S..g", "K.Kg..S...K.S.g.", "K.K.S.....K.S..g", "K..KS..K.gK.S.SS"),
    ("K...S..K.gK.S...", "K..gS..K.gK.S..o", "K...S..K.gK.S...", "K..gS.K..gKoS.gS"),
    ("K..KS.gK..K.S.g.", "K..KS.g...KKS..o", "K..KS.gK..K.S.g.", "KS.KS.gS.SK.SgSS"),
    ("K.....S.K.KgS...", "K.K...S..gK.S.g.", "K.....S.K.KgS...", "K.KSg.S.K.SgS.SS"),
)
HATS = ("x.x.x.x.x.x.x.x.", "x.xxx.x.x.xxx.x.", "..x...x...x...x.", "x...x...x...x...")
ACCENTS = (1.0, 0.55, 0.8, 0.55)
DRUM_OF = {"K": "kick", "S": "snare", "g": "ghost", "o": "open_hat", "C": "crash"}
SCALE = (0, 3, 5, 7, 10, 12)  # minor pentatonic, semitones above the root


@dataclass(frozen=True, kw_only=True)
class SynthTrack:
    """A loop of 2 to 8 bars. wav: float32 [L], peak 0.9; bpm: beats a minute; kit: which drums it was played on."""

    name: str
    wav: npt.NDArray[np.float32]
    sample_rate: int
    bpm: float
    kit: str


@dataclass(frozen=True)
class Hit:
    """One stroke of a drum. step: sixteenth notes from the start of the loop."""

    step: float
    drum: str
    velocity: float


def synthesise(seed: int, *, minutes: float = 4.0, sample_rate: int = 32000) -> list[SynthTrack]:
    """Gives breakbeat loops that last `minutes` in all (within 5 % from one minute up), the same for the same seed."""
    rng = np.random.default_rng(seed)
    kits = [make_kit(rng, sample_rate, f"kit{index}") for index in range(NUM_KITS)]
    tracks: list[SynthTrack] = []
    left_s = minutes * 60
    while left_s > 1.5 or not tracks:
        bpm = int(rng.integers(160, 176))
        bar_s = 240 / bpm
        # Kits take turns, so that a split by file leaves every kit on both sides.
        kit = kits[len(tracks) % NUM_KITS]
        bars = min(int(rng.choice(BARS)), max(1, round(left_s / bar_s)))
        name = f"break_{len(tracks):03d}_{kit.name}_{bpm}bpm_{bars}bars"
        wav = _render(rng, kit, bpm=bpm, bars=bars, sample_rate=sample_rate)
        tracks.append(SynthTrack(name=name, wav=wav, sample_rate=sample_rate, bpm=float(bpm), kit=kit.name))
        left_s -= bars * bar_s
    return tracks


def write_breaks(folder: Path, seed: int, minutes: float = 4.0) -> list[Path]:
    """Gives the wav files that it wrote into `folder`: one for each track of `synthesise`."""
    from micro_musicgen.audio.io import write_wav

    paths = []
    for track in synthesise(seed, minutes=minutes):
        path = Path(folder) / f"{track.name}.wav"
        write_wav(path, track.wav[None], track.sample_rate)
        paths.append(path)
    return paths


def _render(rng: np.random.Generator, kit: Kit, *, bpm: int, bars: int, sample_rate: int) -> npt.NDArray[np.float32]:
    """Gives one finished loop: drums through the kit's room and drive, then the bass."""
    step_samples = 15 * sample_rate / bpm
    num_samples = round(bars * STEPS_PER_BAR * step_samples)
    swing = rng.uniform(0.0, 0.12)
    drums = np.zeros(num_samples)
    for hit in _play_drums(rng, bars):
        late = swing if int(hit.step) % 2 else 0.0
        shots = kit.shots[hit.drum]
        shot = shots[int(rng.integers(len(shots)))]
        add_wrapped(drums, hit.velocity * shot, round((hit.step + late) * step_samples))
    drums = in_room(drums, kit.room)
    # Tape hiss: digital silence between hits is nothing that a sampled break has, nor that a log spectrum likes.
    hiss = rng.uniform(3e-4, 1e-3) * rng.standard_normal(num_samples)
    mix = np.tanh(kit.drive * drums / np.max(np.abs(drums))) + hiss
    if rng.random() < 0.6:
        bass = _play_bass(rng, num_samples, bars=bars, step_samples=step_samples, sample_rate=sample_rate)
        mix = mix + rng.uniform(0.3, 0.5) * bass
    return np.asarray(mix * (PEAK / np.max(np.abs(mix))), dtype=np.float32)


def _play_drums(rng: np.random.Generator, bars: int) -> list[Hit]:
    """Gives the hits of a loop: a break, its hats, a fill in the last bar of every four, and chops."""
    phrase = BREAKS[int(rng.integers(len(BREAKS)))]
    hats = HATS[int(rng.integers(len(HATS)))]
    cymbal = "ride" if rng.random() < 0.35 else "closed_hat"
    chop_rate = rng.choice((0.0, 0.15, 0.4))
    hits: list[Hit] = []
    for bar in range(bars):
        line = phrase[bar % 4] if bars >= 4 else phrase[3 if bar == bars - 1 and rng.random() < 0.5 else bar % 2]
        if bar and rng.random() < chop_rate:
            line = _chop(rng, line)
        hits += _bar_hits(rng, line, hats, cymbal, first_step=bar * STEPS_PER_BAR)
    if bars >= 4 and rng.random() < 0.5:
        hits.append(Hit(0, "crash", 0.7))
    return hits


def _chop(rng: np.random.Generator, line: str) -> str:
    """Gives the bar with its beats re-ordered, one of them stuttered, or its last beat turned into a roll."""
    beats = [line[i : i + 4] for i in range(0, STEPS_PER_BAR, 4)]
    kind = int(rng.integers(3))
    if kind == 0:
        beats = [beats[i] for i in (0, *rng.permutation([1, 2, 3]))]
    elif kind == 1:
        beats[2] = beats[int(rng.integers(2))]
        beats[3] = beats[2][:2] * 2
    else:
        beats[3] = "SgSS"
    return "".join(beats)


def _bar_hits(rng: np.random.Generator, line: str, hats: str, cymbal: str, *, first_step: int) -> list[Hit]:
    hits = []
    for step, mark in enumerate(line):
        if mark in DRUM_OF:
            hits.append(Hit(first_step + step, DRUM_OF[mark], rng.uniform(0.85, 1.0)))
    for step, mark in enumerate(hats):
        if mark == "x" and line[step] not in "oC":
            hits.append(Hit(first_step + step, cymbal, ACCENTS[step % 4] * rng.uniform(0.5, 0.75)))
    return hits


def _play_bass(rng: np.random.Generator, num_samples: int, *, bars: int, step_samples: float, sample_rate: int) -> Wave:
    """Gives the bass [L] of a loop: a two-bar riff on a minor pentatonic, repeated, its octave jumping now and then."""
    root_hz = 55 * 2 ** (int(rng.integers(-5, 5)) / 12)
    is_saw, cutoff = bool(rng.random() < 0.5), rng.uniform(5, 16)
    riff = [
        (start, length, int(rng.choice(SCALE)), float(rng.choice((1.0, 1.0, 0.75))))
        for start, length in _riff_rhythm(rng)
    ]

    @functools.cache  # the riff repeats: most of a long loop's notes are known
    def note(length: int, semitones: int, glide: float) -> Wave:
        frequency, duration_s = root_hz * 2 ** (semitones / 12), 0.92 * length * step_samples / sample_rate
        return bass_note(
            sample_rate, frequency=frequency, duration_s=duration_s, cutoff=cutoff, glide=glide, is_saw=is_saw
        )

    bass = np.zeros(num_samples)
    for first in range(0, bars * STEPS_PER_BAR, 2 * STEPS_PER_BAR):
        for start, length, semitones, glide in riff:
            if first + start < bars * STEPS_PER_BAR:
                octave = 12 if rng.random() < 0.1 else 0
                sound = note(length, semitones + octave, glide)
                add_wrapped(bass, sound, round((first + start) * step_samples))
    return np.asarray(bass / (np.max(np.abs(bass)) + 1e-9), dtype=np.float64)


def _riff_rhythm(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Gives (start, length) in steps of the notes of two bars, with rests between some of them."""
    rhythm: list[tuple[int, int]] = []
    step = 0
    while step < 2 * STEPS_PER_BAR:
        length = min(int(rng.choice((2, 3, 3, 4, 6, 8))), 2 * STEPS_PER_BAR - step)
        if not rhythm or rng.random() < 0.75:
            rhythm.append((step, length))
        step += length
    return rhythm


def add_wrapped(loop: Wave, sound: Wave, start: int) -> None:
    """Adds `sound` to `loop` at `start`; what passes the end goes on at the beginning."""
    start %= len(loop)
    sound = sound[: len(loop)]
    head = min(len(sound), len(loop) - start)
    loop[start : start + head] += sound[:head]
    loop[: len(sound) - head] += sound[head:]


def in_room(loop: Wave, room: Wave) -> Wave:
    """Gives `loop` plus its echo from `room`, wrapped, so that the loop still closes."""
    # Padded to a power of two: the length of a loop is often a prime number, for which an FFT takes ten times as long.
    padded = 1 << (len(loop) + len(room)).bit_length()
    echo = np.fft.irfft(np.fft.rfft(loop, padded) * np.fft.rfft(room, padded), padded)
    wet = loop.copy()
    add_wrapped(wet, echo[: len(loop)], 0)
    add_wrapped(wet, echo[len(loop) : len(loop) + len(room)], 0)
    return wet


def total_seconds(tracks: Sequence[SynthTrack]) -> float:
    """Gives the playing time of all tracks together."""
    return sum(len(track.wav) / track.sample_rate for track in tracks)
