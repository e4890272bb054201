"""Breakbeats from a seed: the same every time, on the beat, never clipped, as long as asked."""

import numpy as np
import pytest

from micro_musicgen.audio import synth
from micro_musicgen.audio.synth import synthesise, total_seconds
from micro_musicgen.audio.voices import DRUMS, bass_note, make_kit

RATE = 32000


@pytest.fixture(scope="module")
def tracks():
    return synthesise(0, minutes=2.0, sample_rate=RATE)


def test_same_seed_same_samples_other_seed_others(tracks):
    again = synthesise(0, minutes=2.0, sample_rate=RATE)
    assert [t.name for t in again] == [t.name for t in tracks]
    assert all(np.array_equal(a.wav, b.wav) for a, b in zip(again, tracks, strict=True))
    assert not np.array_equal(synthesise(1, minutes=0.1)[0].wav[:1000], tracks[0].wav[:1000])


@pytest.mark.parametrize("minutes", [1.0, 2.5])
def test_lasts_as_long_as_asked(minutes):
    total = total_seconds(synthesise(3, minutes=minutes))
    assert total == pytest.approx(60 * minutes, rel=0.05)


def test_wave_format(tracks):
    assert len({t.kit for t in tracks}) == synth.NUM_KITS
    for track in tracks:
        assert track.wav.dtype == np.float32 and track.wav.ndim == 1 and track.sample_rate == RATE
        assert np.max(np.abs(track.wav)) == pytest.approx(synth.PEAK, abs=1e-4)
        assert 160 <= track.bpm <= 175
        # Nothing sits on the rail: saturated, not clamped.
        assert np.mean(np.abs(track.wav) > 0.999 * synth.PEAK) < 0.01


def test_every_loop_is_a_whole_number_of_beats(tracks):
    for track in tracks:
        beats = len(track.wav) / RATE * track.bpm / 60
        assert abs(beats - round(beats)) < 1e-3


def test_onsets_repeat_at_the_tempo(tracks):
    """Oracle: over circular lags around a beat, the onset strength of a loop resembles itself most at its own tempo."""
    hits = [abs(_tempo(t.wav) - t.bpm) / t.bpm < 0.03 for t in tracks]
    assert np.mean(hits) > 0.9


def _tempo(wav):
    hop = 160
    frames = wav[: len(wav) // hop * hop].reshape(-1, hop)
    level = np.log(np.mean(frames**2, axis=1) + 1e-6)
    onset = np.maximum(np.diff(level, append=level[:1]), 0)
    onset = onset - onset.mean()
    lags = np.arange(round(RATE / hop * 60 / 200), round(RATE / hop * 60 / 140))
    score = [np.dot(onset, np.roll(onset, lag)) for lag in lags]
    return 60 * RATE / hop / lags[int(np.argmax(score))]


def test_kits_are_complete_and_different():
    rng = np.random.default_rng(0)
    first, second = make_kit(rng, RATE, "a"), make_kit(rng, RATE, "b")
    assert set(first.shots) == set(DRUMS)
    assert len(first.shots["kick"][0]) != len(second.shots["kick"][0])
    assert all(np.isfinite(shot).all() for shots in first.shots.values() for shot in shots)


@pytest.mark.parametrize("is_saw", [False, True])
def test_bass_sounds_at_its_pitch(is_saw):
    note = bass_note(RATE, frequency=55.0, duration_s=1.0, cutoff=8, glide=1.0, is_saw=is_saw)
    spectrum = np.abs(np.fft.rfft(note))
    assert np.argmax(spectrum) == pytest.approx(55, abs=1)


def test_what_rings_past_the_end_rings_on_at_the_start():
    loop = np.zeros(10)
    synth.add_wrapped(loop, np.arange(1.0, 5.0), 8)
    assert loop.tolist() == [3, 4, 0, 0, 0, 0, 0, 0, 1, 2]


def test_written_files_hold_the_tracks(tmp_path):
    sf = pytest.importorskip("soundfile")
    paths = synth.write_breaks(tmp_path / "breaks", 0, minutes=0.2)
    tracks = synthesise(0, minutes=0.2)
    assert [p.stem for p in paths] == [t.name for t in tracks]
    wav, rate = sf.read(paths[0], dtype="float32")
    assert rate == RATE and np.allclose(wav, tracks[0].wav, atol=1e-4)
