"""Tracks, crops and stores in beat time: against the sound told by hand, and against each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from token_oracle import HOP, BlockCodec

from micro_musicgen.audio.beat_phase import beat_phase
from micro_musicgen.data import beat_tempos
from micro_musicgen.data.beat_grid import BarPlace, BeatGrid, BeatSteps, settle_beats
from micro_musicgen.data.beat_tempos import Tempos, read_tempos, track_tempo, weighted_median, with_tempos
from micro_musicgen.data.beat_view import BeatView
from micro_musicgen.data.code_crops import CodeCrops
from micro_musicgen.data.crops import AudioCrops
from micro_musicgen.data.encode import build_token_store, token_settings
from micro_musicgen.data.manifest import Track, TrackTempo, read_manifest, write_manifest
from micro_musicgen.data.tokens import TokenSettings, open_token_store, store_key
from micro_musicgen.errors import MicroMusicGenError

GRID = BeatGrid(16, 4, "bar")
STEPS = GRID.samples()
BEAT = 16 * HOP
RATE = 44_100


def beep(beats: int, bpm: float, *, sample_rate: int = RATE) -> np.ndarray:
    """A tone whose pitch tells the beat: beat n is a sine of 8 + n periods a beat, so a loop of it closes."""
    length = round(beats * 60 / bpm * sample_rate)
    beat = np.arange(length) / length * beats
    return (0.4 * np.sin(2 * np.pi * beat * (8 + np.floor(beat)))).astype(np.float32)


def told(track: Track, bpm: float, *, beats: float | None = None, offset_s: float = 0.0) -> Track:
    """The track with its tempo; beats makes it a loop."""
    return replace(track, tempo=TrackTempo(bpm, "given", beats, beats is not None, offset_s))


def expected(beat: int) -> np.ndarray:
    """One beat of `beep` in beat time."""
    at = np.arange(BEAT) / BEAT
    return 0.4 * np.sin(2 * np.pi * at * (8 + beat))


def told_beats(wav: np.ndarray) -> list[int]:
    """Which beat of `beep` each beat of `wav` is."""
    spectra = np.abs(np.fft.rfft(wav.reshape(-1, BEAT), axis=1))
    return [int(found) - 8 for found in spectra.argmax(axis=1)]


# The grid.


def test_lengths_are_whole_beats_and_bars():
    assert GRID.whole_beats(0.5, 32000) == 0.64 and GRID.whole_beats(0.01, 32000) == 0.32
    assert GRID.whole_bars(8.0, 32000) == 8 * 1.28 and BeatGrid(32).whole_bars(8.0, 32000) == 4 * 2.56
    assert BeatGrid(64).whole_bars(8.0, 32000) == 2 * 5.12
    assert GRID.whole_bars(8.0, 32000, 3) == pytest.approx(3 * 1.28)
    with pytest.raises(MicroMusicGenError, match="segment_bars=0"):
        GRID.whole_bars(8.0, 32000, 0)
    assert (GRID.frames_of(640), GRID.frames_of(320), GRID.frames_of(10240)) == (16, 32, 1)
    with pytest.raises(MicroMusicGenError, match="10240 samples is no whole number of frames of a codec of hop 441"):
        GRID.frames_of(441)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"time": "bars"}, "dset.time=bars is not one of clock, beats"),
        ({"frames_per_beat": 20}, "frames_per_beat 20 is not one of 16, 32, 64"),
        ({"align": "phrase"}, "dset.align=phrase"),
        ({"beats_per_bar": 0}, "beats_per_bar 0"),
    ],
)
def test_a_grid_that_is_none(section, words):
    usual = {"time": "beats", "frames_per_beat": 16, "beats_per_bar": 4, "align": "bar"}
    assert BeatGrid.parse({"dset": usual}) == GRID
    assert BeatGrid.parse({"dset": {**usual, "time": "clock"}}) is None and BeatGrid.parse({}) is None
    with pytest.raises(MicroMusicGenError, match=words):
        BeatGrid.parse({"dset": {**usual, **section}})


def test_settling_a_config_is_idempotent():
    section = {"time": "beats", "frames_per_beat": 16, "beats_per_bar": 4, "align": "bar"}
    dataset = {"segment_duration": 0.5, "segment_bars": None, "valid": {"segment_duration": 4}}
    codec = OmegaConf.create({"sample_rate": 32000, "solver": "compression", "dset": section, "dataset": dataset})
    lm = OmegaConf.create(
        {"sample_rate": 32000, "solver": "musicgen", "dset": section, "dataset": {**dataset, "segment_duration": 8}}
    )
    for _ in range(2):
        settle_beats(codec)
        settle_beats(lm)
        assert codec.dataset.segment_duration == 0.64 and codec.dataset.valid.segment_duration == 4 * 1.28
        assert lm.dataset.segment_duration == 10.24
    other = OmegaConf.create({"sample_rate": 32000, "solver": "diffusion_decoder", "dset": section, "dataset": dataset})
    with pytest.raises(MicroMusicGenError, match="diffusion_decoder knows no beat time"):
        settle_beats(other)


# One track.


@pytest.mark.parametrize("bpm", [97.0, 140.0, 172.0, 200.0])
def test_a_loop_is_the_same_in_beat_time_at_any_tempo(make_track, bpm):
    track = told(make_track(f"{bpm:g}.wav", beep(4, bpm), RATE), bpm, beats=4.001)
    view = BeatView.of(track, STEPS, 8 * BEAT)
    assert (view.length, view.loops, view.closes) == (4 * BEAT, True, True)
    wav = view.whole()
    for beat in range(4):
        error = wav[beat * BEAT + 500 : (beat + 1) * BEAT - 500] - expected(beat)[500:-500]
        assert np.abs(error).max() < 2e-3, beat


def test_a_long_track_is_whole_beats_from_its_first_one_and_parts_of_it_are_read_alone(make_track):
    wav = np.concatenate([np.zeros(round(0.2 * RATE), np.float32), beep(24, 172.0), beep(1, 172.0)[:9000]])
    track = told(make_track("long.wav", wav, RATE), 172.0, offset_s=0.2)
    view = BeatView.of(track, STEPS, 8 * BEAT)
    assert (view.length, view.loops) == (24 * BEAT, False)
    whole = view.whole()
    assert told_beats(whole) == list(range(24))
    for start in (0, 3 * BEAT, 16 * BEAT):
        assert np.abs(view.cut(start, 8 * BEAT) - whole[start : start + 8 * BEAT]).max() < 1e-4


def test_a_short_track_that_is_no_loop_is_filled_up_to_whole_bars(make_track):
    track = told(make_track("fill.wav", beep(3, 140.0), RATE), 140.0)
    view = BeatView.of(track, STEPS, 8 * BEAT)
    assert (view.length, view.loops, view.closes) == (4 * BEAT, True, False)
    wav = view.whole()
    assert told_beats(wav[: 3 * BEAT]) == [0, 1, 2] and np.abs(wav[3 * BEAT + 50 :]).max() == 0
    slightly_long = replace(track, duration=track.duration * 4.04 / 3)
    assert BeatView.of(slightly_long, STEPS, 8 * BEAT).length == 4 * BEAT


def test_a_loop_of_half_a_bar_is_repeated(make_track):
    track = told(make_track("half.wav", beep(2, 140.0), RATE), 140.0, beats=2.0)
    view = BeatView.of(track, STEPS, 8 * BEAT)
    assert (view.length, view.closes) == (4 * BEAT, True) and told_beats(view.whole()) == [0, 1, 0, 1]


def test_a_file_that_was_changed_or_cut_is_refused(make_track):
    track = told(make_track("long.wav", beep(24, 172.0), RATE), 172.0)
    longer = replace(track, duration=track.duration + 5)
    view = BeatView.of(longer, STEPS, 8 * BEAT)
    for read in (view.whole, lambda: view.cut(view.length - 8 * BEAT, 8 * BEAT)):
        with pytest.raises(MicroMusicGenError, match=r"long.wav is .* now and was .* run prepare again"):
            read()


# Crops of sound.


@pytest.fixture
def tracks(make_track):
    """A loop of 4 bars, one of 2, and a long track of 50 beats and a bit."""
    long = np.concatenate([beep(50, 172.0), beep(1, 172.0)[:5000]])
    return [
        told(make_track("four.wav", beep(16, 140.0), RATE), 140.0, beats=16.0),
        told(make_track("two.wav", beep(8, 200.0), RATE), 200.0, beats=8.0),
        told(make_track("long.wav", long, RATE), 172.0),
    ]


@pytest.mark.parametrize(("align", "grain"), [("bar", 4), ("beat", 1)])
@pytest.mark.parametrize("ram_gb", [2.0, 0.0])
def test_crops_start_on_beats_or_bars_hold_whole_beats_and_wrap(tracks, align, grain, ram_gb):
    steps = BeatGrid(16, 4, align).samples()
    crops = AudioCrops(tracks, sample_rate=32000, segment_s=3 * 4 * 0.32, seed=1, ram_gb=ram_gb, beats=steps)
    lengths, starts = [16, 8, 50], [set(), set(), set()]
    for step in range(12):
        for cut in crops.cuts(step, 4):
            first = told_beats(cut.wav)
            start = first[0]
            assert start % grain == 0
            loops = cut.track < 2
            whole = [(start + n) % lengths[cut.track] if loops else start + n for n in range(12)]
            assert first == whole, (cut.track, first)
            assert cut.bar == BarPlace(start % 4, lengths[cut.track] // 4 if loops else 0)
            starts[cut.track].add(start)
    assert starts[0] == set(range(0, 16, grain)) or grain == 1
    assert max(starts[2]) <= 50 - 12


def test_validation_is_whole_segments(tracks):
    crops = AudioCrops(tracks, sample_rate=32000, segment_s=8 * 0.32, seed=1, beats=STEPS)
    found = [(cut.track, told_beats(cut.wav)[0]) for cuts in crops.valid_cuts(3, 99) for cut in cuts]
    assert found == [(0, 0), (0, 8), (1, 0), *((2, start) for start in range(0, 48, 8))]


def test_the_budget_of_memory_does_not_change_a_crop(tracks):
    kept, read = (
        AudioCrops(tracks, sample_rate=32000, segment_s=12 * 0.32, seed=1, ram_gb=ram_gb, beats=STEPS)
        for ram_gb in (2.0, 0.0)
    )
    for step in range(4):
        assert np.abs(kept.batch(step, 4).numpy() - read.batch(step, 4).numpy()).max() < 1e-4


# Stores.


class BeatCodec(BlockCodec):
    """Its codes tell the beat: the loudest frequency of what stands around a frame, in periods a beat."""

    cardinality = 2000

    def encode(self, wav):
        import torch

        self.calls += 1
        frames = -(-wav.shape[-1] // HOP)
        padded = torch.nn.functional.pad(wav[:, 0], (8 * HOP, 8 * HOP + frames * HOP - wav.shape[-1]))
        windows = padded.unfold(-1, 4 * HOP, HOP)[:, 6 : 6 + frames]  # [B, T, 4 * HOP], centred
        peak = torch.fft.rfft(windows * torch.hann_window(4 * HOP), n=BEAT).abs().argmax(-1)
        return torch.stack([peak, peak], dim=1)


@pytest.fixture
def store(tracks, tmp_path):
    return build_token_store(
        tmp_path / "tokens" / "s",
        tracks,
        BeatCodec(),
        segment_s=3 * 1.28,
        window_s=6.0,
        overlap_s=1.0,
        steps=BeatSteps(16),
    )


def test_a_store_in_beat_time_holds_every_crop_of_every_loop(store, tracks):
    assert [track.num_frames for track in store.tracks] == [
        (16 + 12 - 1) * 16,
        (8 + 12 - 1) * 16,
        50 * 16,
    ]
    assert [store.loop_frames(index) for index in range(3)] == [16 * 16, 8 * 16, None]
    assert [track.tempo for track in store.tracks] == [track.tempo for track in tracks]
    for index, length in enumerate([16, 8, 50]):
        codes = store.codes(index)[:, 0]
        beats = [int(np.median(codes[beat * 16 + 4 : beat * 16 + 12])) - 8 for beat in range(len(codes) // 16)]
        assert np.abs(np.array(beats) - np.arange(len(beats)) % length).max() <= 1
    again = open_token_store(store.folder)
    assert again.settings == store.settings and again.tracks == store.tracks


def test_a_loops_codes_hear_the_loop_around_them(store):
    """Where the loop begins again its codes are those of its start."""
    codes, loop = store.codes(0), store.loop_frames(0)
    assert (codes[:64] == codes[loop : loop + 64]).all()


@pytest.mark.parametrize(("aligns_bars", "grain"), [(True, 64), (False, 16)])
def test_code_crops_start_on_multiples_of_frames_per_beat(store, aligns_bars, grain):
    crops = CodeCrops(store, segment_frames=192, seed=3, aligns_bars=aligns_bars)
    seen = set()
    for step in range(20):
        batch = crops.crops(step, 4)
        for track, place, bar in zip(batch.tracks, batch.places, batch.bars, strict=True):
            found, start = crops._locate(place)
            loop = store.loop_frames(track)
            assert found == track and start % grain == 0 and start < (loop or 50 * 16 - 192 + 1)
            assert bar == BarPlace(start // 16 % 4, (loop or 0) // 64)
            seen.add((track, start))
    assert {start for track, start in seen if track == 0} <= set(range(0, 256, grain))
    assert len({start for track, start in seen if track == 1}) >= 2
    valid = [(t, b) for batch in crops.valid_crops(8, 99) for t, b in zip(batch.tracks, batch.bars, strict=True)]
    assert valid == [(0, BarPlace(0, 4)), (1, BarPlace(0, 2)), *[(2, BarPlace(0, 0))] * 4]


def test_keys_tell_time_and_tempo_and_leave_clock_time_as_it_was(tracks):
    clock = TokenSettings(8.0)
    plain = [replace(track, tempo=None) for track in tracks]
    assert store_key("codec", tracks, clock) == store_key("codec", plain, clock)
    keys = {
        store_key("codec", given, settings)
        for given in (tracks, [told(tracks[0], 141.0, beats=16.0), *tracks[1:]])
        for settings in (token_settings(8.0, steps=BeatSteps(16)), token_settings(8.0, steps=BeatSteps(32)), clock)
    }
    assert len(keys) == 5  # one of them in clock time
    assert set(clock.plain()) == {"segment_s", "window_s", "overlap_s"}


def test_an_index_that_is_half_in_beat_time_is_refused(store):
    path = store.folder / "index.json"
    index = json.loads(path.read_text())
    del index["tracks"][0]["tempo"]
    path.write_text(json.dumps(index))
    with pytest.raises(MicroMusicGenError, match="tempos are told of some tracks only"):
        open_token_store(store.folder)


# Tempos.


@pytest.fixture
def finder(monkeypatch):
    """Stands in for `find_tempo`: what a file's name says, nothing for those that say nothing."""
    asked = []

    def find(path, *, bpm=None, info=None, **_):
        asked.append(Path(path).name)
        if bpm is None and info is None:
            raise MicroMusicGenError(f"{path} has no tempo")
        told_bpm = bpm or info["bpm"]
        import soundfile

        seconds = soundfile.info(path).duration
        beats = seconds * told_bpm / 60
        source = "given" if bpm else "tag"
        return SimpleNamespace(
            bpm=told_bpm, source=source, beats=beats, is_loop=abs(beats - round(beats)) < 0.02, confidence=1.0
        )

    monkeypatch.setattr(beat_tempos, "find_tempo", find)
    return asked


def test_tempos_are_looked_for_once_and_kept(make_track, tmp_path, finder):
    known = replace(make_track("known.wav", beep(16, 172.0), RATE), info={"bpm": 172})
    silent = make_track("silent.wav", beep(8, 100.0), RATE)
    write_manifest(tmp_path / "train", [known, silent])
    heard = []
    found = read_tempos(tmp_path / "train", progress=lambda done, total: heard.append((done, total)))
    assert [Path(track.path).name for track in found.tracks] == ["known.wav"] and heard == [(1, 2), (2, 2)]
    assert [Path(track.path).name for track in found.left_out] == ["silent.wav"]
    assert found.median_bpm == 172 and found.counts() == {"tag": 1}
    lines = found.lines()
    assert "tempo of 1 files: 172 to 172 BPM, median 172 (tag 1); 1 are loops" in lines[0]
    assert lines[1].startswith("left out of beat time, for nobody can tell their tempo: silent.wav;")
    asked = len(finder)
    assert read_tempos(tmp_path / "train") == found and len(finder) == asked
    tempo = read_manifest(tmp_path / "train")[0].tempo
    assert tempo.is_loop and tempo.beats == pytest.approx(16, abs=1e-3) and tempo.offset_s == 0
    (all_told,) = with_tempos([silent], bpm=100.0)
    assert all_told.tempo.source == "given" and all_told.tempo.bpm == pytest.approx(100.0, rel=1e-4)


def test_no_tempo_at_all_is_said(make_track, tmp_path, finder):
    write_manifest(tmp_path / "train", [make_track("silent.wav", beep(8, 100.0), RATE)])
    with pytest.raises(MicroMusicGenError, match="none of the 1 files .* has a tempo .*--bpm"):
        read_tempos(tmp_path / "train")


def test_the_length_of_a_loop_says_its_tempo_exactly(make_track, finder):
    track = replace(make_track("loop.wav", beep(16, 171.93), RATE), info={"bpm": 172})
    assert track_tempo(track).bpm == pytest.approx(171.93, abs=1e-3)


def clicks(bpm: float, offset_s: float, seconds: float, sample_rate: int = 16_000) -> np.ndarray:
    """Clicks on beats, weaker ones between them, and noise."""
    rng = np.random.default_rng(0)
    wav = 0.003 * rng.standard_normal(round(seconds * sample_rate)).astype(np.float32)
    burst = rng.standard_normal(400).astype(np.float32) * np.exp(-np.arange(400) / 80)
    for half in range(int(2 * (seconds - offset_s) * bpm / 60)):
        at = round((offset_s + half * 30 / bpm) * sample_rate)
        part = wav[at : at + 400]
        part += (0.8 if half % 2 == 0 else 0.1) * burst[: len(part)]
    return wav


@pytest.mark.parametrize(("bpm", "offset_s"), [(97.0, 0.31), (140.0, 0.0), (172.0, 0.2)])
def test_the_phase_of_beats_is_found(bpm, offset_s):
    wav = clicks(bpm, offset_s, 40)
    found, offset = beat_phase(wav, 16_000, bpm)
    assert found == bpm and offset == pytest.approx(offset_s, abs=0.012)
    refined, offset = beat_phase(wav, 16_000, bpm * 1.011, refine=True)
    assert refined == pytest.approx(bpm, rel=3e-4) and offset == pytest.approx(offset_s, abs=0.02)
    assert beat_phase(np.zeros(16_000, np.float32), 16_000, bpm) == (bpm, 0.0)


def test_the_median_is_of_beats_not_of_files():
    assert weighted_median([(100.0, 1.0), (170.0, 5.0), (180.0, 1.0)]) == 170.0
    tracks = [Track("a", 10.0, 44100, tempo=TrackTempo(100.0)), Track("b", 90.0, 44100, tempo=TrackTempo(172.04))]
    assert Tempos.of(tracks).median_bpm == 172.0


@pytest.mark.parametrize(
    "tempo", [{"bpm": "172"}, {"bpm": float("nan")}, {"bpm": 5000}, {"bpm": 172, "more": 1}, [172], 172]
)
def test_a_manifest_with_a_tempo_that_is_none_is_refused(tmp_path, tempo):
    line = json.dumps({"path": "/a.wav", "duration": 2.0, "sample_rate": 44100, "tempo": tempo})
    (tmp_path / "data.jsonl").write_text(line + "\n")
    with pytest.raises(MicroMusicGenError, match="line 1 of .* is no track"):
        read_manifest(tmp_path)


def test_steps_say_where_a_crop_starts():
    steps = BeatSteps(16, 4)
    assert steps.place(16 * 6, 16 * 32) == BarPlace(2, 8) and steps.place(0, None) == BarPlace(0, 0)
    assert BeatSteps(16, 3, aligns_bars=False).grain == 16 and BeatSteps(16, 3).grain == 48
