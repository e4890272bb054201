"""The pool's file format, and what a data set that grows or changes costs."""

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from token_oracle import RATE, BlockCodec, build, content, level_steps

from micro_musicgen.data.encode import plan_token_store
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.token_pool import TokenPool, sound_key
from micro_musicgen.data.tokens import TokenSettings
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

SETTINGS = TokenSettings(1.0, 2.0, 0.4)
TRACK = Track("/a.wav", 0.06, RATE, audio_hash="00ff")
SOUND = "d99a46c4288f3317c3e19617999a8bcb"
HEADER = (
    b'{"K": 2, "checksum": "1d33f486eaa16aba", "codec_hash": "block", "loop": false, "num_frames": 3, '
    b'"settings": {"overlap_s": 0.4, "segment_s": 1.0, "window_s": 2.0}, "sound": "%s", "version": 1}' % SOUND.encode()
)
GOLDEN = b"MMGCODES" + struct.pack("<I", len(HEADER)) + HEADER + bytes.fromhex("010002000300040005000700")


@pytest.fixture
def pool(tmp_path) -> TokenPool:
    return TokenPool.beside(tmp_path / "store", BlockCodec(), SETTINGS)


@pytest.fixture
def golden(pool) -> Path:
    path = pool.folder / f"{SOUND}.codes"
    path.parent.mkdir(parents=True)
    path.write_bytes(GOLDEN)
    return path


def test_a_golden_file_of_version_1_is_read_and_written(pool, golden):
    assert pool.folder.name == "71cb916c3b4ca9da"
    found = pool.read(TRACK)
    assert found is not None and not found.loop and found.codes.tolist() == [[1, 2], [3, 4], [5, 7]]
    golden.unlink()
    pool.write(TRACK, found.codes, False)
    assert [p.name for p in pool.folder.iterdir()] == [golden.name] and golden.read_bytes() == GOLDEN


def test_nothing_that_is_not_sound_comes_out(pool, golden):
    for end in range(len(GOLDEN)):
        golden.write_bytes(GOLDEN[:end])
        assert pool.read(TRACK) is None, end
    for place in range(len(GOLDEN)):
        golden.write_bytes(GOLDEN[:place] + bytes([GOLDEN[place] ^ 1]) + GOLDEN[place + 1 :])
        assert pool.read(TRACK) is None, place
    golden.write_bytes(GOLDEN + b"\0")
    assert pool.read(TRACK) is None
    golden.unlink()
    golden.mkdir()
    assert pool.read(TRACK) is None


@pytest.mark.parametrize(
    "change",
    [
        (b'"num_frames": 3', b'"num_frames": 1000000000000000'),
        (b'"num_frames": 3', b'"num_frames": -3'),
        (b'"num_frames": 3', b'"num_frames": 3.0'),
        (b'"num_frames": 3', b'"num_frames": 0'),
        (b'"codec_hash": "block"', b'"codec_hash": "other"'),
        (b'"version": 1', b'"version": 2'),
    ],
)
def test_headers_that_say_something_else_are_refused_before_anything_is_read(pool, golden, change):
    header = HEADER.replace(*change)
    golden.write_bytes(b"MMGCODES" + struct.pack("<I", len(header)) + header + GOLDEN[-12:])
    assert pool.read(TRACK) is None
    golden.write_bytes(b"MMGCODES" + struct.pack("<I", 0xFFFFFFF0) + HEADER + GOLDEN[-12:])
    assert pool.read(TRACK) is None


def test_pool_and_sound_are_named_by_all_that_shapes_codes(tmp_path):
    def folder(codec, settings=SETTINGS):
        return TokenPool.beside(tmp_path / "store", codec, settings).folder

    others = [
        folder(BlockCodec()),
        folder(BlockCodec(content_hash="other")),
        folder(BlockCodec(), replace(SETTINGS, segment_s=2.0)),  # short tracks are looped to two segments
        folder(BlockCodec(), replace(SETTINGS, window_s=3.0)),
        folder(BlockCodec(), replace(SETTINGS, overlap_s=0.2)),
    ]
    assert len(set(others)) == 5
    assert sound_key(TRACK) == sound_key(replace(TRACK, path="/elsewhere.wav", weight=3.0))
    changed = [replace(TRACK, audio_hash="11"), replace(TRACK, duration=1.0), replace(TRACK, audio_hash=None)]
    assert len({sound_key(track) for track in (TRACK, *changed)}) == 4


def test_a_strangers_manifest_without_hashes_goes_by_file_and_time(tmp_path, make_track):
    track = replace(make_track("a.wav", level_steps(60, 0)), audio_hash=None)
    codec = BlockCodec()
    before = build(tmp_path / "one", [track], codec).codes(0).copy()
    calls = codec.calls
    build(tmp_path / "two", [track], codec)
    assert codec.calls == calls
    soundfile.write(track.path, level_steps(60, 1), RATE, subtype="FLOAT")
    after = build(tmp_path / "three", [track], codec).codes(0)
    assert codec.calls > calls and (after != before).any()


def test_what_was_added_alone_is_encoded(tmp_path, make_track):
    tracks = [make_track(f"{n}.wav", level_steps(60 + n, n)) for n in range(4)]
    codec = BlockCodec()
    build(tmp_path / "before", tracks[:3], codec)
    assert codec.calls == 3
    grown = [tracks[2], tracks[3], tracks[0]]  # one more, one less, another order
    plan = plan_token_store(tmp_path / "after", grown, codec, SETTINGS)
    assert (plan.num_tracks, plan.num_reused, plan.missing, plan.store) == (3, 2, (tracks[3],), None)
    calls = []
    build(tmp_path / "after", grown, codec, progress=lambda done, total: calls.append((done, total)))
    assert codec.calls == 4 and calls == [(2, 3), (3, 3)]
    build(tmp_path / "alone/after", grown)
    assert content(tmp_path / "after") == content(tmp_path / "alone/after")


def test_moved_and_weighted_files_are_not_encoded_again(tmp_path, make_track):
    track = make_track("a.wav", level_steps(60, 0))
    codec = BlockCodec()
    build(tmp_path / "one", [track], codec)
    moved = Path(track.path).rename(tmp_path / "b.wav")
    store = build(tmp_path / "two", [replace(track, path=str(moved), weight=2.0)], codec)
    assert codec.calls == 1 and (store.tracks[0].name, store.tracks[0].weight) == ("b", 2.0)


def test_one_sound_twice_is_encoded_once(tmp_path, make_track):
    tracks = [make_track("a.wav", level_steps(60, 0)), make_track("b.wav", level_steps(60, 0))]
    codec = BlockCodec()
    store = build(tmp_path / "store", tracks, codec)
    assert codec.calls == 1 and np.array_equal(store.codes(0), store.codes(1))


def test_damaged_pool_files_are_encoded_again(tmp_path, make_track):
    tracks = [make_track(f"{n}.wav", level_steps(60, n)) for n in range(3)]
    codec = BlockCodec()
    expected = content(build(tmp_path / "one", tracks, codec).folder)
    path = TokenPool.beside(tmp_path / "one", codec, SETTINGS).path(tracks[1])
    path.write_bytes(path.read_bytes()[:-1])
    assert content(build(tmp_path / "two", tracks, codec).folder) == expected and codec.calls == 4


def test_a_file_that_was_changed_since_is_refused(tmp_path, make_track):
    tracks = [make_track(f"{n}.wav", level_steps(60, n)) for n in range(2)]
    soundfile.write(tracks[0].path, level_steps(60, 7), RATE, subtype="FLOAT")
    with pytest.raises(UnreadableAudioError, match="1 of 2 files not encoded, .*0.wav holds another sound") as error:
        build(tmp_path / "store", tracks)
    assert "\n" not in str(error.value) and not (tmp_path / "store").exists()


def test_a_codec_that_leaves_its_range_is_refused(tmp_path, make_track):
    codec = BlockCodec()
    codec.cardinality = 10
    with pytest.raises(MicroMusicGenError, match=r"the codec gave code \d+, outside its range \[0, 10\)"):
        build(tmp_path / "store", [make_track("a.wav", level_steps(60, 0))], codec)


def test_half_written_files_of_killed_builds_are_swept_when_old(tmp_path, make_track, pool):
    pool.folder.mkdir(parents=True)
    for age_s in (60, 2 * 86_400):
        scratch, stage = pool.folder / f".x.codes.{age_s}.tmp", tmp_path / f".store.{age_s}.new"
        scratch.touch()
        stage.mkdir()
        then = scratch.stat().st_mtime - age_s
        os.utime(scratch, (then, then))
        os.utime(stage, (then, then))
    build(tmp_path / "store", [make_track("a.wav", level_steps(60, 0))])
    assert [p.name for p in pool.folder.glob(".*")] == [".x.codes.60.tmp"]
    assert [p.name for p in tmp_path.glob(".store*")] == [".store.60.new"]
