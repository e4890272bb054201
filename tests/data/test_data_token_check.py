"""Verify names every kind of damage; repair encodes what is damaged and nothing else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from token_oracle import BlockCodec, build, content, level_steps

from micro_musicgen.data import encode
from micro_musicgen.data.token_check import check_store, repair_store
from micro_musicgen.data.token_pool import TokenPool
from micro_musicgen.data.tokens import TokenSettings, open_token_store
from micro_musicgen.errors import MissingFileError, UnreadableAudioError

SETTINGS = TokenSettings(1.0, 2.0, 0.4)


@pytest.fixture
def tracks(make_track):
    return [make_track(f"{n}.wav", level_steps(50 + 10 * n, n)) for n in range(4)]


@pytest.fixture
def folder(tmp_path, tracks, monkeypatch) -> Path:
    """A store of two shards: frames 0..50, 50..110, and 0..70, 70..150."""
    monkeypatch.setattr(encode, "SHARD_BYTES", 150 * 2 * 2)
    return build(tmp_path / "store", tracks).folder


@pytest.fixture
def without_pool(folder) -> Path:
    shutil.rmtree(folder.parent / "pool")
    return folder


def flip(folder: Path, shard: int, frame: int, value: int) -> None:
    path = folder / f"shard-{shard:05d}.bin"
    codes = np.fromfile(path, "<i2")
    assert codes[2 * frame] != value
    codes[2 * frame] = value
    codes.tofile(path)


def change_index(folder: Path, change) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def test_a_sound_store_has_no_faults(folder):
    report = check_store(folder)
    assert (report.faults, report.damaged, report.num_tracks, report.num_unproven) == ((), (), 4, 0)
    assert report.lines() == [f"4 files of {folder} are sound"]
    codec = BlockCodec()
    report = check_store(folder, codec=codec, sample=2)
    assert report.faults == () and codec.calls == 2 and dict(report.equal_shares) == {"0": 1.0, "2": 1.0}
    json.dumps(report.to_dict())


def test_a_flip_that_only_the_checksum_sees(folder):
    flip(folder, 1, 80, 3)
    assert len(open_token_store(folder).tracks) == 4  # sizes and ranges are right
    report = check_store(folder)
    assert report.damaged == (3,) and report.faults == ("track 3: checksum differs",)


def test_every_kind_of_damage_is_named(folder):
    flip(folder, 0, 60, 1000)
    flip(folder, 0, 3, -2)
    shard = folder / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-40])
    report = check_store(folder)
    assert report.damaged == (0, 1, 3) and report.faults == (
        "shard-00001.bin: 560 bytes, the index says 600",
        "track 0: code -2 is outside [0, 1000)",
        "track 1: code 1000 is outside [0, 1000)",
        "track 3: its shard ends before it",
    )
    shard.unlink()
    assert "shard-00001.bin: missing" in check_store(folder).faults


def test_an_index_that_cannot_be_read(folder):
    with pytest.raises(MissingFileError):
        check_store(folder.parent)
    (folder / "index.json").write_text("{")
    report = check_store(folder)
    assert report.damaged is None and len(report.faults) == 1 and "cannot read" in report.faults[0]


def test_codes_of_another_sound_show_when_encoded_again(folder, make_track, tracks):
    make_track("1.wav", level_steps(60, 99))  # in the place of the old one
    report = check_store(folder, codec=BlockCodec(), sample=4)
    assert report.damaged == (1,) and report.faults[0].startswith("track 1: encoding it again gives ")
    Path(tracks[2].path).unlink()
    assert any(
        "track 2: cannot be encoded again" in fault
        for fault in check_store(folder, codec=BlockCodec(), sample=4).faults
    )


@pytest.mark.parametrize(
    ("damage", "num_encoded"),
    [
        (lambda f: None, 0),
        (lambda f: flip(f, 1, 80, 3), 1),
        (lambda f: (flip(f, 0, 3, -2), flip(f, 1, 80, 3)), 2),
        (lambda f: (f / "shard-00001.bin").unlink(), 2),
        (lambda f: (f / "shard-00001.bin").write_bytes((f / "shard-00001.bin").read_bytes()[:-4]), 1),
        (lambda f: (f / "shard-00000.bin").write_bytes((f / "shard-00000.bin").read_bytes() + b"\0\0"), 0),
        (lambda f: (f / "index.json").write_text("{"), 4),
        (lambda f: change_index(f, lambda i: i["tracks"][1].update(checksum="0")), 1),
        (lambda f: change_index(f, lambda i: i.update(codec_hash="x")), 4),
        (lambda f: change_index(f, lambda i: i.update(card=1)), 4),
    ],
)
def test_repair_encodes_what_is_damaged_and_nothing_else(without_pool, tracks, damage, num_encoded):
    expected = content(without_pool)
    damage(without_pool)
    codec = BlockCodec()
    store, report = repair_store(without_pool, tracks, codec, SETTINGS)
    assert content(without_pool) == expected and codec.calls == num_encoded
    assert bool(report.faults) == (num_encoded > 0 or "600" in str(report.faults)) or report.damaged == ()
    assert store.folder == without_pool and check_store(without_pool).faults == ()


def test_repair_takes_from_the_pool_what_lies_there(folder, tracks):
    expected = content(folder)
    (folder / "shard-00001.bin").unlink()
    codec = BlockCodec()
    repair_store(folder, tracks, codec, SETTINGS)
    assert content(folder) == expected and codec.calls == 0


def test_repair_of_codes_that_are_wrong_in_store_and_pool(folder, tracks):
    expected = content(folder)
    wrong = np.full((60, 2), 7, dtype="<i2")
    pool = TokenPool.beside(folder, BlockCodec(), SETTINGS)
    pool.write(tracks[1], wrong, False)
    (folder / "index.json").unlink()
    build(folder, tracks)
    codec = BlockCodec()
    assert check_store(folder).faults == ()  # it can be told by encoding only
    repair_store(folder, tracks, codec, SETTINGS, sample=4)
    assert content(folder) == expected and codec.calls == 4 + 1


def test_a_repair_that_fails_leaves_the_store(without_pool, tracks):
    flip(without_pool, 1, 80, 3)
    before = content(without_pool)
    Path(tracks[3].path).unlink()
    with pytest.raises(UnreadableAudioError, match="1 of 4 files not encoded"):
        repair_store(without_pool, tracks, BlockCodec(), SETTINGS)
    assert content(without_pool) == before


def test_stores_from_before_checksums(without_pool, tracks):
    """They are read, verified as far as they can be, and a repair adds what they lack only where something is wrong."""
    expected = content(without_pool)
    change_index(without_pool, lambda i: [track.pop("checksum") for track in i["tracks"]])
    assert len(open_token_store(without_pool).tracks) == 4
    codec = BlockCodec()
    build(without_pool, tracks, codec)
    assert codec.calls == 0
    report = check_store(without_pool)
    assert report.faults == () and report.num_unproven == 4 and "no checksum" in report.lines()[-1]
    shard = without_pool / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-4])
    repair_store(without_pool, tracks, codec, SETTINGS)
    # Of a torn shard without checksums nothing is believed.
    assert content(without_pool) == expected and codec.calls == 2
