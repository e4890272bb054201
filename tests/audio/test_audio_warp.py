"""Beat time against closed forms: sines stay sines, round trips lose nothing, nothing drifts."""

import math

import numpy as np
import pytest

from micro_musicgen.audio import warp
from micro_musicgen.audio.warp import SAMPLES_PER_BEAT, TempoMap, to_beat_time, to_clock_time
from micro_musicgen.errors import MicroMusicGenError

CHANGING = TempoMap((0.0, 3.3, 8.0, 12.5), (120.0, 90.0, 171.37, 140.0))


def noise(num_samples: int, sample_rate: int, top_hz: float, channels: int = 1) -> np.ndarray:
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal((channels, num_samples)))
    frequency = np.fft.rfftfreq(num_samples, 1 / sample_rate)
    spectrum[:, (frequency > top_hz) | (frequency < 20)] = 0
    sound = np.fft.irfft(spectrum, num_samples)
    return (0.9 * sound / np.abs(sound).max()).astype(np.float32)


def snr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    error = got.astype(np.float64) - wanted.astype(np.float64)
    return 10 * math.log10((wanted.astype(np.float64) ** 2).sum() / max((error**2).sum(), 1e-30))


def test_tempo_map_tells_beats_and_seconds() -> None:
    assert CHANGING.seconds_at(3.3) == pytest.approx(3.3 * 0.5)
    assert CHANGING.seconds_at(8) == pytest.approx(3.3 * 0.5 + 4.7 / 1.5)
    assert CHANGING.seconds_at(-2) == pytest.approx(-1.0)
    for beat in (-1.5, 0, 0.1, 3.3, 5, 12.5, 400):
        assert CHANGING.beat_at(CHANGING.seconds_at(beat)) == pytest.approx(beat)
    assert CHANGING.mean_bpm(8) == pytest.approx(8 * 60 / CHANGING.seconds_at(8))
    assert TempoMap.from_plain(CHANGING.to_plain()) == CHANGING
    assert TempoMap.constant(97).is_constant and not CHANGING.is_constant
    assert warp.beat_rate(120) == 81_920


@pytest.mark.parametrize(
    ("beats", "bpms"),
    [
        ((), ()),
        ((0.0,), (120.0, 100.0)),
        ((1.0,), (120.0,)),
        ((0.0, 4.0, 4.0), (120.0,) * 3),
        ((0.0, math.inf), (120.0,) * 2),
        ((0.0, math.nan), (120.0,) * 2),
        ((0.0,), (math.nan,)),
        ((0.0,), (19.0,)),
        ((0.0,), (1001.0,)),
    ],
)
def test_tempo_map_refuses_what_is_none(beats: tuple, bpms: tuple) -> None:
    with pytest.raises(MicroMusicGenError):
        TempoMap(beats, bpms)


@pytest.mark.parametrize("plain", [None, [], {"beats": [0]}, {"beats": 0, "bpms": 1}, {"beats": ["0"], "bpms": [True]}])
def test_tempo_map_of_plain_nonsense(plain: object) -> None:
    with pytest.raises(MicroMusicGenError):
        TempoMap.from_plain(plain)


@pytest.mark.parametrize("bpm", [60.0, 120.0, 171.37])
def test_a_sine_is_the_same_sine_at_the_times_of_beats(bpm: float) -> None:
    rate = 44_100
    time = np.arange(5 * rate) / rate
    heard = to_beat_time(np.sin(2 * np.pi * 9000 * time + 1).astype(np.float32), rate, bpm)
    inside = slice(2000, heard.valid_samples - 2000)
    seconds = np.arange(heard.valid_samples) * 60 / (bpm * SAMPLES_PER_BEAT)
    assert snr_db(np.sin(2 * np.pi * 9000 * seconds + 1)[inside], heard.wav[0, inside]) > 100


def test_a_sine_through_a_tempo_map_has_no_click_at_its_joints() -> None:
    rate = 44_100
    time = np.arange(8 * rate) / rate
    heard = to_beat_time(np.sin(2 * np.pi * 1000 * time).astype(np.float32), rate, CHANGING)
    seconds = np.array([CHANGING.seconds_at(m / SAMPLES_PER_BEAT) for m in range(heard.valid_samples)])
    inside = slice(2000, heard.valid_samples - 2000)
    assert np.abs(np.sin(2 * np.pi * 1000 * seconds)[inside] - heard.wav[0, inside]).max() < 1e-5
    again = to_clock_time(heard.wav[:, : heard.valid_samples], SAMPLES_PER_BEAT, CHANGING, rate)
    assert np.abs(again[0] - np.sin(2 * np.pi * 1000 * time))[2000:-2000].max() < 2e-3


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize(("rate", "bpm"), [(22_050, 60.0), (32_000, 171.37), (48_000, 60.0)])
def test_round_trip_and_ten_of_them(rate: int, bpm: float, loops: bool) -> None:
    length = round(2 * 60 / bpm * rate) if loops else round(1.3 * rate)
    sound = noise(length, rate, 0.9 * min(rate / 2, SAMPLES_PER_BEAT * bpm / 120), channels=2)
    heard, found = sound, []
    for _ in range(10):
        beats = to_beat_time(heard, rate, bpm, loops=loops)
        heard = to_clock_time(beats.wav[:, : beats.valid_samples], SAMPLES_PER_BEAT, bpm, rate, loops=loops)
        assert heard.shape == sound.shape and heard.dtype == np.float32
        found.append(snr_db(sound, heard))
    assert found[0] > (85 if loops else 60)
    inside = slice(1500, -1500)
    assert snr_db(sound[:, inside], heard[:, inside]) > 60


def test_round_trip_of_a_tempo_map() -> None:
    sound = noise(5 * 32_000, 32_000, 14_000)
    beats = to_beat_time(sound, 32_000, CHANGING)
    again = to_clock_time(beats.wav[:, : beats.valid_samples], SAMPLES_PER_BEAT, CHANGING, 32_000)
    assert again.shape == sound.shape and snr_db(sound, again) > 60


@pytest.mark.slow
def test_nothing_drifts_in_a_long_sound() -> None:
    rate, bpm = 32_000, 171.37
    time = np.arange(240 * rate) / rate
    sound = np.sin(2 * np.pi * 12_000 * time).astype(np.float32)
    beats = to_beat_time(sound, rate, bpm)
    again = to_clock_time(beats.wav[:, : beats.valid_samples], SAMPLES_PER_BEAT, bpm, rate)
    assert again.shape[1] == len(sound)
    last = slice(-50_000, -2000)
    assert snr_db(sound[last], again[0, last]) > 90


def test_partial_beats_are_padded_and_never_stretched() -> None:
    rate, bpm = 32_000, 120.0
    sound = noise(round(2.15 * rate), rate, 9000)  # 4.3 beats
    found = to_beat_time(sound, rate, bpm, samples_per_beat=20_480)
    assert found.valid_samples == round(4.3 * 20_480) and found.num_beats == 5
    assert found.wav.shape == (1, 5 * 20_480) and not found.wav[:, found.valid_samples :].any()
    assert found.beats.shape == (5, 20_480, 1) and np.shares_memory(found.beats, found.wav)
    assert np.array_equal(found.beats[1, :, 0], found.wav[0, 20_480:40_960])


def test_a_loop_is_whole_beats_by_its_length_and_closes() -> None:
    rate = 44_100
    length = 77_321  # what two beats at 68.4 BPM are, stated as 68
    time = np.arange(length) / length
    sound = np.cos(2 * np.pi * 500 * time).astype(np.float32)
    found = to_beat_time(sound, rate, 68, loops=True)
    assert found.wav.shape == (1, 2 * SAMPLES_PER_BEAT) and found.valid_samples == 2 * SAMPLES_PER_BEAT
    wanted = np.cos(2 * np.pi * 500 * np.arange(2 * SAMPLES_PER_BEAT) / (2 * SAMPLES_PER_BEAT))
    assert np.abs(found.wav[0] - wanted).max() < 1e-5  # the seam included
    faster = to_clock_time(found.wav, SAMPLES_PER_BEAT, 137.3, rate, loops=True)
    count = round(2 * 60 / 137.3 * rate)
    assert np.abs(faster[0] - np.cos(2 * np.pi * 500 * np.arange(count) / count)).max() < 1e-5
    with pytest.raises(MicroMusicGenError, match="no loop of whole ones"):
        to_beat_time(sound, rate, 90, loops=True)


@pytest.mark.parametrize("offset_s", [0.3, -0.25])
def test_beat_zero_may_lie_elsewhere(offset_s: float) -> None:
    rate, bpm = 32_000, 150.0
    sound = noise(2 * rate, rate, 12_000)
    found = to_beat_time(sound, rate, bpm, offset_s=offset_s)
    assert found.valid_samples == round((2 - offset_s) * bpm / 60 * SAMPLES_PER_BEAT)
    again = to_clock_time(found.wav[:, : found.valid_samples], SAMPLES_PER_BEAT, bpm, rate)
    start = round(offset_s * rate)
    if start < 0:
        assert not found.wav[:, : round(0.2 * bpm / 60 * SAMPLES_PER_BEAT)].any()
        again, start = again[:, -start:], 0
    assert snr_db(sound[0, start + 1500 : -1500], again[0, 1500 : 2 * rate - start - 1500]) > 80


def test_what_beat_time_cannot_hold_is_left_out_and_does_not_fold_back() -> None:
    rate, bpm = 48_000, 30.0  # half of beat_rate is 10,240 Hz
    time = np.arange(2 * rate) / rate
    found = to_beat_time(np.sin(2 * np.pi * 15_000 * time).astype(np.float32), rate, bpm)
    assert np.abs(found.wav[0, 3000 : found.valid_samples - 3000]).max() < 1e-5


def test_the_input_is_not_written_to() -> None:
    sound = np.ones((1, 2 * SAMPLES_PER_BEAT), np.float32)
    to_beat_time(sound, SAMPLES_PER_BEAT, 60, offset_s=-1.0)
    to_beat_time(sound, SAMPLES_PER_BEAT, 60)
    assert (sound == 1).all()


def test_another_tempo_moves_the_pitch_and_keep_pitch_does_not() -> None:
    rate = 32_000
    time = np.arange(2 * rate) / rate
    found = to_beat_time(np.sin(2 * np.pi * 1000 * time).astype(np.float32), rate, 120, loops=True)

    def loudest_hz(wav: np.ndarray) -> float:
        return float(np.abs(np.fft.rfft(wav[0])).argmax() * rate / wav.shape[1])

    faster = to_clock_time(found.wav, SAMPLES_PER_BEAT, 150, rate, loops=True)
    assert faster.shape == (1, round(1.6 * rate)) and loudest_hz(faster) == pytest.approx(1250)
    pytest.importorskip("python_stretch")
    kept = to_clock_time(found.wav, SAMPLES_PER_BEAT, 150, rate, loops=True, keep_pitch=True, recorded_tempo=120)
    assert kept.shape == faster.shape and loudest_hz(kept) == pytest.approx(1000, abs=1)
    same = to_clock_time(found.wav, SAMPLES_PER_BEAT, 120, rate, loops=True, keep_pitch=True, recorded_tempo=120)
    assert np.array_equal(same, to_clock_time(found.wav, SAMPLES_PER_BEAT, 120, rate, loops=True))


def test_keep_pitch_keeps_hits_in_their_place() -> None:
    pytest.importorskip("python_stretch")
    rate = 32_000
    sound = np.zeros((1, 4 * rate), np.float32)
    hits = np.arange(8) * rate // 2
    for hit in hits:
        sound[0, hit : hit + 600] = np.random.default_rng(0).standard_normal(600) * np.exp(-np.arange(600) / 100)
    found = to_beat_time(sound, rate, 120, loops=True)
    kept = to_clock_time(found.wav, SAMPLES_PER_BEAT, 160, rate, loops=True, keep_pitch=True, recorded_tempo=120)[0]
    for hit in hits * 3 // 4:
        around = np.abs(np.take(kept, np.arange(hit - 4000, hit + 4000), mode="wrap"))
        assert abs(int(np.convolve(around, np.ones(200), "same").argmax()) - 4100) < 0.01 * rate


def test_keep_pitch_says_what_it_needs() -> None:
    beats = np.zeros((1, SAMPLES_PER_BEAT), np.float32)
    with pytest.raises(MicroMusicGenError, match="at which tempo the sound was recorded"):
        to_clock_time(beats, SAMPLES_PER_BEAT, 150, 32_000, keep_pitch=True)
    with pytest.raises(MicroMusicGenError, match="changes differently"):
        to_clock_time(beats, SAMPLES_PER_BEAT, 150, 32_000, keep_pitch=True, recorded_tempo=CHANGING)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tempo": 0}, "0 BPM is no tempo"),
        ({"tempo": math.nan}, "nan BPM is no tempo"),
        ({"tempo": 120, "offset_s": 2.0}, "nothing lies behind beat 0"),
        ({"tempo": 120, "offset_s": math.inf}, "cannot be at inf s"),
        ({"tempo": 120, "samples_per_beat": 0}, "0 samples a beat"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(MicroMusicGenError, match=message):
        to_beat_time(np.zeros(32_000, np.float32), 32_000, **arguments)
    with pytest.raises(MicroMusicGenError, match="no sound"):
        to_beat_time(np.zeros((1, 0), np.float32), 32_000, 120)
