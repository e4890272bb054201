"""How long clips are, and how fast: what was asked for in seconds, bars and tempos, as a model takes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen.audio.tempo import find_tempo
from micro_musicgen.contracts import Codec
from micro_musicgen.engine.loops import check_beats
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    from micro_musicgen.engine.clips import ClipRequest
    from micro_musicgen.engine.engine import MicroMusicGen

DURATION_S = 8.0
"""Of a clip where nobody says otherwise, in clock time."""


def length_params(request: ClipRequest, model: MicroMusicGen) -> dict[str, Any]:
    """Gives what `set_generation_params` takes of how long clips are, and how fast.

    A model in clock time that is asked for bars at a tempo gives as many seconds.

    Raises:
        MicroMusicGenError: it is asked for what needs beats.
    """
    if model.beat_time is not None:
        return {
            "duration": request.duration_s,
            "bars": request.bars,
            "bpm": request.bpm,
            "loop": request.loop,
            "keep_pitch": request.keep_pitch,
        }
    if request.loop or request.keep_pitch or (request.bars is None) != (request.bpm is None):
        check_beats(None, request.params(0))
    duration_s = DURATION_S if request.duration_s is None else request.duration_s
    if request.bars is not None and request.bpm is not None:
        duration_s = clock_bars_s(request.bars, request.bpm)
    return {"duration": duration_s}


def clock_bars_s(bars: int, bpm: float) -> float:
    """Gives the seconds of bars of four beats."""
    return bars * 240 / bpm


def length_notes(request: ClipRequest, model: MicroMusicGen) -> tuple[str, ...]:
    """Gives what to tell a person about the length of the clips, where it is not what was typed."""
    if model.beat_time is None:
        if request.bars is None or request.bpm is None:
            return ()
        return (
            f"{model.name} was trained in clock time and knows nothing of beats: {request.bars} bars at "
            f"{request.bpm:g} BPM are just {model.params.duration_s:.3f} s of it",
        )
    beats = model.num_frames / model.beat_time.frames_per_beat
    bars = beats / model.beat_time.beats_per_bar
    length = f"{bars:g} bars" if bars == int(bars) else f"{beats:g} beats"
    seconds = model.num_samples / model.sample_rate
    times = f", {request.repeats} times" if request.repeats > 1 else ""
    kind = "loops of " if request.loop else ""
    return (f"{kind}{length} at {model.bpm:g} BPM, {seconds:.3f} s{times}",)


def beat_facts(request: ClipRequest, model: MicroMusicGen) -> dict[str, Any] | None:
    """Gives what `--json` says about beats; None in clock time."""
    if model.beat_time is None:
        return None
    return {
        "bpm": model.bpm,
        "beats": model.num_frames / model.beat_time.frames_per_beat,
        "loop": request.loop,
        "repeats": request.repeats,
        "num_samples": model.num_samples,
    }


def hearing(model: MicroMusicGen, path: Path) -> Codec:
    """Gives the codec for the sound in a file; in beat time at the file's own tempo, where that is known."""
    if model.beat_time is None:
        return model.codec
    try:
        return model.hearing(find_tempo(path).bpm)
    except MicroMusicGenError:  # nothing tells: it is taken to be as fast as the clip
        return model.hearing()


def prompt_seconds(model: MicroMusicGen, codec: Codec, wanted_s: float) -> float:
    """Gives how much of a prompt to take; in beat time whole beats, so that what is added starts on one."""
    if model.beat_time is None:
        return wanted_s
    beat_s = model.beat_time.frames_per_beat / codec.frame_rate
    # A sample more than whole beats, or rounding costs the last frame.
    return max(1, round(wanted_s / beat_s)) * beat_s + 1 / model.sample_rate
