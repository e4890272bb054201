"""Labelled loops: what a label says can be measured, what it does not say doesn't depend on it."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from micro_musicgen.audio import labelled
from micro_musicgen.audio.io import read_audio
from micro_musicgen.audio.labelled import ATTRIBUTES, BPM, combinations, synthesise_labelled, write_labelled
from micro_musicgen.audio.labelled_words import WORDINGS, describe, vocabulary
from micro_musicgen.audio.synth import PEAK
from micro_musicgen.errors import MicroMusicGenError

RATE = 16000
PLAIN = {"kit": "one", "tempo": "slow", "bass": "no", "tone": "bright", "style": "four"}


def _render(seed=0, bpm=None, **changed):
    said = {**PLAIN, **changed}
    kit = labelled._make_kit(said["kit"], RATE)
    bpm = bpm or sum(BPM[said["tempo"]]) // 2
    return labelled._render(np.random.default_rng(seed), kit, said, bpm=bpm, bars=2, sample_rate=RATE)


def _spectrum(wav):
    return np.abs(np.fft.rfft(wav)) ** 2, np.fft.rfftfreq(len(wav), 1 / RATE)


def _centroid(wav):
    power, frequency = _spectrum(wav)
    return float((power * frequency).sum() / power.sum())


def _between(wav, low, high):
    power, frequency = _spectrum(wav)
    return float(power[(frequency >= low) & (frequency < high)].sum() / power.sum())


def _onsets(wav, low=0.0, high=RATE / 2):
    """Gives how much the level of a band rises, every 5 ms."""
    spectrum, frequency = np.fft.rfft(wav), np.fft.rfftfreq(len(wav), 1 / RATE)
    band = np.fft.irfft(spectrum * ((frequency >= low) & (frequency < high)), len(wav))
    frames = band[: len(band) // 80 * 80].reshape(-1, 80)
    rise = np.maximum(np.diff(np.log(np.mean(frames**2, axis=1) + 1e-5)), 0)
    return rise - rise.mean()


@pytest.fixture(scope="module")
def tracks():
    return synthesise_labelled(0, 32, 3.0, RATE)


def test_equal_seeds_give_equal_bytes_others_do_not():
    first, again, other = (synthesise_labelled(seed, 3, 2.0, RATE) for seed in (5, 5, 6))
    assert [t.wav.tobytes() for t in first] == [t.wav.tobytes() for t in again]
    assert [(t.name, t.description) for t in first] == [(t.name, t.description) for t in again]
    assert [t.wav.tobytes() for t in first] != [t.wav.tobytes() for t in other]


def test_kits_do_not_depend_on_the_seed():
    """The judge learns kit one from another set than the model does."""
    shots = [labelled._make_kit("one", RATE).shots["snare"][0] for _ in range(2)]
    assert np.array_equal(*shots)


def test_every_combination_comes_equally_often(tracks):
    counts = Counter(tuple(t.attributes.values()) for t in tracks)
    assert len(counts) == len(combinations(2)) == 32 and set(counts.values()) == {1}
    assert len(combinations(4)) == 64


def test_wave_format_and_whole_bars(tracks):
    for track in tracks:
        assert track.wav.dtype == np.float32 and track.wav.ndim == 1
        assert np.max(np.abs(track.wav)) == pytest.approx(PEAK, abs=1e-4)
        bars = len(track.wav) / RATE * track.bpm / 240
        assert abs(bars - round(bars)) < 1e-3 and abs(len(track.wav) / RATE - 3.0) <= 120 / track.bpm + 0.01
        low, high = BPM[track.attributes["tempo"]]
        assert low <= track.bpm <= high


def test_tone_moves_the_spectral_centroid():
    for kit in ("one", "two"):
        assert _centroid(_render(kit=kit, tone="bright")) > 1.5 * _centroid(_render(kit=kit, tone="dark"))
    treble = [_between(_render(tone=tone), 3000, 8000) for tone in ("dark", "bright")]
    assert treble[1] > 10 * treble[0]


def test_bass_fills_what_drums_leave():
    for kit in ("one", "two"):
        for style in ("four", "breakbeat"):
            quiet = [_quiet_level(_render(kit=kit, style=style, bass=bass)) for bass in ("no", "yes")]
            assert quiet[1] > quiet[0] + 6


def _quiet_level(wav):
    """Gives the level below 600 Hz that is exceeded three quarters of the time, dB."""
    spectrum, frequency = np.fft.rfft(wav), np.fft.rfftfreq(len(wav), 1 / RATE)
    low = np.fft.irfft(spectrum * (frequency < 600), len(wav))
    frames = low[: len(low) // 400 * 400].reshape(-1, 400)
    return float(10 * np.log10(np.quantile(np.mean(frames**2, axis=1), 0.25) + 1e-12))


@pytest.mark.parametrize("bpm", [100, 168])
def test_onsets_repeat_at_the_labelled_tempo(bpm):
    """Oracle: the kicks of four on the floor resemble themselves most one beat later."""
    onsets = _onsets(_render(tempo="fast" if bpm > 130 else "slow", bpm=bpm), 20, 120)
    lags = np.arange(round(200 * 60 / 190), round(200 * 60 / 85))
    score = [np.dot(onsets[: -lag or None], onsets[lag:]) for lag in lags]
    assert 200 * 60 / lags[int(np.argmax(score))] == pytest.approx(bpm, rel=0.02)


def test_style_decides_whether_every_beat_has_a_kick():
    """Oracle: kicks on beats 1 to 4 of a bar, whatever the break."""
    for seed in range(4):
        shares = []
        for style in ("four", "breakbeat"):
            wav = _render(seed=seed, style=style, bpm=100)
            spectrum, frequency = np.fft.rfft(wav), np.fft.rfftfreq(len(wav), 1 / RATE)
            low = np.abs(np.fft.irfft(spectrum * (frequency < 110), len(wav)))
            beats = [low[round(beat * 0.6 * RATE) :][: round(0.1 * RATE)].max() for beat in range(8)]
            shares.append(np.mean(np.array(beats) > 0.4 * max(beats)))
        assert shares[0] == 1 and shares[1] < 1


def test_kits_sound_different_in_either_tone():
    for tone in ("dark", "bright"):
        quiet = [_between(_render(kit=kit, tone=tone), 20, 55) for kit in ("one", "two")]
        assert quiet[1] > 2 * quiet[0], "kit two is tuned lower"


def test_what_is_said_is_true_and_from_the_closed_vocabulary(tracks):
    known = set(vocabulary())
    partly = 0
    for track in tracks:
        words = f" {track.description} "
        assert set(words.split()) <= known
        said = 0
        for name, value in track.attributes.items():
            others = [phrase for each, phrases in WORDINGS[name].items() if each != value for phrase in phrases]
            assert not any(f" {phrase} " in words for phrase in others), (name, track.description)
            said += any(f" {phrase} " in words for phrase in WORDINGS[name][value])
        assert said >= 2
        partly += said < len(ATTRIBUTES)
    assert 6 <= partly <= 26  # about half of 32


def test_plain_words_and_parts():
    said = {"kit": "two", "tempo": "fast", "bass": "yes", "tone": "dark", "style": "breakbeat"}
    assert describe(said) == "a fast dark breakbeat with bass on kit two"
    assert describe({"tone": "dark"}) == "a dark beat"
    wordings = {describe(said, np.random.default_rng(seed)) for seed in range(60)}
    assert len(wordings) > 30


def test_files_have_their_labels_beside_them(tmp_path):
    paths = write_labelled(tmp_path, 0, 2, 1.5, RATE)
    track = synthesise_labelled(0, 2, 1.5, RATE)[1]
    samples, rate = read_audio(paths[1])
    assert rate == RATE and samples.shape[-1] == len(track.wav)
    sidecar = json.loads(paths[1].with_suffix(".json").read_text(encoding="utf-8"))
    assert sidecar["bpm"] == track.bpm and sidecar["description"] == track.description
    assert sidecar["attributes"] == track.attributes and sidecar["license"] == "CC0-1.0"
    assert sidecar["genre"] and sidecar["moods"] == [track.attributes["tone"]]


@pytest.mark.parametrize(
    ("given", "named"), [((0, 0, 2.0), "0 tracks"), ((0, 1, 0.1), "0.1 s"), ((0, 1, 2.0, RATE, 5), "num_kits 5")]
)
def test_bad_input_is_named(given, named):
    kits = {"num_kits": given[4]} if len(given) > 4 else {}
    with pytest.raises(MicroMusicGenError, match=named):
        synthesise_labelled(*given[:4], **kits)
