"""Latents that somebody else computed: one array [N, D, T] of N clips, and another of what each is to be told.

    target.npy or target.safetensors         float16, float32 or float64 [N, D, T], such as [N, 64, 1024]
    condition.npy or condition.safetensors   likewise [N, Dc, T], clip by clip beside the target

A safetensors file holds one tensor, whatever its name. Nothing is copied: of either kind only the clips that are asked
for are read. A clip is a track of its own; whether two clips are of one song is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from micro_musicgen.data.frames import Floats, FrameTrack
from micro_musicgen.data.slots import uniform
from micro_musicgen.errors import MicroMusicGenError, MissingFileError

FRAME_RATE = 44_100 / 2048
"""Of the latents that such files usually hold: 44.1 kHz sound, 2048 samples a frame."""
_SAFE_DTYPES = {"F16": "float16", "F32": "float32", "F64": "float64"}


class _Clips(Protocol):
    """An array [N, D, T] on disk."""

    shape: tuple[int, ...]

    def clip(self, index: int) -> Floats:
        """Gives clip `index`, [D, T]."""


@dataclass(frozen=True)
class FrameFiles:
    """One split of such files, as crops are cut from it. chosen: the clips that belong to it, in order."""

    place: Path
    frame_rate: float
    chosen: tuple[int, ...]
    targets: _Clips
    conditions: _Clips | None

    @cached_property
    def tracks(self) -> tuple[FrameTrack, ...]:
        """The clips, each of which counts once; named by their place in the file."""
        length = self.targets.shape[2]
        return tuple(
            FrameTrack(f"clip {index}", str(self.place), None, 0, length, length / self.frame_rate, 1.0, False)
            for index in self.chosen
        )

    @property
    def channels(self) -> int:
        """D of the target."""
        return self.targets.shape[1]

    @property
    def num_codebooks(self) -> int:
        """There are no codes."""
        return 0

    @property
    def condition_channels(self) -> int:
        """Dc of the condition, 0 for none."""
        return 0 if self.conditions is None else self.conditions.shape[1]

    def target(self, index: int) -> Floats:
        """Gives the frames [T, D] of the split's clip `index`."""
        return self.targets.clip(self.chosen[index]).T

    def codes(self, index: int) -> npt.NDArray[np.int16] | None:
        """Gives None: there are none."""
        return None

    def condition(self, index: int) -> Floats | None:
        """Gives the condition [T, Dc] of the split's clip `index`; None where there is none."""
        return None if self.conditions is None else self.conditions.clip(self.chosen[index]).T


def open_frame_files(
    target: Path | str,
    condition: Path | str | None = None,
    *,
    valid_fraction: float,
    seed: int,
    frame_rate: float = FRAME_RATE,
) -> dict[str, FrameFiles]:
    """Gives the splits `train` and `valid`, clip by clip, both of at least one clip: a function of N and the seed.

    Raises:
        MissingFileError: a file is not there.
        MicroMusicGenError: it is of another kind, cut off, or of other shapes; fewer than two clips; a fraction that
            is not inside (0, 1), or a frame rate that is not above 0.
    """
    if not 0 < valid_fraction < 1:
        raise MicroMusicGenError(f"valid fraction {valid_fraction:g} must lie between 0 and 1, such as 0.1")
    if not 0 < frame_rate < float("inf"):
        raise MicroMusicGenError(f"frame rate {frame_rate:g} must be above 0 frames a second")
    targets = _open(Path(target))
    conditions = None if condition is None else _open(Path(condition))
    if conditions is not None and (conditions.shape[0], conditions.shape[2]) != (targets.shape[0], targets.shape[2]):
        raise MicroMusicGenError(
            f"{condition} is {_text(conditions.shape)} and {target} {_text(targets.shape)}; they must have as many "
            "clips of as many frames"
        )
    if targets.shape[0] < 2:
        raise MicroMusicGenError(f"{target} holds one clip; training and validation need one each")
    return {
        split: FrameFiles(Path(target), frame_rate, chosen, targets, conditions)
        for split, chosen in split_clips(targets.shape[0], valid_fraction, seed).items()
    }


def split_clips(num_clips: int, valid_fraction: float, seed: int) -> dict[str, tuple[int, ...]]:
    """Gives the clips of each split, in order: the nearest whole number for valid, but at least one for both."""
    order = sorted(range(num_clips), key=lambda clip: (uniform(seed, clip), clip))
    num_valid = min(max(1, round(valid_fraction * num_clips)), num_clips - 1)
    return {"train": tuple(sorted(order[num_valid:])), "valid": tuple(sorted(order[:num_valid]))}


def _open(path: Path) -> _Clips:
    """Gives the array of a file by its ending."""
    openers: dict[str, Callable[[Path], _Clips]] = {".npy": _NumpyClips, ".safetensors": _SafeClips}
    opener = openers.get(path.suffix)
    if opener is None:
        raise MicroMusicGenError(f"{path} ends in neither .npy nor .safetensors; save the latents as one of them")
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}; name one that holds latents [N, D, T]")
    clips = opener(path)
    if len(clips.shape) != 3 or min(clips.shape) < 1:
        raise MicroMusicGenError(f"{path} is {_text(clips.shape)}, expected [N, D, T]: clips, channels, frames")
    return clips


class _NumpyClips:
    """A .npy file, mapped."""

    def __init__(self, path: Path) -> None:
        try:
            self._array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _unreadable(path, error) from error
        if self._array.dtype not in (np.float16, np.float32, np.float64):
            raise _wrong_type(path, str(self._array.dtype))
        self.shape: tuple[int, ...] = self._array.shape

    def clip(self, index: int) -> Floats:
        """Gives clip `index`, [D, T], mapped."""
        found: Floats = self._array[index]
        return found


class _SafeClips:
    """A safetensors file with one tensor in it, opened anew for each clip: a handle can't go to another process."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                names = sorted(file.keys())
                self._path, self._name = path, names[0] if names else ""
                if len(names) != 1:
                    raise MicroMusicGenError(
                        f"{path} holds {len(names)} tensors ({', '.join(names[:4])}); keep one of them in the file"
                    )
                part = file.get_slice(self._name)
                self.shape: tuple[int, ...] = tuple(part.get_shape())
                kind = part.get_dtype()
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        if kind not in _SAFE_DTYPES:
            raise _wrong_type(path, kind)

    def clip(self, index: int) -> Floats:
        """Gives clip `index`, [D, T], read now."""
        from safetensors import safe_open

        with safe_open(self._path, framework="np") as file:
            found: Floats = file.get_slice(self._name)[index : index + 1][0]
        return found


def _text(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _wrong_type(path: Path, kind: str) -> MicroMusicGenError:
    return MicroMusicGenError(f"{path} holds {kind}; save the latents as float16, float32 or float64")


def _unreadable(path: Path, error: Exception) -> MicroMusicGenError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return MicroMusicGenError(f"{path} can't be read ({reason}); save or fetch it again")
