import json
import os

import numpy as np
import pytest
import torch
from token_oracle import HOP, BlockCodec, level_steps

from micro_musicgen.data import frame_store
from micro_musicgen.data.frame_store import build_frame_store, open_frame_store, prepared_store
from micro_musicgen.data.track_frames import encode_frames
from micro_musicgen.diffusion.representation import CodecFrames
from micro_musicgen.errors import MicroMusicGenError, MissingFileError, UnreadableAudioError

WINDOWS = {"segment_s": 1.0, "window_s": 2.0, "overlap_s": 0.4}


class SlowFrames(CodecFrames):
    """Block means at 25 frames a second, of sound at 16 kHz: another rate in both respects."""

    name = "slow"

    def __init__(self):
        super().__init__(BlockCodec(content_hash="slow"))
        self.sample_rate, self.frame_rate = 16_000, 25.0


@pytest.fixture
def tracks(make_track):
    return [
        make_track("long.wav", level_steps(400.5, 0)),
        make_track("loop.wav", level_steps(30, 1)),
        make_track("exact.wav", level_steps(50, 2), weight=2.0),
    ]


def build(folder, tracks, codec=None, condition=None, **options):
    codec = codec or BlockCodec()
    return build_frame_store(folder, tracks, CodecFrames(codec), codec, condition, **{**WINDOWS, **options})


@pytest.mark.parametrize("num_frames", [1, 7, 100, 101, 181, 400.5])
def test_windows_give_the_frames_of_the_whole(num_frames):
    wav = np.random.default_rng(0).uniform(-0.9, 0.9, int(num_frames * HOP)).astype(np.float32)
    latents = CodecFrames(BlockCodec(10))
    whole = latents.encode(torch.from_numpy(wav)[None, None])[0].T.numpy()
    found = encode_frames(wav, latents, window_s=2.0, overlap_s=0.4)
    assert found.dtype == np.float32 and np.allclose(found, whole, atol=1e-6)


def test_layout_on_disk(tmp_path, tracks):
    calls = []
    store = build(tmp_path / "s", tracks, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert [p.name for p in tmp_path.iterdir()] != [] and not list(tmp_path.glob(".*"))
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["codes.npy", "index.json", "target.npy"]
    index = json.loads((tmp_path / "s/index.json").read_text())
    assert {
        name: index[name] for name in ("format", "version", "target", "target_hash", "codec_hash", "D", "K", "Dc")
    } == {
        "format": "micro_musicgen_frames",
        "version": 1,
        "target": "codec",
        "target_hash": "block",
        "codec_hash": "block",
        "D": 2,
        "K": 2,
        "Dc": 0,
    }
    assert [(t["start"], t["num_frames"], t["loop"]) for t in index["tracks"]] == [
        (0, 400, False),
        (400, 100, True),
        (500, 50, False),
    ]
    assert store.num_frames == 550 and store.condition(0) is None
    assert isinstance(store.arrays["target"], np.memmap) and not store.target(0).flags.writeable
    levels = level_steps(400.5, 0)[::HOP][:400]
    assert np.allclose(store.target(0), np.stack([levels, np.abs(levels)], 1), atol=1e-6)
    assert store.codes(0).dtype == np.int16
    assert np.array_equal(store.codes(0), ((store.target(0) + 1) * 499.9).astype(np.int16))
    assert np.allclose(store.target(1)[:30], store.target(1)[30:60], atol=1e-6)  # a loop goes round


def test_codes_are_those_of_a_token_store(tmp_path, tracks):
    from token_oracle import build as build_tokens

    tokens = build_tokens(tmp_path / "tokens" / "x", tracks)
    store = build(tmp_path / "s", tracks)
    assert all(np.array_equal(tokens.codes(i), store.codes(i)) for i in range(3))


def test_a_condition_of_another_rate_lies_beside_the_target(tmp_path, make_track):
    ramp = np.linspace(-0.5, 0.5, 400 * HOP).astype(np.float32)
    tracks = [make_track("ramp.wav", ramp), make_track("loop.wav", level_steps(30, 1))]
    store = build(tmp_path / "s", tracks, condition=SlowFrames())
    assert store.condition_channels == 2 and store.condition(0).shape == (400, 2)
    # A ramp's block mean is its value in the middle of the block: the same at both rates.
    assert np.abs(store.condition(0)[2:-2, 0] - store.target(0)[2:-2, 0]).max() < 1e-3
    assert len(store.condition(1)) == len(store.target(1)) == 100


def test_codes_of_another_rate_are_the_nearest(tmp_path, make_track):
    tracks = [make_track("long.wav", level_steps(120, 0))]
    store = build_frame_store(tmp_path / "s", tracks, SlowFrames(), BlockCodec(), **WINDOWS)
    whole = build(tmp_path / "w", tracks)
    assert store.frame_rate == 25 and store.codes(0).shape == (60, 2)
    assert np.array_equal(store.codes(0), whole.codes(0)[1::2])


def test_reused_when_it_fits_and_made_again_when_not(tmp_path, tracks):
    codec = BlockCodec()
    before = build(tmp_path / "s", tracks, codec)
    calls = codec.calls
    assert build(tmp_path / "s", tracks, codec).tracks == before.tracks and codec.calls == calls
    assert len(build(tmp_path / "s", tracks[:2], codec).tracks) == 2 and codec.calls > calls
    (tmp_path / "s/codes.npy").write_bytes(b"short")
    assert build(tmp_path / "s", tracks[:2], codec).num_frames == 500
    other = build(tmp_path / "s", tracks[:2], BlockCodec(content_hash="other"))
    assert other.facts.codec_hash == "other"


def test_a_place_of_its_own_for_everything_that_shapes_it(home, tracks):
    codec = BlockCodec()
    stores = [
        prepared_store("set", "train", tracks, CodecFrames(codec), codec, segment_s=0.5),
        prepared_store("set", "train", tracks, CodecFrames(codec), segment_s=0.5),
        prepared_store("set", "train", tracks, CodecFrames(codec), codec, segment_s=1.0),
        prepared_store("set", "train", tracks[:2], CodecFrames(codec), codec, segment_s=0.5),
        prepared_store("set", "train", tracks, CodecFrames(codec), codec, SlowFrames(), segment_s=0.5),
    ]
    assert len({store.folder for store in stores}) == 5
    assert {store.folder.parent for store in stores} == {home / "frames"}


def test_a_killed_build_goes_on(tmp_path, tracks):
    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "s", tracks, progress=interrupt)
    assert not (tmp_path / "s").exists()
    codec = BlockCodec()
    build(tmp_path / "s", tracks, codec)
    assert codec.calls == 1
    assert {p.name for p in tmp_path.iterdir()} == {"s", "sounds"}
    alone = build(tmp_path / "alone", tracks)
    for path in (tmp_path / "s").iterdir():
        assert path.read_bytes() == (alone.folder / path.name).read_bytes()


@pytest.mark.parametrize("moment", [1, 3])
def test_another_process_was_faster(tmp_path, tracks, moment):
    def meanwhile(done, total):
        if done == moment:
            build(tmp_path / "s", tracks)

    assert build(tmp_path / "s", tracks, progress=meanwhile).num_frames == 550
    assert {p.name for p in tmp_path.iterdir()} == {"s", "sounds"}


def test_what_a_killed_build_left_is_swept_when_it_is_old(tmp_path, tracks):
    for age_s in (60, 2 * 86_400):
        stage = tmp_path / f".s.{age_s}.new"
        stage.mkdir()
        then = stage.stat().st_mtime - age_s
        os.utime(stage, (then, then))
    build(tmp_path / "s", tracks)
    assert [path.name for path in tmp_path.glob(".s.*.new")] == [".s.60.new"]


def test_files_that_changed_are_named_and_the_others_kept(tmp_path, tracks, make_track):
    make_track("loop.wav", level_steps(30, 9))
    with pytest.raises(UnreadableAudioError, match=r"1 of 3 files not encoded.*loop.wav holds another sound"):
        build(tmp_path / "s", tracks)
    codec = BlockCodec()
    build(tmp_path / "s", [tracks[0], tracks[2]], codec)  # another store, so other parts
    assert codec.calls


def test_hashes_are_refused(tmp_path, tracks):
    build(tmp_path / "s", tracks[:1])
    open_frame_store(tmp_path / "s", target_hash="block", codec_hash="block")
    with pytest.raises(MicroMusicGenError, match=r"another codec \(block, not other\)"):
        open_frame_store(tmp_path / "s", codec_hash="other")
    with pytest.raises(MicroMusicGenError, match="another target"):
        open_frame_store(tmp_path / "s", target_hash="other")


def test_damage_is_told(tmp_path, tracks):
    with pytest.raises(MissingFileError, match="holds no frame store"):
        open_frame_store(tmp_path / "none")
    store = build(tmp_path / "s", tracks[:1])
    index = store.folder / "index.json"
    sound = index.read_text()

    def damaged(match, **changes):
        index.write_text(json.dumps({**json.loads(sound), **changes}))
        with pytest.raises(MicroMusicGenError, match=match) as error:
            open_frame_store(store.folder)
        assert "\n" not in str(error.value)

    damaged("damaged.*format", format="x")
    damaged("version 2", version=2)
    damaged("damaged.*target.npy", D=3)
    damaged("damaged.*D, K, Dc", D=0)
    damaged("damaged.*frame_rate", frame_rate=float("nan"))
    damaged("damaged", tracks=[{**json.loads(sound)["tracks"][0], "num_frames": 1 << 60}])
    damaged("damaged", tracks=[{**json.loads(sound)["tracks"][0], "start": 5}])
    damaged("damaged", tracks=[])
    index.write_text(sound)
    codes = np.load(store.folder / "codes.npy")
    codes[7, 1] = -1
    np.save(store.folder / "codes.npy", codes)
    with pytest.raises(MicroMusicGenError, match="damaged.*code -1"):
        open_frame_store(store.folder)
    np.save(store.folder / "codes.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(MicroMusicGenError, match="damaged"):
        open_frame_store(store.folder)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"segment_s": 0.001}, "segment 0.001 s"),
        ({"overlap_s": 1.5}, "overlap 1.5 s"),
        ({"segment_s": float("inf")}, "segment inf s"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, tracks, options, match):
    with pytest.raises(MicroMusicGenError, match=match):
        build(tmp_path / "s", tracks, **options)


def test_models_that_make_no_sense(tmp_path, tracks, monkeypatch):
    with pytest.raises(MicroMusicGenError, match="no track"):
        build(tmp_path / "s", [])
    stereo = BlockCodec()
    stereo.channels = 2
    with pytest.raises(MicroMusicGenError, match="2 channels"):
        build_frame_store(tmp_path / "s", tracks, CodecFrames(BlockCodec()), stereo, **WINDOWS)
    broken = BlockCodec()
    monkeypatch.setattr(broken, "encode_latents", lambda wav: torch.full((1, 2, -(-wav.shape[-1] // HOP)), torch.nan))
    with pytest.raises(MicroMusicGenError, match="target of .*long.wav is not finite"):
        build_frame_store(tmp_path / "s", tracks, CodecFrames(broken), **WINDOWS)
    assert frame_store.facts_of(frame_store.FrameMaker(CodecFrames(broken), None, None, 1.0)).K == 0
