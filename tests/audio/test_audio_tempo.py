"""Tempos: what is told is believed in order, and what is heard is right to a hundredth, octave included."""

from pathlib import Path

import numpy as np
import pytest

from micro_musicgen.audio.io import write_wav
from micro_musicgen.audio.labelled import synthesise_labelled
from micro_musicgen.audio.synth import synthesise
from micro_musicgen.audio.tempo import UNSURE, find_tempo, name_bpm, whole_beats
from micro_musicgen.audio.warp import to_beat_time, to_clock_time
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

BREAKS = Path(__file__).resolve().parents[3] / "shared" / "audio" / "breaks"
BY_LENGTH = {
    **{"loop_amen_full": 140, "loop_breakbeat": 126, "loop_compus": 148},
    **dict.fromkeys(("loop_mehackit1", "loop_perc1", "loop_perc2", "loop_electric"), 97),
}


@pytest.mark.parametrize(
    ("name", "bpm"),
    [
        ("KIT_loop_130", None),  # last: the number of a take
        ("a_b_140_rest", 140),
        ("amen_170bpm", 170),
        ("amen_170.5 BPM_x", 170.5),
        ("BPM-96 soul", 96),
        ("01 dub 140 deep 120 x", None),  # two numbers
        ("take_016_x", None),
        ("mix_2024_x", None),
        ("", None),
    ],
)
def test_what_a_name_states(name: str, bpm: float | None) -> None:
    assert name_bpm(name)[0] == bpm


@pytest.mark.parametrize(
    ("beats", "whole"),
    [(4.0, 4), (3.98, 4), (3.95, None), (16.03, 16), (6.0, None), (1.01, 1), (0.1, None), (2.5, None), (2000.0, None)],
)
def test_whole_beats(beats: float, whole: int | None) -> None:
    assert whole_beats(beats) == whole


def test_the_order_in_which_a_tempo_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "loop_120bpm.wav"
    write_wav(path, np.zeros(2 * 16_000), 16_000)
    info = {"bpm": 100.0}
    given = find_tempo(path, bpm=90, info=info)
    assert (given.source, given.bpm, given.beats, given.is_loop, given.confidence) == ("given", 90, 3.0, True, 1.0)
    named = find_tempo(path, info=info)
    assert (named.source, named.bpm, named.beats, named.is_loop) == ("name", 120, 4.0, True)
    tagged = find_tempo(path, name="x.wav", info=info)
    assert (tagged.source, tagged.bpm, tagged.is_loop) == ("tag", 100, False)
    for nonsense in ({"bpm": "fast"}, {"bpm": 3.0}, {"bpm": float("nan")}, {}):
        with pytest.raises(MicroMusicGenError, match="nothing says the tempo of"):
            find_tempo(path, name="x", info=nonsense, detect=False)
    assert find_tempo((np.zeros((2, 32_000), np.float32), 16_000), name="a_150_b.flac").bpm == 150


def test_what_has_no_tempo_says_so(tmp_path: Path) -> None:
    pytest.importorskip("librosa")
    for wav in (np.zeros(32_000, np.float32), np.ones(100, np.float32)):
        with pytest.raises(MicroMusicGenError, match="no tempo that can be heard"):
            find_tempo((wav, 16_000))
    noise = np.random.default_rng(0).standard_normal(7 * 16_000 + 77).astype(np.float32)
    assert find_tempo((noise, 16_000)).confidence < UNSURE
    with pytest.raises(MicroMusicGenError, match="1e\\+09 BPM is no tempo"):
        find_tempo((noise, 16_000), bpm=1e9)
    with pytest.raises(UnreadableAudioError):
        find_tempo(tmp_path / "none.wav")


def test_clicks_at_any_tempo_and_length() -> None:
    pytest.importorskip("librosa")
    rng, rate = np.random.default_rng(0), 22_050
    for bpm in (91.3, 117.77, 163.5):
        wav = 1e-3 * rng.standard_normal(rate * 9).astype(np.float32)
        for beat in range(int(9 * bpm / 60)):
            hit = wav[round(beat * 60 / bpm * rate) :][:300]
            hit += (0.9 if beat % 4 == 0 else 0.3) * rng.standard_normal(len(hit)).astype(np.float32)
        found = find_tempo((wav, rate))
        assert found.bpm == pytest.approx(bpm, rel=0.01) and found.source == "detected" and not found.is_loop


@pytest.mark.slow
def test_procedural_loops_with_their_names_hidden() -> None:
    pytest.importorskip("librosa")
    tracks = [*synthesise(5, minutes=1.0), *synthesise_labelled(5, 8)]
    for track in tracks:
        found = find_tempo((track.wav, track.sample_rate))
        assert found.bpm == pytest.approx(track.bpm, rel=1e-3), track.name
        assert found.source == "length" and found.is_loop and found.confidence > UNSURE
        assert whole_beats(found.beats or 0)
    slow = tracks[0]
    beats = to_beat_time(slow.wav, slow.sample_rate, slow.bpm, loops=True)
    odd = to_clock_time(beats.wav, beats.samples_per_beat, 101.37, slow.sample_rate, loops=True)
    assert find_tempo((odd, slow.sample_rate)).bpm == pytest.approx(101.37, rel=0.01)
    assert find_tempo((slow.wav, slow.sample_rate), prior_bpm=85).bpm == pytest.approx(slow.bpm / 2, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not BREAKS.is_dir(), reason="needs the recorded breaks beside the checkout")
@pytest.mark.parametrize("name", BY_LENGTH)
def test_recorded_loops_with_their_names_hidden(name: str) -> None:
    pytest.importorskip("librosa")
    found = find_tempo(BREAKS / f"{name}.flac", name="hidden")
    assert found.bpm == pytest.approx(BY_LENGTH[name], rel=1e-3) and found.is_loop and found.source == "length"
