"""Tracks into the pool, in this process or in several; what goes wrong with one track is no harm to the others.

The pool is all that they share: each process writes its own tracks there, and the codes don't depend on how many
processes there are (see `track_codes`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from micro_musicgen.contracts import Codec
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.token_pool import TokenPool
from micro_musicgen.data.track_codes import check_unchanged, encode_track
from micro_musicgen.errors import MicroMusicGenError

WORTH_A_PROCESS_S = 300.0
"""Seconds of audio that repay the start of one more process, which loads torch and the codec."""

LoadCodec = Callable[[], Codec]
Progress = Callable[[int], None]


def pick_workers(asked: int | None, codec: Codec, tracks: Sequence[Track]) -> int:
    """Gives how many processes to encode `tracks` with: as many as asked for, else as many as they are worth.

    Raises:
        MicroMusicGenError: fewer than one was asked for.
    """
    if asked is not None:
        if asked < 1:
            raise MicroMusicGenError(f"workers {asked} must be 1 or more")
        return min(asked, max(1, len(tracks)))
    if torch.device(getattr(codec, "device", "cpu")).type != "cpu":
        return 1  # one process keeps such a device busy
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    worth = int(sum(track.duration for track in tracks) / WORTH_A_PROCESS_S)
    return max(1, min(cores, len(tracks), worth))


def encode_all(
    tracks: Sequence[Track],
    codec: Codec,
    pool: TokenPool,
    *,
    workers: int,
    load: LoadCodec | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Puts the codes of `tracks` into the pool, the longest first, and gives one line for each that could not be.

    load: makes the codec in another process; None sends `codec` itself there. progress(done) counts tracks.

    Raises:
        MicroMusicGenError: the pool cannot be written to, or the processes don't start. What was encoded stays.
    """
    ordered = sorted(tracks, key=lambda track: -track.duration)
    if workers > 1:
        outcomes = _in_processes(ordered, load or _packed(codec), pool, workers)
    else:
        outcomes = _here(ordered, codec, pool)
    faults = []
    with contextlib.closing(outcomes):
        for done, fault in enumerate(outcomes, 1):
            if fault is not None:
                faults.append(fault)
            if progress is not None:
                progress(done)
    return sorted(faults)


def encode_one(track: Track, codec: Codec, pool: TokenPool) -> str | None:
    """Puts the codes of one track into the pool; gives a line that says what is wrong with the track, if anything is.

    Raises:
        MicroMusicGenError: the pool cannot be written to, which is not the track's fault.
    """
    try:
        check_unchanged(track)
        codes, loops = encode_track(track, codec, pool.settings)
    except (MicroMusicGenError, OSError, MemoryError, RuntimeError) as error:  # RuntimeError: torch's own
        reason = " ".join(str(error).split()) or type(error).__name__
        return reason if track.path in reason else f"{track.path}: {reason}"
    pool.write(track, codes, loops)
    return None


def _here(tracks: Sequence[Track], codec: Codec, pool: TokenPool) -> Generator[str | None, None, None]:
    for track in tracks:
        yield encode_one(track, codec, pool)


@dataclass(frozen=True)
class _Packed:
    """Loads a codec that travels whole, as bytes: torch's way, shared memory, is 64 MB small in many containers."""

    pickled: bytes

    def __call__(self) -> Codec:
        codec: Codec = pickle.loads(self.pickled)
        return codec


def _packed(codec: Codec) -> _Packed:
    try:
        return _Packed(pickle.dumps(codec))
    except (TypeError, AttributeError, RuntimeError, pickle.PicklingError) as error:
        raise MicroMusicGenError(f"this codec cannot be sent to another process ({error}); use 1 worker") from error


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    track: Track | None = None


def _in_processes(
    tracks: Sequence[Track], load: LoadCodec, pool: TokenPool, workers: int
) -> Generator[str | None, None, None]:
    """Gives a fault or None for each track as it ends. A process that dies takes its track with it and is replaced."""
    waiting = deque(tracks)
    crew: list[_Worker] = []
    try:
        crew += (_start(load, pool) for _ in range(workers))
        while waiting or any(worker.track for worker in crew):
            for pipe in wait([worker.pipe for worker in crew]):
                worker = next(worker for worker in crew if worker.pipe is pipe)
                try:
                    fault, is_fatal = worker.pipe.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    yield _last_words(worker)
                    if len(waiting) > len(crew):
                        crew.append(_start(load, pool))
                    continue
                if is_fatal:
                    raise MicroMusicGenError(fault)
                is_outcome = worker.track is not None  # else it says that it is ready
                worker.track = waiting.popleft() if waiting else None
                if worker.track is not None:
                    with contextlib.suppress(OSError):  # it has just died: the next wait says so
                        worker.pipe.send(worker.track)
                if is_outcome:
                    yield fault
    finally:
        for worker in crew:
            worker.pipe.close()
            worker.process.terminate()
        for worker in crew:
            worker.process.join()


def _last_words(worker: _Worker) -> str:
    """Gives what to say of the track that died with its worker.

    Raises:
        MicroMusicGenError: it died before its first track, so the next one would, too.
    """
    worker.process.join()
    code = worker.process.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    if worker.track is None:
        raise MicroMusicGenError(f"an encoding process {how} before its first file; try 1 worker")
    hint = "; is there too little memory? Fewer workers need less" if code == -9 else ""
    return f"{worker.track.path}: its encoding process {how}{hint}"


def _start(load: LoadCodec, pool: TokenPool) -> _Worker:
    # Spawned, not forked: a fork of a process in which torch has threads, or CUDA, hangs.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, load, pool), daemon=True)
    try:
        process.start()
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise MicroMusicGenError(f"the codec's loader cannot be sent to another process ({error})") from error
    theirs.close()  # or its end would never show in ours
    return _Worker(process, ours)


def _work(pipe: Connection, load: LoadCodec, pool: TokenPool) -> None:
    """One process: says that it is ready, then encodes what it is given until there is no more, or nobody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one decides
    try:
        codec = load()
        if codec.content_hash != pool.codec_hash:
            raise MicroMusicGenError(f"the codec changed from {pool.codec_hash} to {codec.content_hash}; start again")
        _send(pipe, None)
        while True:
            try:
                track = pipe.recv()
            except (EOFError, OSError):
                return
            _send(pipe, encode_one(track, codec, pool))
    except MicroMusicGenError as error:
        _send(pipe, str(error), is_fatal=True)


def _send(pipe: Connection, fault: str | None, *, is_fatal: bool = False) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more: the next thing to read says so
        pipe.send((fault, is_fatal))
