"""Clips as WAV files: `micro-musicgen generate` without the command line.

Everything that can be refused is refused before a model is loaded, and a file is either complete or not there.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from micro_musicgen import storage
from micro_musicgen.audio.io import load_mono, probe, write_wav
from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.device import pick_device
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.engine.inputs import check_count, no_sounds
from micro_musicgen.engine.lengths import (
    DURATION_S,
    beat_facts,
    hearing,
    length_notes,
    length_params,
    prompt_seconds,
)
from micro_musicgen.engine.rerank import check_candidates, generate_best
from micro_musicgen.engine.sounds import prompt_codes, sound_codes
from micro_musicgen.engine.written import Scores, WrittenClip, WrittenClips
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.scorer import Scorer

MAX_REPEATS = 1000
DECODED_FRAMES = 8000
"""Frames of sound held at once while files are written: 160 s, 20 MB."""


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """What `micro-musicgen generate` was asked for.

    seed: None draws one. prompt: an audio file whose first `prompt_duration_s` seconds every clip begins with.
    texts, audio_prompts: what the clips are to be like; one for all of them, or one each. cfg_coef, cfg_coef_audio:
    None for the model's own guidance. duration_s: None for DURATION_S, in beat time for the model's window. bars,
    bpm, loop, keep_pitch: as `GenerationParams` has them. repeats: how often a file plays its clip. candidates:
    made of each clip, of which the CLAP model `clap` (a Hub id or a folder) chooses one. batch_size: candidates
    made at once; it changes speed and memory, never the clips. decoder and what follows: as
    `MicroMusicGen.get_pretrained` takes them.
    """

    release: str
    num_clips: int = 4
    out: Path = Path("clips")
    duration_s: float | None = None
    bars: int | None = None
    bpm: float | None = None
    loop: bool = False
    keep_pitch: bool = False
    repeats: int = 1
    seed: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 0.0
    prompt: Path | None = None
    prompt_duration_s: float = 2.0
    texts: tuple[str, ...] = ()
    audio_prompts: tuple[Path, ...] = ()
    cfg_coef: float | None = None
    cfg_coef_audio: float | None = None
    candidates: int = 1
    clap: str | None = None
    batch_size: int = 8
    decoder: str | None = None
    decoder_steps: int | None = None
    decoder_guidance: float | None = None
    decoder_noise: float | None = None
    device: str | None = None
    precision: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_count(self.num_clips)
        if self.batch_size < 1:
            raise MicroMusicGenError(f"batch size {self.batch_size} must be 1 or more")
        if not all(text.strip() for text in self.texts):
            raise MicroMusicGenError("a text is empty; describe the sound, or leave --text out")
        for given, what in ((self.texts, "texts"), (self.audio_prompts, "audio prompts")):
            if len(given) not in (0, 1, self.num_clips):
                raise MicroMusicGenError(
                    f"{len(given)} {what} for {self.num_clips} clips; give one for all of them, or one each"
                )
        self._check_choice()
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise MicroMusicGenError(f"{self.repeats} repeats of a clip; ask for 1 to {MAX_REPEATS}")
        if self.bars is not None and self.duration_s is not None:
            raise MicroMusicGenError(
                f"--duration {self.duration_s:g} and --bars {self.bars} are two lengths; give one of them"
            )
        self.params(0)

    def _check_choice(self) -> None:
        if check_candidates(self.candidates) > 1 and self.clap is None:
            raise MicroMusicGenError(
                f"{self.candidates} candidates need a CLAP model to choose by; add --clap with its folder or Hub id, "
                "such as laion/clap-htsat-unfused"
            )
        if self.clap is not None and not self.texts:
            raise MicroMusicGenError(
                "CLAP compares clips with a text, and there is none; add --text, or leave --clap out"
            )

    def params(self, seed: int) -> GenerationParams:
        """Gives the sampling parameters, checked; guidance that is not given is the model's to choose."""
        return GenerationParams(
            duration_s=DURATION_S if self.duration_s is None else self.duration_s,
            bars=self.bars,
            bpm=self.bpm,
            loop=self.loop,
            keep_pitch=self.keep_pitch,
            temperature=self.temperature,
            top_k=GenerationParams.top_k if self.top_k is None else self.top_k,
            top_p=self.top_p,
            cfg_coef=GenerationParams.cfg_coef if self.cfg_coef is None else self.cfg_coef,
            cfg_coef_audio=self.cfg_coef_audio,
            seed=seed,
        )

    def text(self, clip: int) -> str | None:
        """Gives what is said about one clip."""
        return None if not self.texts else self.texts[clip % len(self.texts)]

    def audio_prompt(self, clip: int) -> Path | None:
        """Gives the file that one clip is to be like."""
        return None if not self.audio_prompts else self.audio_prompts[clip % len(self.audio_prompts)]


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
    taken = [path for path in (*paths, *_scores_paths(request, seed)) if path.exists()]
    if taken and not request.overwrite:
        raise MicroMusicGenError(f"{taken[0]} exists; choose another --seed or --out, or add --overwrite")
    return paths


def _scores_paths(request: ClipRequest, seed: int) -> list[Path]:
    """Gives the path of the file of scores, where there are scores."""
    name = f"{clip_name(request.release)}_{seed}_scores.json"
    return [] if request.clap is None else [request.out.expanduser() / name]


def write_clips(request: ClipRequest, progress: Callable[[int, int], None] | None = None) -> WrittenClips:
    """Gives the files written for `request`. A clip is written as soon as its batch is done, and its scores with it.

    progress: hears (clips x frames done, in all).

    Raises:
        MicroMusicGenError: something asked for can't be had; the message says what.
    """
    seed = secrets.randbits(31) if request.seed is None else request.seed
    paths = clip_paths(request, seed)
    storage.ensure_writable(request.out.expanduser())
    for path in [*([request.prompt] if request.prompt else []), *dict.fromkeys(request.audio_prompts)]:
        probe(path)
    scorer = _scorer(request)
    model = open_model(request, seed)
    prompt, sounds = _prompt(request, model), read_sounds(request, model)
    total = request.num_clips * model.num_frames
    is_told = bool(request.texts or request.audio_prompts)
    written = WrittenClips(
        clips=(),
        seed=seed,
        cfg_coef=model.params.cfg_coef if is_told else None,
        cfg_coef_audio=model.params.cfg_coef_audio if is_told else None,
        scorer=None if scorer is None else scorer.name,
        notes=length_notes(request, model),
        beats=beat_facts(request, model),
    )
    at_once = max(1, request.batch_size // request.candidates)
    for first in range(0, request.num_clips, at_once):
        batch = range(first, min(first + at_once, request.num_clips))
        asked = {
            "prompt": None if prompt is None else prompt.expand(len(batch), -1, -1),
            **said_about(request, batch, sounds),
            "first_clip": first,
            "progress": _counted(progress, first, len(batch), model.num_frames, total),
        }
        made = _plain(model, len(batch), asked) if scorer is None else _best(model, request.candidates, scorer, asked)
        for clip, (wav, scores) in zip(batch, made, strict=True):
            write_wav(paths[clip], np.tile(wav.numpy(), (1, request.repeats)), model.sample_rate)
            text, sound = request.text(clip), request.audio_prompt(clip)
            written = written.and_also(WrittenClip(path=paths[clip], text=text, audio_prompt=sound, scores=scores))
        for path in _scores_paths(request, seed):
            storage.write_json(path, written.plain())
    return written


def _scorer(request: ClipRequest) -> Scorer | None:
    from micro_musicgen.metrics.clap import load_clap

    return None if request.clap is None else load_clap(request.clap, pick_device(request.device))


def _plain(model: MicroMusicGen, num_clips: int, asked: Mapping[str, Any]) -> Iterator[tuple[torch.Tensor, None]]:
    """Yields clips [C, L], without scores."""
    codes = model.codes(num_clips, **asked)
    # Sound takes a hundred times the memory of its codes, so a batch of long clips is decoded a few at a time.
    few = max(1, DECODED_FRAMES // model.num_frames)
    for at in range(0, num_clips, few):
        for wav in model.decode(codes[at : at + few]).cpu():
            yield wav, None


def _best(
    model: MicroMusicGen, candidates: int, scorer: Scorer, asked: Mapping[str, Any]
) -> Iterator[tuple[torch.Tensor, Scores]]:
    """Yields the best candidate [C, L] of each clip, and the scores of all."""
    best = generate_best(model, num_candidates=candidates, scorer=scorer, **asked)
    for wav, scores, chosen in zip(best.wavs, best.scores.tolist(), best.chosen.tolist(), strict=True):
        yield wav, Scores(values=tuple(scores), chosen=chosen)


def open_model(request: ClipRequest, seed: int) -> MicroMusicGen:
    """Gives the model of `request`, its parameters set."""
    model = MicroMusicGen.get_pretrained(
        request.release,
        device=request.device,
        precision=request.precision,
        decoder=request.decoder,
        decoder_steps=request.decoder_steps,
        decoder_guidance=request.decoder_guidance,
        decoder_noise=request.decoder_noise,
    )
    model.set_generation_params(
        **length_params(request, model),
        seed=seed,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        cfg_coef=request.cfg_coef,
        cfg_coef_audio=request.cfg_coef_audio,
    )
    return model


def read_sounds(request: ClipRequest, model: MicroMusicGen) -> dict[Path, torch.Tensor]:
    """Gives the codes [K, T] of the audio prompts by file, no longer than the model listens.

    Raises:
        MicroMusicGenError: one that can't be used, naming the file.
    """
    rate, most = model.sample_rate, model.conditioner.sound_frames
    if request.audio_prompts and not model.conditioner.audio:
        raise no_sounds()
    found = {}
    for path in dict.fromkeys(request.audio_prompts):
        codec = hearing(model, path)
        duration_s = None if most is None else (most + 1) / codec.frame_rate
        wav = torch.from_numpy(load_mono(path, rate, duration_s=duration_s))[None]
        try:
            (codes,) = sound_codes([wav], rate, codec, num_clips=1, max_frames=most)
        except MicroMusicGenError as error:
            raise MicroMusicGenError(f"{path}: {error}") from error
        assert codes is not None
        found[path] = codes
    return found


def said_about(request: ClipRequest, clips: Sequence[int], sounds: Mapping[Path, torch.Tensor]) -> dict[str, Any]:
    """Gives what `MicroMusicGen.codes` and `stream` are told about some of the clips, by argument."""
    heard = [request.audio_prompt(clip) for clip in clips]
    return {
        "descriptions": [request.text(clip) for clip in clips],
        "audio_prompts": [None if path is None else sounds[path] for path in heard],
    }


def _prompt(request: ClipRequest, model: MicroMusicGen) -> torch.Tensor | None:
    """Gives the prompt's codes [1, K, T]."""
    if request.prompt is None:
        return None
    codec = hearing(model, request.prompt)
    duration_s = prompt_seconds(model, codec, request.prompt_duration_s)
    wav = load_mono(request.prompt, model.sample_rate, duration_s=duration_s)
    return prompt_codes(torch.from_numpy(wav)[None], model.sample_rate, codec, num_frames=model.num_frames)


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
