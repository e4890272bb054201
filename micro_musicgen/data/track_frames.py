"""One track's frames: its audio through a representation and a codec in long overlapping windows, on one thread.

As `track_codes`, for floats; what is told beside the target lies frame by frame beside it, whatever its own rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from micro_musicgen.audio.io import load_mono, resample
from micro_musicgen.contracts import Codec
from micro_musicgen.data.frames import CODE_DTYPE, FRAME_DTYPE, Floats
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.track_codes import encode_windows, one_thread, window_spans
from micro_musicgen.diffusion.representation import Representation, nearest, resampled
from micro_musicgen.errors import MicroMusicGenError


@dataclass(frozen=True)
class FrameMaker:
    """What turns a track into frames. segment_s: tracks shorter than it are looped. The rest: as in `TokenSettings`."""

    target: Representation
    codec: Codec | None
    condition: Representation | None
    segment_s: float
    window_s: float = 30.0
    overlap_s: float = 2.0

    @property
    def segment_frames(self) -> int:
        """Frames of a segment, at the target's rate."""
        return round(self.segment_s * self.target.frame_rate)

    @property
    def sample_rate(self) -> int:
        """The highest of the rates that are listened at, in Hz."""
        parts = (self.target, self.codec, self.condition)
        return max(part.sample_rate for part in parts if part is not None)

    def frames(self, track: Track) -> tuple[dict[str, npt.NDArray[np.generic]], bool]:
        """Gives the arrays of one file, [T, D] each, and whether it was looped.

        A long track loses its last, partial frame, which would hold padding. A track shorter than a segment is looped
        to two segments first, as in token stores.

        Raises:
            MicroMusicGenError: what a representation gave is no finite number, or the file can't be read.
        """
        shortest = self.segment_frames / self.target.frame_rate
        loops = track.duration < shortest
        wav = load_mono(track.path, self.sample_rate, wraps=loops)
        loops = loops or len(wav) < shortest * self.sample_rate
        hop = self.sample_rate / self.target.frame_rate
        num_frames = max(1, math.floor(len(wav) / hop))
        if loops:
            # Looped at one rate, so that all arrays go round at the same instants.
            num_frames = 2 * self.segment_frames
            wav = np.resize(wav, math.ceil(num_frames * hop))
        with one_thread(), torch.no_grad():
            arrays = self._arrays(wav, num_frames)
        for name, array in arrays.items():
            if array.dtype == FRAME_DTYPE and not np.isfinite(array).all():
                raise MicroMusicGenError(f"the {name} of {track.path} is not finite; the model is broken")
        return arrays, loops

    def _arrays(self, wav: npt.NDArray[np.float32], num_frames: int) -> dict[str, npt.NDArray[np.generic]]:
        found: dict[str, npt.NDArray[np.generic]] = {}
        found["target"] = self._float_frames(self.target, wav)[:num_frames]
        if self.codec is not None:
            samples = resample(wav, self.sample_rate, self.codec.sample_rate)
            codes = encode_windows(samples, self.codec, window_s=self.window_s, overlap_s=self.overlap_s)
            found["codes"] = self._beside(codes, num_frames, self.codec.frame_rate, nearest).astype(CODE_DTYPE)
        if self.condition is not None:
            frames = self._float_frames(self.condition, wav)
            found["condition"] = self._beside(frames, num_frames, self.condition.frame_rate, resampled)
        return {name: np.ascontiguousarray(array) for name, array in found.items()}

    def _float_frames(self, representation: Representation, wav: npt.NDArray[np.float32]) -> Floats:
        samples = resample(wav, self.sample_rate, representation.sample_rate)
        return encode_frames(samples, representation, window_s=self.window_s, overlap_s=self.overlap_s)

    def _beside(
        self, rows: npt.NDArray[np.generic], num_frames: int, rate: float, at_rate: Callable[..., torch.Tensor]
    ) -> npt.NDArray[np.generic]:
        """Gives rows [T', D] of another frame rate at the target's, [T, D]."""
        if rate == self.target.frame_rate and len(rows) >= num_frames:
            return rows[:num_frames]
        columns = torch.from_numpy(rows).t()[None]
        found: npt.NDArray[np.generic] = at_rate(columns, num_frames, rate / self.target.frame_rate)[0].t().numpy()
        return found


def encode_frames(
    wav: npt.NDArray[np.float32], representation: Representation, *, window_s: float, overlap_s: float
) -> Floats:
    """Gives float32 frames [T, D] of mono samples [L], T = ceil(L / hop_samples); windows as in `encode_windows`."""
    hop = representation.hop_samples
    num_frames = math.ceil(len(wav) / hop)
    half_overlap = round(overlap_s * representation.frame_rate / 2)
    window = max(round(window_s * representation.frame_rate), 2 * half_overlap + 1)
    rows = np.empty((num_frames, representation.channels), dtype=FRAME_DTYPE)
    for start, begin, end in window_spans(num_frames, window, half_overlap):
        samples = torch.tensor(wav[start * hop : (start + window) * hop])  # copied; see `encode_windows`
        frames = representation.encode(samples[None, None])[0]
        rows[begin:end] = frames[:, begin - start : end - start].T.float().cpu().numpy()
    return rows
