import numpy as np
import pytest
import soundfile
import torch

from micro_musicgen.data.crops import AudioCrops
from micro_musicgen.data.manifest import Track
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

SAMPLE_RATE = 32_000


@pytest.fixture
def tracks(make_track, music):
    return [
        make_track("long.wav", music(3.0, 0)),
        make_track("stereo.wav", np.stack([music(2.0, 1, 44_100), music(2.0, 2, 44_100)]), 44_100),
        make_track("loop.wav", music(0.3, 3)),
        make_track("exact.wav", music(0.5, 4)),
    ]


def make(tracks, **options) -> AudioCrops:
    return AudioCrops(tracks, **{"sample_rate": SAMPLE_RATE, "segment_s": 0.5, "seed": 7, **options})


def test_batch_is_a_pure_function_of_seed_and_step(tracks):
    crops = make(tracks)
    batches = [crops.batch(step, 3) for step in range(6)]
    assert batches[0].shape == (3, 1, 16_000) and batches[0].dtype == torch.float32
    again = make(tracks)
    for step in (5, 0, 3):  # as after a resume
        assert torch.equal(again.batch(step, 3), batches[step])
    assert torch.equal(torch.cat([again.batch(step, 1) for step in range(6, 9)]), again.batch(2, 3))
    assert not torch.equal(make(tracks, seed=8).batch(0, 3), batches[0])


def test_memory_budget_changes_rounding_only(tracks):
    plenty, none = make(tracks), make(tracks, ram_gb=0.0)
    some = make(tracks, ram_gb=(0.3 + 0.5 + 0.1) * SAMPLE_RATE * 4 / 1e9)
    for step in range(8):
        expected = plenty.batch(step, 3)
        for crops in (none, some):
            assert (crops.batch(step, 3) - expected).abs().max() < 1e-5
        assert torch.equal(none.batch(step, 3), none.batch(step, 3))
    assert len(none._bank._held) == 0 and len(some._bank._held) == 2 and len(plenty._bank._held) == 4


def test_crops_are_the_audio_and_a_loop_wraps_exactly(make_track, music):
    loop, long = music(0.3, 0), music(1.3, 1)
    tracks = [make_track("loop.wav", loop), make_track("long.wav", long)]
    tiled = np.tile(loop, 3)
    seen = set()
    for crop in make(tracks).batch(0, 40)[:, 0].numpy():
        source = tiled if crop[0] in loop else long
        start = int(np.flatnonzero(source == crop[0])[0])
        assert np.array_equal(source[start : start + 16_000], crop)
        seen.add(source is tiled)
    assert seen == {True, False}


def test_no_part_is_padded_or_left_out(make_track, music):
    track = make_track("long.wav", music(10.0, 0))
    crops = make([track])
    assert crops.crops_per_pass == 20
    heard = torch.cat([crops.batch(step, 20) for step in range(20)])
    assert (heard.abs().amax(dim=-1) > 0.4).all() and (heard[..., -100:].abs().amax(dim=-1) > 0.2).all()
    whole, _ = soundfile.read(track.path, dtype="float32")
    assert np.isin(whole, heard.numpy()).mean() > 0.99


def test_drawn_in_proportion_to_duration_and_weight(make_track):
    levels = {0.1: (4.0, None), 0.2: (2.0, 3.0), 0.3: (1.0, None), 0.4: (5.0, 0.0)}
    tracks = [make_track(f"{v}.wav", np.full(int(d * SAMPLE_RATE), v), weight=w) for v, (d, w) in levels.items()]
    crops = make(tracks)
    assert crops.crops_per_pass == 22
    drawn = crops.batch(0, 22)[:, 0, 0]
    counts = [int((drawn - level).abs().lt(1e-6).sum()) for level in levels]
    assert counts == [8, 12, 2, 0]


def test_valid_batches_are_fixed_and_spread(tracks):
    crops = make(tracks)
    batches = list(crops.valid_batches(4, 100))
    assert [len(batch) for batch in batches] == [4, 4, 4]  # 6 + 4 segments, the loop and the exact fit
    assert all(torch.equal(a, b) for a, b in zip(batches, make(tracks, seed=1).valid_batches(4, 100), strict=True))
    few = torch.cat(list(crops.valid_batches(2, 3)))
    assert torch.equal(few, torch.cat(batches)[[0, 4, 8]])
    loop, _ = soundfile.read(tracks[2].path, dtype="float32")
    assert np.array_equal(batches[2][2, 0].numpy(), np.resize(loop, 16_000))


def test_a_file_that_changed_or_went_since_it_was_prepared(tracks, music):
    soundfile.write(tracks[0].path, music(1.0, 0), SAMPLE_RATE)
    for ram_gb in (0.0, 2.0):
        crops = make(tracks[:1], ram_gb=ram_gb)
        with pytest.raises(
            MicroMusicGenError, match=r"long.wav is 1.00 s long now and was 3.00 s when prepared; run prepare again"
        ):
            for step in range(8):
                crops.batch(step, 1)
    with pytest.raises(UnreadableAudioError, match="/gone.wav does not exist; check the path"):
        make([Track("/gone.wav", 2.0, SAMPLE_RATE)]).batch(0, 1)


def test_a_manifest_with_guessed_durations_is_forgiven(tracks):
    track = tracks[0]
    guessed = Track(track.path, track.duration + 0.05, track.sample_rate)
    for ram_gb in (0.0, 2.0):
        crops = make([guessed], ram_gb=ram_gb)
        assert all(crops.batch(step, 4).shape == (4, 1, 16_000) for step in range(30))


def test_segment_of_nothing(tracks):
    with pytest.raises(MicroMusicGenError, match="segment of 0 s holds no sample"):
        make(tracks, segment_s=0.0)
