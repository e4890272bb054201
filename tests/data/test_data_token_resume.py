"""Builds that are killed, cannot go on, or have bad files: what was finished stays, and the end is the same."""

import errno
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from token_oracle import BlockCodec, DeadlyCodec, build, content, level_steps

from micro_musicgen.data import encode, token_workers
from micro_musicgen.data.token_pool import TokenPool
from micro_musicgen.data.tokens import TokenSettings
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

SETTINGS = TokenSettings(1.0, 2.0, 0.4)


@pytest.fixture
def tracks(make_track):
    return [make_track(f"{n}.wav", level_steps(30 + 15 * n, n)) for n in range(5)]


@pytest.fixture
def expected(tmp_path, tracks) -> dict[str, bytes]:
    return content(build(tmp_path / "unkilled/store", tracks).folder)


def finished(folder: Path, tracks) -> int:
    pool = TokenPool.beside(folder, BlockCodec(), SETTINGS)
    return sum(pool.read(track) is not None for track in tracks)


def _die_at(step: int, then: Callable[[], object]) -> None:
    """Runs `then` in a process that is killed before its `step`-th call that changes the disk's state."""
    left = [step]

    def killing(call):
        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in ("fsync", "replace", "mkdir", "rmdir", "unlink"):
        setattr(os, name, killing(getattr(os, name)))
    then()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of itself")
def test_killed_before_every_step_in_turn_it_ends_with_the_same_bytes(tmp_path, tracks, expected, monkeypatch):
    monkeypatch.setattr(encode, "SHARD_BYTES", 120 * 2 * 2)
    expected = content(build(tmp_path / "shards/store", tracks).folder)
    assert len(expected) > 2
    context, step = multiprocessing.get_context("fork"), 0
    while True:
        folder = tmp_path / f"kill{step}" / "store"
        child = context.Process(target=_die_at, args=(step, lambda folder=folder: build(folder, tracks)))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        kept, codec = finished(folder, tracks), BlockCodec()
        assert not folder.exists() or content(folder) == expected  # never half a store
        assert content(build(folder, tracks, codec).folder) == expected
        assert codec.calls == len(tracks) - kept  # one window each
        step += 1
    print(f"{step} kill points, each resumed to the same bytes")
    assert step > 20


PROGRAM = """
import pickle, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import token_oracle

class Slow(token_oracle.BlockCodec):
    def encode(self, wav):
        time.sleep(0.05)
        return super().encode(wav)

if __name__ == "__main__":
    tracks = pickle.loads(Path(sys.argv[2]).read_bytes())
    print("go", flush=True)
    token_oracle.build(Path(sys.argv[3]), tracks, Slow(), workers=int(sys.argv[4]))
"""


def _build_and_kill(folder: Path, tracks, workers: int, num_kept: int, delay_s: float) -> None:
    """Kills a build `delay_s` after it has kept `num_kept` tracks."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    program, given = folder.parent / "program.py", folder.parent / "tracks.pkl"
    program.write_text(PROGRAM)
    given.write_bytes(pickle.dumps(tracks))
    command = [sys.executable, program, Path(__file__).parent, given, folder, str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        while len(list(folder.parent.glob("pool/*/*.codes"))) < num_kept:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(delay_s)
        process.kill()


@pytest.mark.slow
def test_kill_9_of_real_builds_at_random_moments(tmp_path, make_track):
    tracks = [make_track(f"{n}.wav", level_steps(60, n)) for n in range(24)]
    expected = content(build(tmp_path / "unkilled/store", tracks).folder)
    draw = random.Random(4)
    seen = []
    for number in range(6):
        workers = 1 + number % 2
        folder = tmp_path / f"kill{number}" / "store"
        _build_and_kill(folder, tracks, workers, draw.randrange(len(tracks)), draw.uniform(0, 0.06))
        kept, codec = finished(folder, tracks), BlockCodec()
        seen.append(kept)
        assert content(build(folder, tracks, codec).folder) == expected
        assert codec.calls <= len(tracks) - kept  # less where an orphaned process has just ended its track
    print(f"killed with {seen} of {len(tracks)} tracks finished, each resumed to the same bytes")
    assert len(set(seen)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path, tracks, expected, workers):
    calls = []
    folder = build(
        tmp_path / "store", tracks, workers=workers, progress=lambda done, total: calls.append((done, total))
    ).folder
    assert content(folder) == expected
    assert calls == [(n, 5) for n in range(1, 6)]


@pytest.mark.slow
def test_a_process_that_dies_costs_its_own_track_only(tmp_path, tracks, make_track):
    loud = make_track("loud.wav", 1.9 * level_steps(200, 9))
    given = [*tracks[:2], loud, *tracks[2:]]
    pattern = r"1 of 6 files not encoded, the codes of the others are kept: .*loud.wav: its encoding process was killed"
    with pytest.raises(UnreadableAudioError, match=pattern) as error:
        build(tmp_path / "store", given, DeadlyCodec(), workers=2)
    assert "\n" not in str(error.value) and not (tmp_path / "store").exists()
    assert finished(tmp_path / "store", tracks) == 5


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_files_that_vanished_or_were_damaged_are_named_and_the_rest_is_kept(tmp_path, tracks, workers):
    Path(tracks[1].path).unlink()
    Path(tracks[3].path).write_bytes(b"RIFF")
    with pytest.raises(UnreadableAudioError) as error:
        build(tmp_path / "store", tracks, workers=workers)
    said = str(error.value)
    assert said.startswith("2 of 5 files not encoded, the codes of the others are kept: ") and "\n" not in said
    assert "1.wav does not exist" in said and "3.wav" in said and "run micro-musicgen prepare again" in said
    codec = BlockCodec()
    build(tmp_path / "store", [tracks[0], tracks[2], tracks[4]], codec)
    assert codec.calls == 0


def test_many_bad_files_are_counted(tmp_path, tracks):
    for track in tracks:
        Path(track.path).unlink()
    with pytest.raises(UnreadableAudioError, match="5 of 5 files not encoded.*; and 2 more; mend") as error:
        build(tmp_path / "store", tracks)
    assert len(str(error.value)) < 1000


def _fill_disk_after(monkeypatch, writes: int) -> None:
    real, left = os.fsync, [writes]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("writes", [0, 3, 10, 12])
def test_full_disk_says_so_and_keeps_what_was_finished(tmp_path, tracks, expected, monkeypatch, writes):
    with monkeypatch.context() as patched:
        _fill_disk_after(patched, writes)
        with pytest.raises(MicroMusicGenError, match="the disk is full; make room and start again") as error:
            build(tmp_path / "store", tracks)
    assert "\n" not in str(error.value)
    kept, codec = finished(tmp_path / "store", tracks), BlockCodec()
    assert kept == min(5, (writes + 1) // 2) and not list(tmp_path.glob(".store*"))
    assert content(build(tmp_path / "store", tracks, codec).folder) == expected and codec.calls == 5 - kept


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_really_full(tmp_path, make_track, workers):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        tracks = [make_track(f"{n}.wav", level_steps(900, n)) for n in range(20)]
        with pytest.raises(MicroMusicGenError, match="cannot write .*(full|No space left)") as error:
            build(disk / "tokens/store", tracks, workers=workers)
        assert "\n" not in str(error.value)
        assert 8 <= finished(disk / "tokens/store", tracks) < 20
    finally:
        subprocess.run(["umount", disk], check=True)


def test_folder_that_cannot_be_written_to(tmp_path, tracks):
    (tmp_path / "file").touch()
    codec = BlockCodec()
    with pytest.raises(MicroMusicGenError, match="cannot write to .*file/tokens: .*; choose a folder") as error:
        build(tmp_path / "file/tokens/store", tracks, codec)
    assert "\n" not in str(error.value) and codec.calls == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_data_home_that_is_really_read_only(tmp_path, tracks):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(MicroMusicGenError, match="cannot write to .*: Read-only file system; choose a folder"):
            build(disk / "tokens/store", tracks)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_how_many_processes_are_worth_it(tracks, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    pick, codec = token_workers.pick_workers, BlockCodec()
    hour = [replace(track, duration=720.0) for track in tracks]
    assert pick(None, codec, tracks) == 1  # over before a process has loaded torch
    assert pick(None, codec, hour) == 5 and pick(None, codec, hour * 10) == 8
    assert pick(3, codec, tracks) == 3 and pick(30, codec, tracks) == 5 and pick(2, codec, []) == 1
    codec.device = "cuda"
    assert pick(None, codec, hour) == 1 and pick(2, codec, hour) == 2
    with pytest.raises(MicroMusicGenError, match="workers 0 must be 1 or more"):
        pick(0, codec, tracks)


def test_a_codec_that_cannot_travel_is_named(tmp_path, tracks):
    codec = BlockCodec()
    codec.hook = lambda: None
    with pytest.raises(MicroMusicGenError, match="cannot be sent to another process .*; use 1 worker"):
        build(tmp_path / "store", tracks, codec, workers=2)


@pytest.mark.slow
def test_another_codec_in_the_processes_is_refused(tmp_path, tracks):
    from functools import partial

    load = partial(BlockCodec, content_hash="another")
    with pytest.raises(MicroMusicGenError, match="the codec changed from block to another; start again"):
        build(tmp_path / "store", tracks, workers=2, load=load)
