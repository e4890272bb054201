"""How true sound stays in beat time, and how often its tempo is found: rows for bench/beat.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common import Row, Sample, make_row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

BPMS, RATES = (60.0, 97.0, 120.0, 171.37, 200.0), (22_050, 32_000, 44_100, 48_000)
QUICK_BPMS, QUICK_RATES = (60.0, 171.37), (32_000, 44_100)
BAND = 0.9
"""Of the band that both rates hold: what the test sound fills."""
SOUND_S = 6.3
"""Of a sound that is no loop: not a whole number of beats at any of the tempos."""
LOOP_BEATS = 12
TRIPS = 10
RECORDED = Path(__file__).resolve().parents[2] / "shared" / "audio" / "breaks"
RECORDED_BPM = {
    **{"loop_amen_full": 140, "loop_breakbeat": 126, "loop_compus": 148},
    **dict.fromkeys(("loop_mehackit1", "loop_perc1", "loop_perc2", "loop_electric"), 97),
}
"""By their lengths, which are whole bars."""
RIGHT = 0.01
"""A tempo is right within this share of it, octave included."""


def round_trip_rows(*, quick: bool = False) -> list[Row]:
    """Gives `round_trip_snr_db` and `drift_snr_db_10`: the worst case of each, then every tempo and rate.

    A case is noise over 0.9 of the band that both sides hold, as a loop and as a sound that begins and ends anywhere.
    """
    tempos, rates = (QUICK_BPMS, QUICK_RATES) if quick else (BPMS, RATES)
    cases = [_Trips.measure(bpm, rate, loops=loops) for bpm in tempos for rate in rates for loops in (True, False)]
    rows = []
    for loops in (True, False):
        kind = "loop" if loops else "open"
        of_kind = [case for case in cases if case.loops == loops]
        for name, aim, values in (
            ("round_trip_snr_db", "value >= 60", [case.first_db for case in of_kind]),
            ("drift_snr_db_10", None, [case.last_db for case in of_kind]),
        ):
            worst = of_kind[values.index(min(values))]
            note = f"worst of {len(values)}, at {worst.bpm:g} BPM and {worst.rate} Hz; best {max(values):.1f}"
            rows.append(make_row(f"{name} {kind}", Sample((min(values),)), "dB", aim=aim, note=note))
        off = max(abs(case.offset) for case in of_kind)
        rows.append(make_row(f"drift_offset_samples_10 {kind}", Sample((off,)), "samples", aim="value <= 0.01"))
    for case in cases:
        where = f"{case.bpm:g} BPM {case.rate} Hz {'loop' if case.loops else 'open'}"
        rows.append(make_row(f"round_trip_snr_db {where}", Sample((case.first_db,)), "dB", aim="value >= 60"))
        rows.append(make_row(f"drift_snr_db_10 {where}", Sample((case.last_db,)), "dB"))
    return rows


@dataclass(frozen=True)
class _Trips:
    """SNR after one way to beat time and back, and after ten; and how many samples the tenth is late."""

    bpm: float
    rate: int
    loops: bool
    first_db: float
    last_db: float
    offset: float

    @staticmethod
    def measure(bpm: float, rate: int, *, loops: bool) -> _Trips:
        from micro_musicgen.audio.warp import SAMPLES_PER_BEAT, beat_rate, to_beat_time, to_clock_time

        length = round(LOOP_BEATS * 60 / bpm * rate) if loops else round(SOUND_S * rate)
        sound = noise(length, rate, BAND * min(rate, beat_rate(bpm)) / 2)
        heard, found = sound, []
        for _ in range(TRIPS):
            there = to_beat_time(heard, rate, bpm, loops=loops)
            beats = there.wav[:, : there.valid_samples]
            heard = to_clock_time(beats, SAMPLES_PER_BEAT, bpm, rate, loops=loops, num_samples=length)
            found.append(snr_db(sound, heard))
        return _Trips(bpm, rate, loops, found[0], found[-1], late_samples(sound[0], heard[0]))


def noise(num_samples: int, sample_rate: int, top_hz: float, seed: int = 0) -> Samples:
    """Gives noise [1, L] from 20 Hz to `top_hz`, peak 0.9, that closes as a loop."""
    import numpy as np

    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal((1, num_samples)))
    frequency = np.fft.rfftfreq(num_samples, 1 / sample_rate)
    spectrum[:, (frequency > top_hz) | (frequency < 20)] = 0
    sound = np.fft.irfft(spectrum, num_samples)
    return (sound / np.abs(sound).max() * 0.9).astype(np.float32)


def snr_db(wanted: Samples, got: Samples) -> float:
    """Gives signal over error in dB, in double precision."""
    wanted, error = wanted.astype("float64"), got.astype("float64") - wanted.astype("float64")
    return 10 * math.log10((wanted**2).sum() / max((error**2).sum(), 1e-30))


def late_samples(wanted: Samples, got: Samples) -> float:
    """Gives by how many samples `got` [L] is late, by the slope of the phase between both, weighted by power."""
    import numpy as np

    cross = np.fft.rfft(wanted.astype("float64")) * np.conj(np.fft.rfft(got.astype("float64")))
    turn = 2 * np.pi * np.fft.rfftfreq(len(wanted))
    weight = np.abs(cross)
    return float((weight * turn * np.angle(cross)).sum() / (weight * turn**2).sum())


@dataclass(frozen=True)
class _Tune:
    name: str
    bpm: float
    wav: Samples
    sample_rate: int


def tempo_rows(*, quick: bool = False) -> list[Row]:
    """Gives `tempo_accuracy` with names hidden: share of tempos within 1 %, of whole loops and of pieces cut anywhere.

    What is wrong stands in the note: name, true tempo, found tempo.
    """
    minutes, labelled = (1.0, 16) if quick else (4.0, 96)
    sets = {
        "procedural": list(_procedural(minutes)),
        "labelled": list(_labelled(labelled)),
        "recorded": list(_recorded()),
    }
    sets["odd tempos"] = list(_at_odd_tempos([*sets["procedural"], *sets["labelled"]]))
    sets["cut anywhere"] = list(_cut([*sets["procedural"], *sets["labelled"]]))
    return [_accuracy_row(name, tunes) for name, tunes in sets.items()]


def _procedural(minutes: float) -> Iterator[_Tune]:
    from micro_musicgen.audio.synth import synthesise

    for seed in (10, 11):  # not those that the weights in tempo_detect were set by
        for track in synthesise(seed, minutes=minutes):
            yield _Tune(track.name, track.bpm, track.wav[None], track.sample_rate)


def _labelled(count: int) -> Iterator[_Tune]:
    from micro_musicgen.audio.labelled import synthesise_labelled

    for track in synthesise_labelled(10, count):
        yield _Tune(track.name, track.bpm, track.wav[None], track.sample_rate)


def _recorded() -> Iterator[_Tune]:
    from micro_musicgen.audio.io import read_audio

    for name, bpm in RECORDED_BPM.items():
        path = RECORDED / f"{name}.flac"
        if path.is_file():
            wav, sample_rate = read_audio(path)
            yield _Tune(name, bpm, wav, sample_rate)


def _at_odd_tempos(tunes: Sequence[_Tune]) -> Iterator[_Tune]:
    """Gives every third tune faster or slower, at a tempo that is no whole number."""
    import numpy as np

    from micro_musicgen.audio.warp import to_beat_time, to_clock_time

    rng = np.random.default_rng(0)
    for tune in tunes[::3]:
        bpm = float(rng.uniform(95, 170))
        beats = to_beat_time(tune.wav, tune.sample_rate, tune.bpm, loops=True)
        wav = to_clock_time(beats.wav, beats.samples_per_beat, bpm, tune.sample_rate, loops=True)
        yield _Tune(tune.name, bpm, wav, tune.sample_rate)


def _cut(tunes: Sequence[_Tune]) -> Iterator[_Tune]:
    """Gives 5 to 9 seconds from somewhere in every tune that is longer: their length says nothing."""
    import numpy as np

    rng = np.random.default_rng(0)
    for tune in tunes:
        length, whole = round(rng.uniform(5, 9) * tune.sample_rate), tune.wav.shape[1]
        if length < whole:
            start = int(rng.integers(whole - length))
            yield _Tune(tune.name, tune.bpm, tune.wav[:, start : start + length], tune.sample_rate)


def _accuracy_row(name: str, tunes: Sequence[_Tune]) -> Row:
    from micro_musicgen.audio.tempo import find_tempo
    from micro_musicgen.errors import MicroMusicGenError

    if not tunes:
        return make_row(f"tempo_accuracy {name}", Sample(failure=f"{RECORDED} is not there"), "share")
    wrong, sources = [], []
    for tune in tunes:
        try:
            found = find_tempo((tune.wav, tune.sample_rate))
        except MicroMusicGenError:
            wrong.append(f"{tune.name} {tune.bpm:g} none")
            continue
        sources.append(found.source)
        if abs(found.bpm / tune.bpm - 1) > RIGHT:
            wrong.append(f"{tune.name} {tune.bpm:g} {found.bpm:.1f} ({found.source}, {found.confidence:.2f})")
    share = 1 - len(wrong) / len(tunes)
    note = f"{len(tunes)} sounds, {sources.count('length')} by length, {sources.count('detected')} by onsets"
    note += "".join(f"; wrong: {each}" for each in wrong[:8])
    return make_row(f"tempo_accuracy {name}", Sample((share,)), "share", aim="value >= 1", note=note)
