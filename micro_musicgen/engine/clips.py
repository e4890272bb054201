"""Clips as WAV files: `micro-musicgen generate` without the command line.

Everything that can be refused is refused before a model is loaded, and a file is either complete or not there.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from micro_musicgen import storage
from micro_musicgen.audio.io import load_mono, probe, write_wav
from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.engine.inputs import check_count, prompt_codes
from micro_musicgen.errors import MicroMusicGenError

SHOWN_FILES = 8
DECODED_FRAMES = 8000
"""Frames of sound held at once while files are written: 160 s, 20 MB."""


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """What `micro-musicgen generate` was asked for.

    seed: None draws one. prompt: an audio file whose first `prompt_duration_s` seconds every clip begins with.
    batch_size: clips made at once; it changes speed and memory, never the clips.
    """

    release: str
    num_clips: int = 4
    out: Path = Path("clips")
    duration_s: float = 8.0
    seed: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 0.0
    prompt: Path | None = None
    prompt_duration_s: float = 2.0
    batch_size: int = 8
    device: str | None = None
    precision: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_count(self.num_clips)
        if self.batch_size < 1:
            raise MicroMusicGenError(f"batch size {self.batch_size} must be 1 or more")
        self.params(0)

    def params(self, seed: int) -> GenerationParams:
        """Gives the sampling parameters, checked; guidance is the model's to choose."""
        return GenerationParams(
            duration_s=self.duration_s,
            temperature=self.temperature,
            top_k=GenerationParams.top_k if self.top_k is None else self.top_k,
            top_p=self.top_p,
            seed=seed,
        )


@dataclass(frozen=True)
class WrittenClips:
    """What was written. seed: the one that makes the same clips again."""

    files: tuple[Path, ...]
    seed: int

    def lines(self) -> list[str]:
        """Gives what to tell a person: some of the files, and the seed."""
        shown = [str(path) for path in self.files[:SHOWN_FILES]]
        if len(self.files) > SHOWN_FILES:
            shown.append(f"and {len(self.files) - SHOWN_FILES} more in {self.files[0].parent}")
        return [*shown, f"seed {self.seed} (--seed {self.seed} gives these clips again)"]


def clip_name(release: str) -> str:
    """Gives the part of a file name that says which model made it; letters of any language stay."""
    path = Path(release).expanduser()
    if path.suffix == ".th" and path.is_file():  # one of a run's files: the run's name makes it tell something
        run = path.parent if path.parent.name not in ("best", "snapshots") else path.parent.parent
        return f"{run.name}_{path.stem}"
    last = path.resolve().name if path.exists() else release.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", last).strip("._") or "clip"


def clip_paths(request: ClipRequest, seed: int) -> list[Path]:
    """Gives the path of every clip: `OUT/NAME_SEED_000.wav` and so on.

    Raises:
        MicroMusicGenError: one of them exists and may not be replaced.
    """
    stem = f"{clip_name(request.release)}_{seed}"
    paths = [request.out.expanduser() / f"{stem}_{index:03d}.wav" for index in range(request.num_clips)]
    taken = [path for path in paths if path.exists()]
    if taken and not request.overwrite:
        raise MicroMusicGenError(f"{taken[0]} exists; choose another --seed or --out, or add --overwrite")
    return paths


def write_clips(request: ClipRequest, progress: Callable[[int, int], None] | None = None) -> WrittenClips:
    """Gives the files written for `request`. A clip is written as soon as its batch is done.

    progress: hears (clips x frames done, in all).

    Raises:
        MicroMusicGenError: something asked for can't be had; the message says what.
    """
    seed = secrets.randbits(31) if request.seed is None else request.seed
    paths = clip_paths(request, seed)
    storage.ensure_writable(request.out.expanduser())
    if request.prompt is not None:
        probe(request.prompt)
    model = open_model(request, seed)
    prompt = _prompt(request, model)
    total = request.num_clips * model.num_frames
    for first in range(0, request.num_clips, request.batch_size):
        batch = paths[first : first + request.batch_size]
        codes = model.codes(
            len(batch),
            prompt=None if prompt is None else prompt.expand(len(batch), -1, -1),
            first_clip=first,
            progress=_counted(progress, first, len(batch), model.num_frames, total),
        )
        # Sound takes a hundred times the memory of its codes, so a batch of long clips is decoded a few at a time.
        few = max(1, DECODED_FRAMES // model.num_frames)
        for at in range(0, len(batch), few):
            for path, wav in zip(batch[at : at + few], model.decode(codes[at : at + few]).cpu().numpy(), strict=True):
                write_wav(path, wav, model.sample_rate)
    return WrittenClips(tuple(paths), seed)


def open_model(request: ClipRequest, seed: int) -> MicroMusicGen:
    """Gives the model of `request`, its parameters set."""
    model = MicroMusicGen.get_pretrained(request.release, device=request.device, precision=request.precision)
    model.set_generation_params(
        duration=request.duration_s,
        seed=seed,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
    )
    return model


def _prompt(request: ClipRequest, model: MicroMusicGen) -> torch.Tensor | None:
    """Gives the prompt's codes [1, K, T]."""
    if request.prompt is None:
        return None
    wav = load_mono(request.prompt, model.sample_rate, duration_s=request.prompt_duration_s)
    return prompt_codes(torch.from_numpy(wav)[None], model.sample_rate, model.codec, num_frames=model.num_frames)


def _counted(
    progress: Callable[[int, int], None] | None, first: int, num_clips: int, num_frames: int, total: int
) -> Callable[[int, int], None] | bool:
    """Gives a hook that counts the frames of all clips instead of those of one batch."""
    if progress is None:
        return False

    def report(done: int, frames: int) -> None:
        share = done / frames
        progress(round((first + share * num_clips) * num_frames), total)

    return report
