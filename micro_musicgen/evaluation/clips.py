"""The clips that are measured: made once, kept as codes beside a WAV to listen to, found again after a stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from micro_musicgen import storage
from micro_musicgen.audio.io import write_wav
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.evaluation.prompts import Prompt
from micro_musicgen.evaluation.request import EvaluationRequest

FOLDER = "clips"
KEY_NAME = "clips.json"
VERSION = 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MadeClips:
    """Generated clips. codes: int64 [N, K, T]. wavs: float32 [N, C, L]. prompts: what each was asked for."""

    codes: torch.Tensor
    wavs: torch.Tensor
    prompts: tuple[Prompt, ...]
    num_found: int


def made_clips(
    model: MicroMusicGen, request: EvaluationRequest, facts: dict[str, Any], progress: Progress | None = None
) -> MadeClips:
    """Gives the clips of `request`; those that lie in its folder from before are read instead of made.

    facts: what besides the request shapes the clips: the hashes of the weights. progress: hears (clips, of all).

    Raises:
        MicroMusicGenError: the folder holds clips of another request, or can't be written; see `MicroMusicGen.codes`.
    """
    folder = storage.ensure_writable(request.out.expanduser() / FOLDER)
    prompts = request.prompts()
    _claim(folder, _key(model, request, facts), overwrite=request.overwrite)
    texts = [prompts[clip % len(prompts)].text if prompts else None for clip in range(request.num_clips)]
    kept = [_read(folder, clip, model) for clip in range(request.num_clips)]
    num_found = sum(codes is not None for codes in kept)
    for first, count in _missing(kept, request.batch_size):
        if progress is not None:
            progress(sum(codes is not None for codes in kept), request.num_clips)
        codes = model.codes(
            count, descriptions=texts[first : first + count] if prompts else None, first_clip=first
        ).cpu()
        wavs = model.decode(codes.to(model.device)).cpu()
        for offset in range(count):
            kept[first + offset] = codes[offset]
            _write(folder, first + offset, codes[offset], wavs[offset], model.sample_rate)
    if progress is not None:
        progress(request.num_clips, request.num_clips)
    together = torch.stack([codes for codes in kept if codes is not None])
    # Decoded again, a few at a time: a clip that was found and one that was just made have the same samples.
    pieces = [model.decode(few.to(model.device)).cpu() for few in torch.split(together, request.batch_size)]
    chosen = tuple(prompts[clip % len(prompts)] for clip in range(request.num_clips)) if prompts else ()
    return MadeClips(together, torch.cat(pieces), chosen, num_found)


def _key(model: MicroMusicGen, request: EvaluationRequest, facts: dict[str, Any]) -> dict[str, Any]:
    """Gives all that shapes a clip. Their number is not in it: more of them go on where the last evaluation ended."""
    return {
        "version": VERSION,
        "model": facts,
        "seed": request.seed,
        "frames": model.num_frames,
        "temperature": request.temperature,
        "top_k": model.params.top_k,
        "top_p": request.top_p,
        "cfg_coef": model.params.cfg_coef,
        "precision": str(model.precision),
        "texts": [prompt.text for prompt in request.prompts()],
    }


def _claim(folder: Path, key: dict[str, Any], *, overwrite: bool) -> None:
    """Makes sure that the clips in `folder` are those of `key`."""
    path = folder / KEY_NAME
    if path.is_file():
        there = storage.read_json(path)
        if there == key:
            return
        if not overwrite:
            other = next((name for name in key if not isinstance(there, dict) or there.get(name) != key[name]), "key")
            raise MicroMusicGenError(f"{folder} holds clips of another {other}; choose another --out, or --overwrite")
    for old in [*folder.glob("clip_*.npy"), *folder.glob("clip_*.wav")]:
        if not overwrite:
            raise MicroMusicGenError(f"{folder} holds {old.name}, which is of no evaluation; choose another --out")
        old.unlink()
    storage.write_json(path, key)


def _stem(folder: Path, clip: int) -> Path:
    return folder / f"clip_{clip:04d}"


def _write(folder: Path, clip: int, codes: torch.Tensor, wav: torch.Tensor, sample_rate: int) -> None:
    write_wav(_stem(folder, clip).with_suffix(".wav"), wav.numpy(), sample_rate)
    with storage.atomic_write(_stem(folder, clip).with_suffix(".npy")) as file:
        np.save(file, codes.numpy(), allow_pickle=False)


def _read(folder: Path, clip: int, model: MicroMusicGen) -> torch.Tensor | None:
    """Gives the codes [K, T] of a clip from before; None where there is none, or one that is damaged."""
    try:
        found = np.load(_stem(folder, clip).with_suffix(".npy"), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    codec = model.codec
    if found.shape != (codec.num_codebooks, model.num_frames) or found.dtype != np.int64:
        return None
    return torch.from_numpy(found) if found.min() >= 0 and found.max() < codec.cardinality else None


def _missing(kept: list[torch.Tensor | None], batch_size: int) -> list[tuple[int, int]]:
    """Gives (first, count) of batches of neighbours that are still to be made."""
    batches = []
    for lacks, group in groupby(range(len(kept)), key=lambda clip: kept[clip] is None):
        run = list(group)
        if lacks:
            batches += [(run[at], len(run[at : at + batch_size])) for at in range(0, len(run), batch_size)]
    return batches
