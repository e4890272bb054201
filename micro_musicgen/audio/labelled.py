"""Labelled loops: drums of which it is known what was asked for, to prove that a model does what it is told.

Every track has five attributes from a closed vocabulary, and nothing else about it depends on them: a judge trained
on these tracks hears the attribute, not what happens to go with it. Kits are the same for every seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from micro_musicgen.audio.labelled_words import describe
from micro_musicgen.audio.synth import BREAKS, DRUM_OF, PEAK, SCALE, STEPS_PER_BAR, Hit, add_wrapped, in_room
from micro_musicgen.audio.voices import DRUMS, Kit, Wave, bass_note, cymbal, kick, room_echo, snare
from micro_musicgen.errors import MicroMusicGenError

Attributes = Mapping[str, str]
"""Attribute -> value, both from `ATTRIBUTES`."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kit": ("one", "two", "three", "four"),
    "tempo": ("slow", "fast"),
    "bass": ("no", "yes"),
    "tone": ("dark", "bright"),
    "style": ("breakbeat", "four"),
}
"""What a track can be. `four` is four on the floor; of the kits, a set has the first `num_kits`."""

BPM = {"slow": (90, 110), "fast": (160, 175)}
"""Least and greatest tempo, beats a minute."""

_DARK_HZ, _BRIGHT_HZ = (900.0, 1300.0), 4000.0
_TAKES = 4
_EIGHTHS = "x.x.x.x.x.x.x.x."
_RIFFS = ((0, 3, 6, 10, 12), (0, 4, 6, 8, 12, 14), (2, 6, 10, 14), (0, 2, 5, 8, 11, 13))
_KICKS, _CLAPS, _OFFBEATS = "K...K...K...K...", "....S.......S...", "..o...o...o...o."


@dataclass(frozen=True, kw_only=True)
class LabelledTrack:
    """A loop of whole bars. wav: float32 [L], peak 0.9. description: one of many ways to say them all, or some."""

    name: str
    wav: npt.NDArray[np.float32]
    sample_rate: int
    bpm: int
    attributes: Attributes
    description: str

    def sidecar(self) -> dict[str, Any]:
        """Gives what `write_labelled` writes beside the sound."""
        said = self.attributes
        keywords = [f"kit {said['kit']}", "bass" if said["bass"] == "yes" else "no bass", said["tempo"]]
        return {
            "description": self.description,
            "genre": {"breakbeat": "breakbeat", "four": "house"}[said["style"]],
            "bpm": self.bpm,
            "moods": [said["tone"]],
            "keywords": keywords,
            "instrument": "drums",
            "title": self.name.replace("_", " "),
            "artist": "micro_musicgen",
            "license": "CC0-1.0",
            "source": "synthesised by micro_musicgen.audio.labelled",
            "attributes": dict(said),
        }


@dataclass(frozen=True)
class _KitSound:
    """How a kit sounds. tune, length: of drums, 1 is usual. bright: of the rattle. room_s: its echo halves so fast."""

    tune: float
    length: float
    bright: float
    hat_hz: float
    hat_half_s: float
    room_s: float
    drive: float


_KITS = {
    "one": _KitSound(tune=1.45, length=0.65, bright=1.6, hat_hz=8500, hat_half_s=0.010, room_s=0.006, drive=1.3),
    "two": _KitSound(tune=0.80, length=1.70, bright=0.6, hat_hz=5000, hat_half_s=0.030, room_s=0.030, drive=2.6),
    "three": _KitSound(tune=0.80, length=0.65, bright=0.6, hat_hz=8500, hat_half_s=0.030, room_s=0.006, drive=2.6),
    "four": _KitSound(tune=1.45, length=1.70, bright=1.6, hat_hz=5000, hat_half_s=0.010, room_s=0.030, drive=1.3),
}


def combinations(num_kits: int = 2) -> list[dict[str, str]]:
    """Gives every combination of attributes once.

    Raises:
        MicroMusicGenError: there are not that many kits.
    """
    most = len(ATTRIBUTES["kit"])
    if not 1 <= num_kits <= most:
        raise MicroMusicGenError(f"num_kits {num_kits} must lie in 1..{most}")
    values = {**ATTRIBUTES, "kit": ATTRIBUTES["kit"][:num_kits]}
    return [dict(zip(values, found, strict=True)) for found in itertools.product(*values.values())]


def synthesise_labelled(
    seed: int, num_tracks: int, duration_s: float = 12.0, sample_rate: int = 32000, *, num_kits: int = 2
) -> list[LabelledTrack]:
    """Gives loops of about `duration_s` (to the nearest bar), the same for the same seed.

    All combinations of attributes come equally often, within one, in an order drawn from the seed. Half of the
    descriptions leave out one to three attributes, so that what is not said is heard as open.

    Raises:
        MicroMusicGenError: fewer than one track or kit, more kits than there are, or less than a second.
    """
    if num_tracks < 1 or duration_s < 1:
        raise MicroMusicGenError(f"{num_tracks} tracks of {duration_s:g} s; ask for one or more, of a second or more")
    rng = np.random.default_rng(seed)
    kits = {name: _make_kit(name, sample_rate) for name in ATTRIBUTES["kit"][:num_kits]}
    order = combinations(num_kits)
    tracks = []
    for index in range(num_tracks):
        if index % len(order) == 0:
            order = [order[place] for place in rng.permutation(len(order))]
        said = order[index % len(order)]
        bpm = int(rng.integers(BPM[said["tempo"]][0], BPM[said["tempo"]][1] + 1))
        bars = max(1, round(duration_s * bpm / 240))
        wav = _render(rng, kits[said["kit"]], said, bpm=bpm, bars=bars, sample_rate=sample_rate)
        name = f"loop_{index:04d}_{'_'.join(said.values())}_{bpm}bpm"
        tracks.append(
            LabelledTrack(
                name=name,
                wav=wav,
                sample_rate=sample_rate,
                bpm=bpm,
                attributes=said,
                description=describe(_told(said, rng), rng),
            )
        )
    return tracks


def write_labelled(
    folder: Path,
    seed: int,
    num_tracks: int,
    duration_s: float = 12.0,
    sample_rate: int = 32000,
    *,
    num_kits: int = 2,
) -> list[Path]:
    """Gives the wav files that it wrote into `folder`, one a track, each with its labels in a JSON file beside it."""
    from micro_musicgen.audio.io import write_wav
    from micro_musicgen.storage import write_json

    paths = []
    for track in synthesise_labelled(seed, num_tracks, duration_s, sample_rate, num_kits=num_kits):
        path = Path(folder) / f"{track.name}.wav"
        write_wav(path, track.wav[None], track.sample_rate)
        write_json(path.with_suffix(".json"), track.sidecar())
        paths.append(path)
    return paths


def _told(said: Attributes, rng: np.random.Generator) -> Attributes:
    """Gives the attributes that are told of a track: all, or all but some."""
    silent = rng.choice(list(said), size=int(rng.integers(1, 4)), replace=False) if rng.random() < 0.5 else ()
    return {name: value for name, value in said.items() if name not in silent}


def _render(
    rng: np.random.Generator, kit: Kit, said: Attributes, *, bpm: int, bars: int, sample_rate: int
) -> npt.NDArray[np.float32]:
    """Gives one finished loop: drums through the kit's room and drive, then the bass, then the tone of both."""
    step_samples = 15 * sample_rate / bpm
    num_samples = round(bars * STEPS_PER_BAR * step_samples)
    drums = np.zeros(num_samples)
    for hit in (_broken if said["style"] == "breakbeat" else _straight)(rng, bars):
        shots = kit.shots[hit.drum]
        shot = shots[int(rng.integers(len(shots)))]
        add_wrapped(drums, hit.velocity * shot, round(hit.step * step_samples))
    drums = in_room(drums, kit.room)
    mix = np.tanh(kit.drive * drums / np.max(np.abs(drums)))
    if said["bass"] == "yes":
        bass = _play_bass(rng, num_samples, bars=bars, step_samples=step_samples, sample_rate=sample_rate)
        mix = mix + rng.uniform(0.4, 0.5) * bass
    mix = _toned(rng, mix / np.max(np.abs(mix)), said["tone"], sample_rate)
    # Behind the tone: else the hiss of a dark track would say "dark" where nothing is played.
    mix = mix / np.max(np.abs(mix)) + rng.uniform(3e-4, 1e-3) * rng.standard_normal(num_samples)
    return np.asarray(mix * (PEAK / np.max(np.abs(mix))), dtype=np.float32)


def _broken(rng: np.random.Generator, bars: int) -> list[Hit]:
    """Gives the hits of a break, two bars of it over and over, a third of them with a fill at the end of four."""
    phrase = BREAKS[int(rng.integers(len(BREAKS)))]
    has_fill = rng.random() < 1 / 3
    hits = []
    for bar in range(bars):
        line = phrase[3] if has_fill and bar % 4 == 3 else phrase[bar % 2]
        hits += _strokes(rng, line, bar) + _strokes(rng, _hats_beside(line), bar)
    return hits


def _straight(rng: np.random.Generator, bars: int) -> list[Hit]:
    """Gives the hits of four kicks a bar, claps, open hats off the beat and, in half of the tracks, eighths."""
    has_eighths = rng.random() < 0.5
    hits = []
    for bar in range(bars):
        for line in (_KICKS, _CLAPS, _OFFBEATS, *([_hats_beside(_OFFBEATS)] if has_eighths else [])):
            hits += _strokes(rng, line, bar)
    return hits


def _hats_beside(line: str) -> str:
    """Gives eighths of the closed hat, leaving out where `line` has another cymbal."""
    return "".join("." if mark in "oC" else hat for mark, hat in zip(line, _EIGHTHS, strict=True))


def _strokes(rng: np.random.Generator, line: str, bar: int) -> list[Hit]:
    hits = []
    for step, mark in enumerate(line):
        if mark == "x":
            hits.append(Hit(bar * STEPS_PER_BAR + step, "closed_hat", rng.uniform(0.5, 0.75)))
        elif mark in DRUM_OF:
            hits.append(Hit(bar * STEPS_PER_BAR + step, DRUM_OF[mark], rng.uniform(0.85, 1.0)))
    return hits


def _play_bass(rng: np.random.Generator, num_samples: int, *, bars: int, step_samples: float, sample_rate: int) -> Wave:
    """Gives the bass [L] of a loop: one bar over and over, a saw well above the kicks and never silent for long."""
    root_hz = 65.4 * 2 ** (int(rng.integers(8)) / 12)
    starts = _RIFFS[int(rng.integers(len(_RIFFS)))]
    bass = np.zeros(num_samples)
    for start, end in itertools.pairwise((*starts, STEPS_PER_BAR + starts[0])):
        frequency = root_hz * 2 ** (int(rng.choice(SCALE[:4])) / 12)
        duration_s = 0.9 * (end - start) * step_samples / sample_rate
        note = bass_note(sample_rate, frequency=frequency, duration_s=duration_s, cutoff=8, glide=1, is_saw=True)
        for bar in range(bars):
            add_wrapped(bass, note, round((bar * STEPS_PER_BAR + start) * step_samples))
    return np.asarray(bass / np.max(np.abs(bass)), dtype=np.float64)


def _toned(rng: np.random.Generator, loop: Wave, tone: str, sample_rate: int) -> Wave:
    """Gives `loop` without its treble, or with more of it. It is filtered as a circle, so that it still closes."""
    size = 1 << 12
    frequency = np.fft.rfftfreq(size, 1 / sample_rate)
    if tone == "dark":
        gain = 1 / (1 + (frequency / rng.uniform(*_DARK_HZ)) ** 2)
    else:
        gain = 1 + 1.5 * frequency**2 / (frequency**2 + _BRIGHT_HZ**2)
    kernel = np.roll(np.fft.irfft(gain, size), size // 2) * np.hanning(size)
    padded = 1 << (len(loop) + size).bit_length()
    sound = np.fft.irfft(np.fft.rfft(loop, padded) * np.fft.rfft(kernel, padded), padded)[: len(loop) + size]
    toned = np.zeros(len(loop))
    for start in range(0, len(sound), len(loop)):
        add_wrapped(toned, sound[start : start + len(loop)], start - size // 2)
    return toned


def _make_kit(name: str, sample_rate: int) -> Kit:
    """Gives a kit that is the same for every set."""
    sound, rng = _KITS[name], np.random.default_rng(ATTRIBUTES["kit"].index(name))

    def take(drum: str) -> Wave:
        tune = sound.tune * (1 + 0.02 * rng.standard_normal())
        if drum == "kick":
            return kick(rng, sample_rate, tune=tune, length=sound.length)
        if drum in ("snare", "ghost"):
            level, length = (1.0, sound.length) if drum == "snare" else (0.28, 0.6 * sound.length)
            return level * snare(rng, sample_rate, tune=tune, length=length, bright=sound.bright)
        longer = {"closed_hat": 1, "open_hat": 5, "ride": 4, "crash": 12}[drum]
        half_s = sound.hat_half_s * longer
        return cymbal(rng, sample_rate, duration_s=6 * half_s, half_s=half_s, low_hz=sound.hat_hz, bell=0.25)

    shots = {drum: tuple(take(drum) for _ in range(_TAKES)) for drum in DRUMS}
    return Kit(name=name, shots=shots, room=room_echo(rng, sample_rate, half_s=sound.room_s), drive=sound.drive)
