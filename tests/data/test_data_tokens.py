import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from token_oracle import HOP, BlockCodec, build, level_steps

from micro_musicgen import contracts
from micro_musicgen.data import encode, tokens
from micro_musicgen.data.code_crops import CodeCrops
from micro_musicgen.data.tokens import open_token_store, store_folder, store_key
from micro_musicgen.data.track_codes import encode_windows
from micro_musicgen.errors import MicroMusicGenError, MissingFileError


@pytest.fixture
def steps():
    return level_steps


@pytest.fixture
def tracks(make_track, steps):
    return [
        make_track("long.wav", steps(400.5, 0)),
        make_track("loop.wav", steps(30, 1)),
        make_track("exact.wav", steps(50, 2), weight=2.0),
    ]


def test_the_oracle_is_a_codec():
    assert isinstance(BlockCodec(), contracts.Codec)


@pytest.mark.parametrize("num_frames", [1, 7, 99, 100, 101, 180, 181, 260, 400.5, 983])
@pytest.mark.parametrize("reach", [0, 10])
def test_windows_give_the_codes_of_the_whole(num_frames, reach):
    rng = np.random.default_rng(0)
    wav = rng.uniform(-0.9, 0.9, int(num_frames * HOP)).astype(np.float32)
    codec = BlockCodec(reach)
    whole = codec.encode(torch.from_numpy(wav)[None, None])[0].T.numpy()
    found = encode_windows(wav, codec, window_s=2.0, overlap_s=0.4)
    assert found.dtype == np.dtype("<i2") and found.shape == (int(np.ceil(num_frames)), 2)
    assert np.abs(found - whole).max() <= 1  # float rounding at a quantiser's border
    assert (found == whole).mean() > 0.99


def test_a_codec_that_reaches_beyond_the_overlap_shows():
    wav = np.random.default_rng(0).uniform(-0.9, 0.9, 500 * HOP).astype(np.float32)
    codec = BlockCodec(30)
    whole = codec.encode(torch.from_numpy(wav)[None, None])[0].T.numpy()
    assert (encode_windows(wav, codec, window_s=2.0, overlap_s=0.4) != whole).any()


def test_layout_on_disk(tmp_path, tracks, steps):
    calls = []
    store = build(tmp_path / "store", tracks, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["index.json", "shard-00000.bin"]
    assert [p.name for p in tmp_path.iterdir() if "store" in p.name] == ["store"]
    index = json.loads((tmp_path / "store/index.json").read_text())
    assert {k: index[k] for k in ("version", "codec_hash", "card", "K", "frame_rate", "settings")} == {
        "version": 1,
        "codec_hash": "block",
        "card": 1000,
        "K": 2,
        "frame_rate": 50.0,
        "settings": {"segment_s": 1.0, "window_s": 2.0, "overlap_s": 0.4},
    }
    assert index["tracks"][1] == {
        "name": "loop",
        "path": tracks[1].path,
        "audio_hash": tracks[1].audio_hash,
        "duration_s": 0.6,
        "weight": 1.0,
        "shard": 0,
        "offset_frames": 400,
        "num_frames": 100,
        "loop": True,
        "checksum": tokens.checksum(store.codes(1)),
    }
    # long: the half frame at the end is left out; loop: two segments; exact: as it is
    assert [t.num_frames for t in store.tracks] == [400, 100, 50] and store.num_frames == 550
    raw = np.fromfile(tmp_path / "store/shard-00000.bin", dtype="<i2").reshape(-1, 2)
    assert np.array_equal(raw[400:500], store.codes(1)) and raw.shape == (550, 2)
    expected = ((torch.from_numpy(steps(400.5, 0)[::HOP]).double() + 1) * 499.9).long()
    assert (torch.from_numpy(np.array(store.codes(0)[:, 0])).long() - expected[:400]).abs().max() <= 1


def test_shards_roll_over(tmp_path, tracks, monkeypatch):
    one = build(tmp_path / "one", tracks)
    monkeypatch.setattr(encode, "SHARD_BYTES", 500 * 2 * 2)
    many = build(tmp_path / "many", tracks)
    assert [(t.shard, t.offset_frames) for t in many.tracks] == [(0, 0), (0, 400), (1, 0)]
    assert all(np.array_equal(one.codes(i), many.codes(i)) for i in range(3))


def test_reused_when_it_fits_and_put_together_again_when_not(tmp_path, tracks):
    codec = BlockCodec()
    build(tmp_path / "s", tracks, codec)
    calls = codec.calls
    assert build(tmp_path / "s", tracks, codec).tracks == open_token_store(tmp_path / "s").tracks
    assert codec.calls == calls
    build(tmp_path / "s", tracks[:2], codec)
    assert codec.calls == calls and len(open_token_store(tmp_path / "s").tracks) == 2
    shard = tmp_path / "s/shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-4])
    assert build(tmp_path / "s", tracks[:2], codec).num_frames == 500 and codec.calls == calls
    build(tmp_path / "s", tracks[:2], codec, segment_s=0.5)
    assert codec.calls > calls


def test_key_names_all_that_shapes_the_codes(home, tracks):
    settings = tokens.TokenSettings(1.0)
    key = store_key("a", tracks, settings)
    moved = [replace(track, path="/elsewhere" + track.path) for track in tracks]
    assert store_key("a", moved, settings) == key
    others = [
        store_key("b", tracks, settings),
        store_key("a", tracks[:2], settings),
        store_key("a", tracks, tokens.TokenSettings(2.0)),
        store_key("a", [replace(tracks[0], audio_hash="other"), *tracks[1:]], settings),
        store_key("a", [replace(tracks[0], weight=3.0), *tracks[1:]], settings),
    ]
    assert len({key, *others}) == 6
    assert store_folder("jungle", "train", key) == home / "tokens" / f"jungle-train-{key}"


def test_interrupted_build_leaves_what_it_finished(tmp_path, tracks):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "s" / "x", tracks, progress=interrupt)
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["pool"]
    codec, calls = BlockCodec(), []
    build(tmp_path / "s" / "x", tracks, codec, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert codec.calls == 2  # the short ones: the longest is encoded first


def test_another_process_was_faster(tmp_path, tracks):
    folder = tmp_path / "s"

    def meanwhile(done: int, total: int) -> None:
        if done == total:
            build(tmp_path / "other", tracks).folder.rename(folder)

    before = build(folder, tracks, progress=meanwhile)
    assert before.folder == folder and len(before.tracks) == 3
    assert not list(tmp_path.glob(".s.*"))


@pytest.fixture
def store_path(tmp_path, tracks) -> Path:
    return build(tmp_path / "store", tracks).folder


def refused(store_path: Path, pattern: str) -> None:
    with pytest.raises(MicroMusicGenError, match=pattern) as error:
        open_token_store(store_path)
    assert "\n" not in str(error.value)


def test_damaged_shard_is_refused(store_path):
    shard = store_path / "shard-00000.bin"
    good = shard.read_bytes()
    shard.write_bytes(good[:-2])
    refused(store_path, r"shard-00000.bin is damaged \(2198 bytes, the index says 2200\); remove .* and train again")
    for code in (1000, -1):
        shard.write_bytes(good[:600] + np.array(code, dtype="<i2").tobytes() + good[602:])
        refused(store_path, rf"shard-00000.bin is damaged \(code {code} is outside \[0, 1000\)\)")
    shard.unlink()
    refused(store_path, r"shard-00000.bin is damaged \(missing\)")


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda i: i.pop("K"), "index.json is damaged .*'K'"),
        (lambda i: i.update(version=2), "has version 2, this is 1; upgrade"),
        (lambda i: i.update(tracks=[]), "damaged .* 0 tracks"),
        (lambda i: i.update(card=40_000), "damaged .* card 40000"),
        (lambda i: i["tracks"][0].update(offset_frames=-1), "damaged .*track long lies at"),
        (lambda i: i["tracks"][1].update(offset_frames=0), "damaged .*begins at frame 0 .* not at 400"),
        (lambda i: i["tracks"][2].update(num_frames=51), "damaged .*the index says 2204"),
        (lambda i: i["tracks"][2].update(num_frames=10**15), "damaged .*the index says"),
        (lambda i: i["tracks"][2].update(shard=3), "damaged"),
        (lambda i: i["tracks"][2].update(shard="../../x"), "damaged"),
        (lambda i: i["tracks"][2].update(duration_s=0), "damaged .*duration 0"),
        (lambda i: i.update(settings={"rubbish": 1}), "damaged .*rubbish"),
        (lambda i: i["settings"].update(window_s="30"), "damaged .*settings"),
        (lambda i: i.update(frame_rate=0), "damaged .*frame_rate 0"),
        (lambda i: i.update(frame_rate=float("nan")), "damaged .*frame_rate nan"),
        (lambda i: i.update(frame_rate=10**400), "damaged"),
        (lambda i: i["tracks"][0].update(duration_s=float("inf")), "damaged .*duration inf"),
        (lambda i: i["tracks"][0].update(weight=-1), "damaged .*weight -1"),
        (lambda i: i["tracks"][0].update(weight=10**400), "damaged"),
        (lambda i: i["tracks"][0].update(path=["x"]), "damaged .*path"),
        (lambda i: i["tracks"][0].update(checksum=7), "damaged .*checksum"),
        (lambda i: i["tracks"][0].update(num_frames=True), "damaged .*track long lies at"),
    ],
)
def test_damaged_index_is_refused(store_path, change, pattern):
    index = json.loads((store_path / "index.json").read_text())
    change(index)
    (store_path / "index.json").write_text(json.dumps(index))
    refused(store_path, pattern)


def test_other_errors(tmp_path, tracks, store_path):
    with pytest.raises(MissingFileError, match="holds no token store"):
        open_token_store(tmp_path)
    (store_path / "index.json").write_text("[]")
    refused(store_path, "damaged")
    (store_path / "index.json").write_text("{")
    refused(store_path, "cannot read .*index.json")
    (store_path / "index.json").write_text("[" * 100_000)
    refused(store_path, "index.json")
    stereo, rich = BlockCodec(), BlockCodec()
    stereo.channels, rich.cardinality = 2, 40_000
    with pytest.raises(MicroMusicGenError, match="the codec has 2 channels"):
        build(tmp_path / "x", tracks, stereo)
    with pytest.raises(MicroMusicGenError, match="card 40000 is above 32768"):
        build(tmp_path / "x", tracks, rich)
    with pytest.raises(MicroMusicGenError, match="overlap 9 s does not suit windows of 2 s"):
        build(tmp_path / "x", tracks, overlap_s=9.0)
    for segment_s in (0.0, 0.01, float("nan"), float("inf"), -1.0):
        with pytest.raises(MicroMusicGenError, match="segment .* must be finite and hold a frame of the codec, 0.02 s"):
            build(tmp_path / "x", tracks, segment_s=segment_s)
    for window_s in (float("nan"), float("inf")):
        with pytest.raises(MicroMusicGenError, match="does not suit windows of"):
            build(tmp_path / "x", tracks, window_s=window_s)


def test_a_golden_store_of_version_1_opens(tmp_path):
    track = {"name": "a", "path": "/a.wav", "audio_hash": None, "duration_s": 0.06, "weight": 1.0}
    index = {"version": 1, "codec_hash": "c", "card": 8, "K": 2, "frame_rate": 50.0}
    index["settings"] = {"segment_s": 1.0, "window_s": 30.0, "overlap_s": 2.0}
    index["tracks"] = [{**track, "shard": 0, "offset_frames": 0, "num_frames": 3, "loop": False}]
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "shard-00000.bin").write_bytes(bytes.fromhex("010002000300040005000700"))
    store = open_token_store(tmp_path)
    assert store.codes(0).tolist() == [[1, 2], [3, 4], [5, 7]] and tokens.index_dict(store) == index


def test_crops_are_pure_and_are_the_codes(store_path):
    store = open_token_store(store_path)
    crops = CodeCrops(store, segment_frames=20, seed=3)
    batches = [crops.batch(step, 4) for step in range(10)]
    assert batches[0].shape == (4, 2, 20) and batches[0].dtype == torch.int64
    again = CodeCrops(open_token_store(store_path), segment_frames=20, seed=3)
    for step in (9, 0, 4):
        assert torch.equal(again.batch(step, 4), batches[step])
    assert not torch.equal(CodeCrops(store, segment_frames=20, seed=4).batch(0, 4), batches[0])
    windows = [np.lib.stride_tricks.sliding_window_view(store.codes(i), 20, axis=0) for i in range(3)]
    for crop in torch.cat(batches).numpy():
        assert any((window == crop).all(axis=(1, 2)).any() for window in windows)


def test_crops_of_a_loop_cross_its_seam_in_every_phase(tmp_path, make_track, steps):
    track = make_track("loop.wav", steps(30, 1))
    store = build(tmp_path / "store", [track])
    loop = np.array(store.codes(0)[:30, 0])
    assert len(set(loop)) == 30
    crops = CodeCrops(store, segment_frames=50, seed=0).batch(0, 300)[:, 0].numpy()
    starts = [int(np.flatnonzero(loop == crop[0])[0]) for crop in crops]
    for start, crop in zip(starts, crops, strict=True):
        assert np.array_equal(crop, loop[(start + np.arange(50)) % 30])
    assert set(starts) == set(range(30))


def test_loop_that_is_no_whole_number_of_frames(tmp_path, make_track, steps):
    wav = steps(30.4, 1)
    store = build(tmp_path / "store", [make_track("loop.wav", wav)])
    whole = BlockCodec().encode(torch.from_numpy(np.resize(wav, 100 * HOP))[None, None])[0].T.numpy()
    assert (store.codes(0) == whole).mean() > 0.97 and np.abs(store.codes(0) - whole).max() <= 1


def test_crops_are_drawn_by_duration_and_weight(store_path):
    store = open_token_store(store_path)
    crops = CodeCrops(store, segment_frames=10, seed=0)
    assert crops.crops_per_pass == 53  # 40.05 long, 3 loop (not the 10 that it was repeated to), 5 x 2 exact
    drawn = crops.batch(0, 530)[:, 0, 0].numpy()
    shares = [np.isin(drawn, store.codes(i)[:, 0]).mean() for i in range(3)]
    assert shares[0] > 0.7 and shares[1] < 0.15 and shares[2] < 0.35


def test_valid_batches_are_fixed(store_path):
    store = open_token_store(store_path)
    crops = CodeCrops(store, segment_frames=50, seed=0)
    batches = list(crops.valid_batches(4, 100))
    assert [len(b) for b in batches] == [4, 4, 2]  # 8 of long, 1 of the loop, 1 exact
    again = list(CodeCrops(store, segment_frames=50, seed=9).valid_batches(4, 100))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert np.array_equal(batches[0][1].numpy().T, store.codes(0)[50:100])
    assert len(torch.cat(list(crops.valid_batches(4, 3)))) == 3


def test_segment_that_does_not_fit(store_path):
    with pytest.raises(MicroMusicGenError, match=r"segment of 51 frames does not fit into exact \(50 frames\) of .*"):
        CodeCrops(open_token_store(store_path), segment_frames=51, seed=0)
