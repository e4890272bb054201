import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from micro_musicgen.data.frame_crops import FrameCrops
from micro_musicgen.data.frame_files import FRAME_RATE, open_frame_files, split_clips
from micro_musicgen.errors import MicroMusicGenError, MissingFileError


@pytest.fixture
def write(tmp_path):
    """Writes [N, D, T] whose every number is its own: clip, channel and frame can be told from it."""

    def make(name, shape=(10, 4, 32), dtype=np.float32, sign=1):
        path = tmp_path / name
        array = sign * np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        if path.suffix == ".npy":
            np.save(path, array)
        else:
            save_file({"latents": array}, path)
        return path

    return make


@pytest.mark.parametrize("name", ["target.npy", "target.safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pairs_are_read_clip_by_clip(write, name, dtype):
    condition = write("told.npy", (10, 6, 32), sign=-1)
    splits = open_frame_files(write(name, dtype=dtype), condition, valid_fraction=0.2, seed=0)
    assert (len(splits["train"].tracks), len(splits["valid"].tracks)) == (8, 2)
    for source in splits.values():
        assert (source.channels, source.num_codebooks, source.condition_channels) == (4, 0, 6)
        for index, clip in enumerate(source.chosen):
            assert source.tracks[index].name == f"clip {clip}"
            assert source.target(index).shape == (32, 4) and source.condition(index).shape == (32, 6)
            assert source.target(index)[5, 2] == dtype(clip * 128 + 2 * 32 + 5)
            assert source.condition(index)[5, 2] == -(clip * 192 + 2 * 32 + 5)
            assert source.codes(index) is None


@pytest.mark.parametrize("name", ["target.npy", "target.safetensors"])
def test_crops_are_cut_from_them(write, name):
    source = open_frame_files(write(name, dtype=np.float16), write("c.npy"), valid_fraction=0.2, seed=0)["train"]
    crops = FrameCrops(source, segment_frames=32, seed=0)
    assert crops.crops_per_pass == 8
    batch = crops.batch(0, 8)
    assert batch.target.shape == (8, 4, 32) and batch.target.dtype == torch.float32 and batch.codes is None
    assert sorted(batch.tracks) == list(range(8))
    assert torch.equal(batch.target, batch.condition.half().float())
    short = FrameCrops(source, segment_frames=8, seed=0).batch(0, 4)
    assert torch.equal(short.target[..., 1:] - short.target[..., :1], torch.arange(1.0, 8.0).expand(4, 4, 7))
    assert sum(len(piece.target) for piece in crops.all_frames()) == 8
    with pytest.raises(MicroMusicGenError, match="segment of 33 frames does not fit into clip"):
        FrameCrops(source, segment_frames=33, seed=0)


def test_nothing_is_copied(write):
    source = open_frame_files(write("target.npy"), valid_fraction=0.2, seed=0)["train"]
    assert isinstance(source.target(0), np.memmap) and not source.target(0).flags.writeable
    assert source.condition(0) is None and source.condition_channels == 0


def test_time_is_that_of_the_latents(write):
    source = open_frame_files(write("t.npy", (2, 64, 1024)), valid_fraction=0.5, seed=0)["train"]
    assert source.frame_rate == pytest.approx(21.533, abs=1e-3) and FRAME_RATE == source.frame_rate
    assert source.tracks[0].duration_s == pytest.approx(47.55, abs=0.01)


def test_the_split_is_of_clips_and_of_the_seed():
    first = split_clips(100, 0.2, 0)
    assert first == split_clips(100, 0.2, 0) != split_clips(100, 0.2, 1)
    assert sorted(first["train"] + first["valid"]) == list(range(100)) and len(first["valid"]) == 20
    assert {size: len(split_clips(2, size, 0)["valid"]) for size in (0.01, 0.5, 0.99)} == {0.01: 1, 0.5: 1, 0.99: 1}


def mistakes(write, tmp_path):
    """Gives for each mistake the files and what is said."""
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "object.npy").write_bytes(b"\x93NUMPY" + pickle.dumps({}))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    save_file({"a": np.zeros((2, 1, 1)), "b": np.zeros((2, 1, 1))}, tmp_path / "two.safetensors")
    good, safe = write("good.npy"), write("good.safetensors")
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:-8])
    (tmp_path / "cut.safetensors").write_bytes(safe.read_bytes()[:-8])
    yield from (
        ("none.npy", None, "there is no file"),
        ("latents.pt", None, "neither .npy nor .safetensors"),
        *((name, None, f"{name} can't be read") for name in ("text.npy", "text.safetensors", "object.npy")),
        *((name, None, f"{name} can't be read") for name in ("pickled.npy", "cut.npy", "cut.safetensors")),
        ("two.safetensors", None, r"2 tensors \(a, b\)"),
        (write("flat.npy", (4, 8)), None, r"\[4, 8\], expected \[N, D, T\]"),
        (write("empty.npy", (4, 8, 0)), None, r"\[4, 8, 0\], expected \[N, D, T\]"),
        (write("whole.npy", dtype=np.int32), None, "holds int32"),
        (write("whole.safetensors", dtype=np.int32), None, "holds I32"),
        (write("one.npy", (1, 4, 8)), None, "one clip"),
        (good, write("fewer.npy", (9, 4, 32)), r"fewer.npy is \[9, 4, 32\] and .*good.npy \[10, 4, 32\]"),
        (good, write("shorter.npy", (10, 4, 31)), "as many clips of as many frames"),
        (good, "none.npy", "there is no file"),
    )


def test_every_mistake_is_one_line(write, tmp_path):
    for target, condition, match in mistakes(write, tmp_path):
        files = [None if name is None else tmp_path / name for name in (target, condition)]
        with pytest.raises(MicroMusicGenError, match=match) as error:
            open_frame_files(*files, valid_fraction=0.2, seed=0)
        assert "\n" not in str(error.value), match
    with pytest.raises(MissingFileError):
        open_frame_files(tmp_path / "none.npy", valid_fraction=0.2, seed=0)
    for fraction in (0, 1, -0.5, float("nan")):
        with pytest.raises(MicroMusicGenError, match="valid fraction"):
            open_frame_files(tmp_path / "good.npy", valid_fraction=fraction, seed=0)
    with pytest.raises(MicroMusicGenError, match="frame rate 0"):
        open_frame_files(tmp_path / "good.npy", valid_fraction=0.2, seed=0, frame_rate=0)
