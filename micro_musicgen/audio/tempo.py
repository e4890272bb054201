"""How fast a sound is: told, or read from its name, its tags, its length or what it plays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from micro_musicgen.audio.warp import BPM_RANGE, check_bpm
from micro_musicgen.errors import MicroMusicGenError

PRIOR_BPM = 125.0
"""What is detected lies in the octave around it, 88.4 to 176.8 BPM: a break at 170 is heard as 170 and not as 85."""
NAME_BPM = (60, 200)
"""What a bare number in a name must be to be a tempo."""
MAX_LOOP_BEATS = 512
_PARTS = re.compile(r"[\s_\-.,;()\[\]+~]+")
_STATED_BPM = re.compile(r"(?<![\d.])(\d{2,3}(?:\.\d+)?)[\s_-]?bpm(?![a-z])|(?<![a-z])bpm[\s_-]?(\d{2,3})(?!\d)", re.I)


@dataclass(frozen=True)
class FoundTempo:
    """The tempo of a sound.

    source: "given", "name", "tag", "length" (of a loop) or "detected" (by its onsets). beats: length of the sound at
    that tempo. is_loop: they are whole bars, or one to three beats, to within a tolerance (`whole_beats`).
    confidence: 1 for what is told, for the rest from 0 to 1; below `UNSURE` it is a guess.
    """

    bpm: float
    source: str
    beats: float | None
    is_loop: bool
    confidence: float


UNSURE = 0.4


def find_tempo(
    sound: Path | str | tuple[npt.NDArray[np.float32], int],
    *,
    bpm: float | None = None,
    name: str | None = None,
    info: Mapping[str, Any] | None = None,
    detect: bool = True,
    prior_bpm: float = PRIOR_BPM,
) -> FoundTempo:
    """Gives the tempo of a file, or of (float32 [C, L] or [L], sample rate in Hz).

    In this order: `bpm`; the name of the file, or `name`; "bpm" of `info`, which is what tags and tables say
    (`Track.info`; this does not read them); with `detect` the sound itself, by its length where it is a loop, else by
    its onsets, in the octave around `prior_bpm`.

    Raises:
        MicroMusicGenError: a tempo that is none, or none that can be found.
        UnreadableAudioError: the file cannot be read.
        MissingExtraError: librosa is needed, which listens.
    """
    path = None if isinstance(sound, tuple) else Path(sound)
    duration_s = _duration_s(sound)
    stem = Path(name).stem if name is not None else path.stem if path is not None else ""
    told = {"given": bpm, "name": name_bpm(stem)[0], "tag": (info or {}).get("bpm")}
    for source, value in told.items():
        if value is not None and (source == "given" or _is_tempo(value)):
            found = check_bpm(float(value))
            beats = duration_s * found / 60
            return FoundTempo(found, source, beats, whole_beats(beats) is not None, 1.0)
    about = path if path is not None else name or "the sound"
    if not detect:
        raise MicroMusicGenError(f"nothing says the tempo of {about}; give it, or name it like loop_172bpm.wav")
    from micro_musicgen.audio.tempo_detect import LISTENED_RATE, LISTENED_S, detect_tempo

    if isinstance(sound, tuple):
        wav = _mono(sound[0], sound[1], LISTENED_RATE, LISTENED_S)
    else:
        from micro_musicgen.audio.io import load_mono

        wav = load_mono(sound, LISTENED_RATE, duration_s=LISTENED_S)
    heard = detect_tempo(wav, LISTENED_RATE, duration_s, prior_bpm=prior_bpm)
    if heard is None:
        raise MicroMusicGenError(f"{about} has no tempo that can be heard; give it, or name it like loop_172bpm.wav")
    beats = duration_s * heard.bpm / 60
    return FoundTempo(heard.bpm, "length" if heard.is_loop else "detected", beats, heard.is_loop, heard.confidence)


def whole_beats(beats: float) -> int | None:
    """Gives how many beats a loop of about `beats` has: bars of four, or one to three beats; None for no loop.

    A tempo that is rounded to whole BPM, and the samples that a format adds, are forgiven: 0.02 beats and a thousandth.
    """
    whole = round(beats)
    is_counted = 1 <= whole <= MAX_LOOP_BEATS and (whole < 4 or whole % 4 == 0)
    return whole if is_counted and abs(beats - whole) <= min(0.02 + 0.001 * whole, 0.1) else None


def name_bpm(stem: str) -> tuple[float | None, str]:
    """Gives the tempo that a file name without its suffix states, and the name without that statement.

    `170bpm`, `bpm_170`, or a bare number: that is a tempo only inside the name, `dub_140_deep`, alone there and from 60
    to 200, and it is left in the name.
    """
    stated = _STATED_BPM.search(stem)
    if stated is not None:
        return float(stated[1] or stated[2]), f"{stem[: stated.start()]} {stem[stated.end() :]}"
    low, high = NAME_BPM
    parts = name_parts(stem)
    inside = [part for part in parts[1:-1] if re.fullmatch(r"[1-9]\d{1,2}", part) and low <= int(part) <= high]
    return (float(inside[0]), stem) if len(inside) == 1 else (None, stem)


def name_parts(stem: str) -> list[str]:
    """Gives the words and numbers of a name."""
    return [part for part in _PARTS.split(stem) if part]


def _is_tempo(value: Any) -> bool:
    """Says whether what a name or a table says is a tempo; what is none is passed over."""
    return isinstance(value, int | float) and BPM_RANGE[0] <= value <= BPM_RANGE[1]


def _duration_s(sound: Path | str | tuple[npt.NDArray[np.float32], int]) -> float:
    if isinstance(sound, tuple):
        return float(np.shape(sound[0])[-1] / sound[1])
    from micro_musicgen.audio.io import probe

    return probe(sound).duration_s


def _mono(wav: npt.NDArray[np.float32], sample_rate: int, to_rate: int, most_s: float) -> npt.NDArray[np.float32]:
    from micro_musicgen.audio.io import resample

    return resample(np.atleast_2d(wav)[:, : round(most_s * sample_rate)].mean(axis=0), sample_rate, to_rate)
