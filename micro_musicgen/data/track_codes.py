"""One track's codes: its audio through the codec in long overlapping windows, on one thread.

Sums over several threads may round otherwise than over one. So the codes depend on neither the number of cores nor that
of processes; who has many cores encodes many tracks at once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from micro_musicgen.audio.io import load_mono
from micro_musicgen.contracts import Codec
from micro_musicgen.data import tokens
from micro_musicgen.data.beat_view import BeatView
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.scan import scan
from micro_musicgen.data.tokens import TokenSettings
from micro_musicgen.errors import MicroMusicGenError

LEAD_S = 1.0
"""Nominal seconds that a codec hears of a loop before and after the codes that are kept of it."""


def check_unchanged(track: Track) -> None:
    """Makes sure that a file still holds the sound that its manifest names, since its codes are kept by that name.

    Raises:
        UnreadableAudioError: it is gone or damaged.
        MicroMusicGenError: it holds another sound.
    """
    if track.audio_hash is not None and scan(Path(track.path)).audio_hash != track.audio_hash:
        raise MicroMusicGenError(f"{track.path} holds another sound than when it was prepared")


def encode_track(track: Track, codec: Codec, settings: TokenSettings) -> tuple[npt.NDArray[np.int16], bool]:
    """Gives the codes [T, K] of one file, and whether it was looped.

    A long track loses its last, partial frame, which would hold the codec's padding. A track shorter than a segment
    is looped to two segments first: crops of it cross the loop's seam as playing does. In beat time see `encode_beats`.
    """
    if settings.in_beats:
        return encode_beats(track, codec, settings)
    hop = codec.hop_samples
    segment_frames = round(settings.segment_s * codec.frame_rate)
    expected = track.duration * codec.sample_rate
    loops = expected < segment_frames * hop
    wav = load_mono(track.path, codec.sample_rate, wraps=loops)
    loops = loops or len(wav) < segment_frames * hop
    if loops:
        # Two segments hold a crop from every phase of the loop, since the loop is shorter than one.
        wav = np.resize(wav, 2 * segment_frames * hop)
    with one_thread():
        codes = encode_windows(wav, codec, window_s=settings.window_s, overlap_s=settings.overlap_s)
    return codes[: max(1, len(wav) // hop)], loops


def encode_beats(track: Track, codec: Codec, settings: TokenSettings) -> tuple[npt.NDArray[np.int16], bool]:
    """Gives the codes [T, K] of one file in beat time, and whether it loops.

    A loop's codes are those of it going round and round: the codec hears its end before its start. There are as many
    as crops from each of its beats need (see `tokens`).
    """
    hop = codec.hop_samples
    segment = settings.segment_frames(codec.frame_rate)
    view = BeatView.of(track, settings.steps(hop), segment * hop)
    wav, lead, kept = view.whole(), 0, view.length // hop
    if view.loops:
        lead = round(LEAD_S * codec.frame_rate)
        kept += segment - settings.steps().per_beat
        wav = wav[np.arange(-lead * hop, (kept + lead) * hop) % len(wav)]
    with one_thread():
        codes = encode_windows(wav, codec, window_s=settings.window_s, overlap_s=settings.overlap_s)
    return codes[lead : lead + kept], view.loops


def encode_windows(
    wav: npt.NDArray[np.float32], codec: Codec, *, window_s: float, overlap_s: float
) -> npt.NDArray[np.int16]:
    """Gives int16 codes [T, K] of mono samples [L] at the codec's rate, T = ceil(L / hop_samples).

    Neighbouring windows share `overlap_s`; each gives its own half of that, so that no code is taken from within
    half the overlap of a window's edge, where the codec hears padding.

    Raises:
        MicroMusicGenError: the codec gave codes outside its own range.
    """
    hop = codec.hop_samples
    num_frames = math.ceil(len(wav) / hop)
    half_overlap = round(overlap_s * codec.frame_rate / 2)
    window = max(round(window_s * codec.frame_rate), 2 * half_overlap + 1)
    pieces = []
    for start, begin, end in window_spans(num_frames, window, half_overlap):
        # Copied, so that the samples lie at an aligned address whatever the window: kernels may round by alignment.
        samples = torch.tensor(wav[start * hop : (start + window) * hop])
        codes = codec.encode(samples[None, None])[0]
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= codec.cardinality:
            wrong = low if low < 0 else high
            raise MicroMusicGenError(f"the codec gave code {wrong}, outside its range [0, {codec.cardinality})")
        pieces.append(codes[:, begin - start : end - start].T.cpu().numpy().astype(tokens.CODE_DTYPE))
    return np.ascontiguousarray(np.concatenate(pieces))


def window_spans(num_frames: int, window: int, half_overlap: int) -> Iterator[tuple[int, int, int]]:
    """Gives of each window, in frames: where it starts, and the range [begin, end) of the whole that it gives."""
    # The last window begins where it reaches the end: it is as long as the others, or the only one.
    starts = [*range(0, max(0, num_frames - window), window - 2 * half_overlap), max(0, num_frames - window)]
    edges = [0, *(start + half_overlap for start in starts[1:]), num_frames]
    for start, (begin, end) in zip(starts, pairwise(edges), strict=True):
        yield start, begin, end


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Makes torch use one thread for as long as the block lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
