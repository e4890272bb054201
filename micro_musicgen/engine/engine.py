"""A model to play: audiocraft's API over our own loading, checking and sampling."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch

from micro_musicgen.contracts import MAX_DURATION_S, Codec, GenerationParams
from micro_musicgen.engine.device import pick_device
from micro_musicgen.engine.inputs import check_count, prompt_codes, text_conditions
from micro_musicgen.engine.sampler import Progress, clip_generators
from micro_musicgen.engine.windows import generate_codes, windows
from micro_musicgen.errors import MicroMusicGenError

Clips = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Audio [B, C, L], or audio and the codes [B, K, T] that it was decoded from."""

PRECISIONS = ("auto", "float32", "bfloat16")
_UNSEEDED = torch.Generator().initial_seed()
"""What torch's global generator says when nobody has seeded it."""


class MicroMusicGen:
    """A language model and its codec, and how to sample them.

    Invariant: `params` is replaced, never edited; neither weights nor torch's global random state change.
    """

    def __init__(
        self, lm: Any, codec: Codec, *, window_s: float, name: str = "untitled", precision: str = "auto"
    ) -> None:
        """Takes modules that are built and on their device. window_s: seconds the LM was trained on at once."""
        if precision not in PRECISIONS:
            raise MicroMusicGenError(f"unknown precision {precision!r}; use {', '.join(PRECISIONS)}")
        self.lm = lm.eval()
        self.codec = codec
        self.window_s = float(window_s)
        self.name = name
        self.device: torch.device = next(lm.parameters()).device
        self.precision = precision
        self.last_seed: int | None = None
        self._progress_callback: Progress | None = None
        self.params = GenerationParams(duration_s=min(self.window_s, MAX_DURATION_S), cfg_coef=float(self.lm.cfg_coef))

    @classmethod
    def get_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device | None = None,
        precision: str = "auto",
        decoder: str | None = None,
    ) -> MicroMusicGen:
        """Gives the model that `name` refers to: a release folder (ours or audiocraft's), a run, or a Hub id.

        device: None takes the best there is. precision: auto (bfloat16 on cuda, else float32), float32 or bfloat16.

        Raises:
            MicroMusicGenError: it does not exist, is damaged or incomplete; or an unknown device or precision.
        """
        from micro_musicgen.release.load import load_release

        if decoder is not None:
            raise MicroMusicGenError(f"decoder {decoder!r}: this version plays through the codec only; leave it out")
        found = load_release(name, pick_device(device))
        return cls(found.lm, found.codec, window_s=found.window_s, name=found.name, precision=precision)

    @property
    def sample_rate(self) -> int:
        """Of the audio given, in Hz."""
        return self.codec.sample_rate

    @property
    def frame_rate(self) -> float:
        """Codec frames, which are model steps, per second of audio."""
        return self.codec.frame_rate

    @property
    def audio_channels(self) -> int:
        """Of the audio given."""
        return self.codec.channels

    @property
    def max_duration(self) -> float:
        """Seconds made in one go; longer clips are made window by window. audiocraft's name for `window_s`."""
        return self.window_s

    def set_generation_params(
        self,
        use_sampling: bool = True,
        top_k: int = 250,
        top_p: float = 0.0,
        temperature: float = 1.0,
        duration: float | None = None,
        cfg_coef: float | None = None,
        two_step_cfg: bool = False,
        extend_stride: float | None = None,
        seed: int | None = None,
    ) -> None:
        """Replaces all parameters; what is not given is back at its default.

        duration: seconds a clip, the window by default. cfg_coef: guidance, as the model was trained for by default.
        extend_stride: seconds that each window moves on in clips longer than the window, 60 % of it by default. seed:
        equal seeds give equal clips; None draws one for every call and keeps it in `last_seed`.

        Raises:
            MicroMusicGenError: a value out of range, naming it.
        """
        if two_step_cfg:
            raise MicroMusicGenError("two_step_cfg=True is not supported; guidance runs as one batch, leave it out")
        windows(self.window_s, self.frame_rate, extend_stride)
        self.params = GenerationParams(
            duration_s=min(self.window_s, MAX_DURATION_S) if duration is None else duration,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            greedy=not use_sampling,
            cfg_coef=float(self.lm.cfg_coef) if cfg_coef is None else cfg_coef,
            seed=seed,
            extend_stride_s=extend_stride,
        )

    def set_custom_progress_callback(self, progress_callback: Progress | None = None) -> None:
        """Has `progress=True` call `progress_callback(frames done, frames in all)` instead of drawing a bar."""
        self._progress_callback = progress_callback

    @overload
    def generate_unconditional(
        self, num_samples: int, progress: bool = ..., return_tokens: Literal[False] = ...
    ) -> torch.Tensor: ...

    @overload
    def generate_unconditional(
        self, num_samples: int, progress: bool = ..., *, return_tokens: Literal[True]
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def generate_unconditional(self, num_samples: int, progress: bool = False, return_tokens: bool = False) -> Clips:
        """Gives `num_samples` clips [B, C, L], and with `return_tokens` their codes [B, K, T] beside them.

        Raises:
            MicroMusicGenError: `num_samples` below 1.
        """
        return self._play(self.codes(check_count(num_samples), progress=progress), return_tokens)

    def generate(
        self, descriptions: Sequence[str | None], progress: bool = False, return_tokens: bool = False
    ) -> Clips:
        """Gives one clip [C, L] per text, stacked as [B, C, L].

        Raises:
            MicroMusicGenError: no text, or a model that was trained without.
        """
        if isinstance(descriptions, str):
            raise MicroMusicGenError(f"descriptions is a list of texts, one per clip; write [{descriptions!r}]")
        return self._play(self.codes(len(descriptions), descriptions=descriptions, progress=progress), return_tokens)

    def generate_continuation(
        self,
        prompt: torch.Tensor,
        prompt_sample_rate: int,
        descriptions: Sequence[str | None] | None = None,
        progress: bool = False,
        return_tokens: bool = False,
    ) -> Clips:
        """Gives clips [B, C, L] that begin with `prompt` [B, C, L'] or [C, L'] and go on; the duration counts both.

        Raises:
            MicroMusicGenError: a prompt that can't be used or is not shorter than the clip; a text too many or few.
        """
        codes = prompt_codes(prompt, prompt_sample_rate, self.codec, num_frames=self.num_frames)
        if descriptions is not None and len(descriptions) != len(codes):
            raise MicroMusicGenError(f"{len(descriptions)} texts for {len(codes)} prompts; give one each")
        made = self.codes(len(codes), prompt=codes, descriptions=descriptions, progress=progress)
        return self._play(made, return_tokens)

    @property
    def num_frames(self) -> int:
        """Codec frames of a clip under the present parameters, at least one."""
        return max(1, round(self.params.duration_s * self.frame_rate))

    def codes(
        self,
        num_clips: int,
        *,
        prompt: torch.Tensor | None = None,
        descriptions: Sequence[str | None] | None = None,
        first_clip: int = 0,
        progress: bool | Progress = False,
    ) -> torch.Tensor:
        """Gives int64 codes [B, K, T] of clips number `first_clip` and following under the present seed.

        prompt: codes [B, K, T'] to begin with. progress: True for a bar (or the custom callback), or a callback.

        Raises:
            MicroMusicGenError: `num_clips` below 1, texts that the model can't use, or a model that diverged.
        """
        check_count(num_clips)
        conditions = text_conditions(self.lm, descriptions or [None] * num_clips)
        shape = windows(self.window_s, self.frame_rate, self.params.extend_stride_s)
        self.last_seed = fresh_seed() if self.params.seed is None else self.params.seed
        generators = clip_generators(self.last_seed, num_clips, first_clip=first_clip)
        prompt = None if prompt is None else prompt.to(self.device)
        with self._reporting(progress) as report, self._autocast():
            return generate_codes(
                self.lm,
                self.params,
                generators,
                self.num_frames,
                shape,
                prompt=prompt,
                conditions=conditions,
                progress=report,
            )

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L] of codes [B, K, T], clip by clip: a clip's samples don't depend on its batch."""
        return torch.cat([self.codec.decode(clip[None]) for clip in codes])

    def _play(self, codes: torch.Tensor, return_tokens: bool) -> Clips:
        wav = self.decode(codes)
        return (wav, codes) if return_tokens else wav

    def _autocast(self) -> Any:
        wanted = self.precision == "bfloat16" or (self.precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)

    @contextlib.contextmanager
    def _reporting(self, progress: bool | Progress) -> Iterator[Progress | None]:
        if not isinstance(progress, bool):
            yield progress
        elif not progress:
            yield None
        elif self._progress_callback is not None:
            yield self._progress_callback
        else:
            with _bar() as report:
                yield report


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """Gives a hook that draws a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("generating", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def fresh_seed() -> int:
    """Gives a seed that nobody chose; a program that has called `torch.manual_seed` gets the same one every time."""
    if torch.initial_seed() == _UNSEEDED:
        return secrets.randbits(31)
    return int(torch.randint(2**31, ()))
