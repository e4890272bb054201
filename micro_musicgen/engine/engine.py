"""A model to play: audiocraft's API over the engine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch

from micro_musicgen.conditioners.base import ConditionTensors
from micro_musicgen.conditioners.fusing import fuse
from micro_musicgen.contracts import MAX_DURATION_S, Codec, GenerationParams
from micro_musicgen.engine.codec import decoded
from micro_musicgen.engine.conditions import guided_rows
from micro_musicgen.engine.device import pick_device
from micro_musicgen.engine.fixed import MODES
from micro_musicgen.engine.inputs import Conditioner, Unconditioned, check_count, prompt_codes
from micro_musicgen.engine.memory import check_memory
from micro_musicgen.engine.precision import pick_precision
from micro_musicgen.engine.progress import bar
from micro_musicgen.engine.runner import Runner
from micro_musicgen.engine.sampler import Progress, clip_generators, fresh_seed
from micro_musicgen.engine.state import LMState
from micro_musicgen.engine.transformer_lm import make_network, shapes_of
from micro_musicgen.engine.windows import CodeRequest, Windows, code_chunks, generate_codes, windows
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.weights import Shapes

Clips = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Audio [B, C, L], or audio and the codes [B, K, T] that it was decoded from."""


class MicroMusicGen:
    """A language model and its codec, and how to sample them.

    Invariant: `params` is replaced, never edited; neither weights nor torch's global random state change.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, torch.Tensor],
        codec: Codec,
        *,
        window_s: float,
        name: str = "untitled",
        device: str | torch.device | None = None,
        precision: str = "auto",
        mode: str = "auto",
        conditioner: Conditioner | None = None,
        shapes: Shapes | None = None,
        source: str = "the model",
    ) -> None:
        """Takes an LM's config (as `lm.builder.lm_config` gives it) and weights, and a codec that is on its device.

        window_s: seconds that the LM was trained on at once. precision: see `precision.pick_precision`. mode: how a
        step is run: eager, graph (CUDA), compile (long warm-up, see `warm_up_s`); auto is graph on CUDA. conditioner:
        None for models without conditions. shapes, source: of the weights and where they are from, where known.

        Raises:
            MicroMusicGenError: config and weights don't belong together; an unknown device, precision or mode.
        """
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        if mode not in ("auto", *MODES):
            raise MicroMusicGenError(f"unknown mode {mode!r}; use auto, {', '.join(MODES)}")
        if mode == "auto":
            mode = "graph" if self.device.type == "cuda" else "eager"
        elif mode == "graph" and self.device.type != "cuda":
            raise MicroMusicGenError(f"mode graph needs cuda, and the model is on {self.device}; use eager or auto")
        shapes = shapes or shapes_of(weights)
        network = make_network(
            config,
            weights,
            device=self.device,
            precision=self.precision,
            plain=mode == "compile",
            shapes=shapes,
            source=source,
        )
        self.runner = Runner(network, config["codebooks_pattern"], mode=mode)
        self.codec = codec
        self.conditioner: Conditioner = conditioner or Unconditioned()
        self.window_s = float(window_s)
        self.name = name
        self.num_parameters = sum(math.prod(shape) for shape in shapes.values())
        self.default_cfg_coef = float(config["classifier_free_guidance"]["inference_coef"])
        self.last_seed: int | None = None
        self._progress_callback: Progress | None = None
        self.params: GenerationParams
        self.set_generation_params()

    @classmethod
    def get_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device | None = None,
        precision: str = "auto",
        decoder: str | None = None,
        mode: str = "auto",
    ) -> MicroMusicGen:
        """Gives the model that `name` refers to: a release folder (ours or audiocraft's), a run, or a Hub id.

        device: None takes the best there is. precision: auto, fp32 (the reference), bf16 or int8. mode: see `__init__`.

        Raises:
            MicroMusicGenError: it does not exist, is damaged or incomplete; or an unknown device, precision or mode.
        """
        from micro_musicgen.engine.load import load_player

        if decoder is not None:
            raise MicroMusicGenError(f"decoder {decoder!r}: this version plays through the codec only; leave it out")
        return load_player(cls, name, pick_device(device), precision=precision, mode=mode)

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
        top_k: int | None = None,
        top_p: float = 0.0,
        temperature: float = 1.0,
        duration: float | None = None,
        cfg_coef: float | None = None,
        two_step_cfg: bool = False,
        extend_stride: float | None = None,
        seed: int | None = None,
    ) -> None:
        """Replaces all parameters; what is not given is back at its default.

        top_k: 250 by default, or all codes where there are fewer. duration: seconds a clip, the window by default.
        cfg_coef: guidance, as the model was trained for by default. extend_stride: seconds that each window moves on in
        clips longer than the window, 60 % of it by default. seed: equal seeds give equal clips; None draws one for
        every call and keeps it in `last_seed`.

        Raises:
            MicroMusicGenError: a value out of range, naming it.
        """
        if two_step_cfg:
            raise MicroMusicGenError("two_step_cfg=True is not supported; guidance runs as one batch, leave it out")
        windows(self.window_s, self.frame_rate, extend_stride)
        params = GenerationParams(
            duration_s=min(self.window_s, MAX_DURATION_S) if duration is None else duration,
            temperature=temperature,
            top_k=self._default_top_k if top_k is None else top_k,
            top_p=top_p,
            greedy=not use_sampling,
            cfg_coef=self.default_cfg_coef if cfg_coef is None else cfg_coef,
            seed=seed,
            extend_stride_s=extend_stride,
        )
        self._check_top_k(params)
        self.params = params

    @property
    def _default_top_k(self) -> int:
        return min(GenerationParams.top_k, self.runner.network.arch.card)

    def _check_top_k(self, params: GenerationParams) -> None:
        card = self.runner.network.arch.card
        if params.top_k > card:
            raise MicroMusicGenError(
                f"top_k {params.top_k} is more than the {card} codes that there are; give 0 for all of them"
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
        conditions: tuple[ConditionTensors, ConditionTensors] | None = None,
        first_clip: int = 0,
        progress: bool | Progress = False,
    ) -> torch.Tensor:
        """Gives int64 codes [B, K, T] of clips number `first_clip` and following under the present seed.

        prompt: codes [B, K, T'] to begin with. conditions: instead of descriptions, tensors of the clips and of clips
        without conditions. progress: True for a bar (or the custom callback), or a callback.

        Raises:
            MicroMusicGenError: `num_clips` below 1, a prompt that leaves nothing to add, texts that the model can't
                use, too little memory, or a model that diverged.
        """
        request = self._request(num_clips, prompt, descriptions, conditions, first_clip)
        with self._reporting(progress) as report:
            return generate_codes(self.runner, request, progress=report)

    def _request(
        self,
        num_clips: int,
        prompt: torch.Tensor | None,
        descriptions: Sequence[str | None] | None,
        conditions: tuple[ConditionTensors, ConditionTensors] | None,
        first_clip: int,
    ) -> CodeRequest:
        """Gives what to compute, everything checked."""
        check_count(num_clips)
        self._check_top_k(self.params)
        network = self.runner.network
        if prompt is not None and prompt.shape[-1] >= self.num_frames:
            raise MicroMusicGenError(
                f"the prompt of {prompt.shape[-1]} frames leaves nothing to add to a clip of {self.num_frames}; "
                "raise the duration or cut the prompt"
            )
        conditional, null = conditions or self.conditioner.tensors(descriptions or [None] * num_clips)
        rows, guided = guided_rows(conditional, null, self.params.cfg_coef)
        fused = fuse(network.arch, rows, device=self.device, dtype=network.dtype)
        shape = windows(
            self.window_s,
            self.frame_rate,
            self.params.extend_stride_s,
            can_roll=network.arch.is_shift_invariant and not fused.prefix_length and network.arch.past_context is None,
        )
        self._check_memory(num_clips * (1 + guided), shape, fused.prefix_length)
        self.last_seed = fresh_seed() if self.params.seed is None else self.params.seed
        return CodeRequest(
            params=self.params,
            generators=clip_generators(self.last_seed, num_clips, first_clip=first_clip),
            num_frames=self.num_frames,
            shape=shape,
            prompt=None if prompt is None else prompt.to(self.device),
            conditions=fused,
            guided=guided,
        )

    def _check_memory(self, rows: int, shape: Windows, prefix: int) -> None:
        frames = min(self.num_frames, shape.window)
        steps = self.runner.plan(frames).num_steps + prefix
        if shape.rolls and self.num_frames > shape.window:
            steps *= 2
        needed = LMState.num_bytes(self.runner.network, rows, steps)
        check_memory(needed, f"what {rows} rows of {steps} steps have heard", self.device)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L] of codes [B, K, T]."""
        return self.codec.decode(codes)

    def stream(
        self,
        duration: float | None = None,
        prompt: torch.Tensor | None = None,
        prompt_sample_rate: int | None = None,
        chunk_s: float = 0.5,
        descriptions: Sequence[str | None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yields audio [B, C, L] while it is being made; concatenated, the chunks are what the other calls give.

        duration: seconds, as the parameters say by default. prompt: audio [B, C, L'] or [C, L'] to begin with, which
        is heard again first. chunk_s: new sound per chunk; a chunk comes when its codes are final, which is a few
        frames (the pattern's delay and what the codec has to know of the future) after its last moment.

        Raises:
            MicroMusicGenError: before the first chunk, what the other calls raise; a chunk that is not above 0 s.
        """
        if not chunk_s > 0:
            raise MicroMusicGenError(f"chunk of {chunk_s:g} s must be above 0")
        kept = self.params
        if duration is not None:
            self.params = kept.updated(duration_s=duration)
        try:
            request = self._stream_request(prompt, prompt_sample_rate, descriptions)
        finally:
            self.params = kept
        frames = max(1, round(chunk_s * self.frame_rate))
        # What was wrong has been said; the generator below runs as it is read.
        return decoded(self.codec, code_chunks(self.runner, request, chunk_frames=frames), len(request.generators))

    def _stream_request(
        self, prompt: torch.Tensor | None, prompt_sample_rate: int | None, descriptions: Sequence[str | None] | None
    ) -> CodeRequest:
        codes = None
        if prompt is not None:
            rate = self.sample_rate if prompt_sample_rate is None else prompt_sample_rate
            codes = prompt_codes(prompt, rate, self.codec, num_frames=self.num_frames)
        texts = list(descriptions) if descriptions is not None else [None] * (1 if codes is None else len(codes))
        return self._request(len(texts) if codes is None else len(codes), codes, texts, None, 0)

    @property
    def warm_up_s(self) -> float:
        """Seconds spent so far on recording or compiling steps."""
        return self.runner.warm_up_s

    def _play(self, codes: torch.Tensor, return_tokens: bool) -> Clips:
        wav = self.decode(codes)
        return (wav, codes) if return_tokens else wav

    @contextlib.contextmanager
    def _reporting(self, progress: bool | Progress) -> Iterator[Progress | None]:
        if not isinstance(progress, bool):
            yield progress
        elif not progress:
            yield None
        elif self._progress_callback is not None:
            yield self._progress_callback
        else:
            with bar() as report:
                yield report
