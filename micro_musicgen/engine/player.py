"""A model that plays: network, codec and conditioner together, how they are sampled, and codes out of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from micro_musicgen.contracts import MAX_DURATION_S, BeatTime, Codec, GenerationParams
from micro_musicgen.engine import loops
from micro_musicgen.engine.codec import decoded
from micro_musicgen.engine.device import pick_device
from micro_musicgen.engine.fixed import MODES
from micro_musicgen.engine.inputs import Conditioner, Unconditioned
from micro_musicgen.engine.precision import pick_precision
from micro_musicgen.engine.progress import bar
from micro_musicgen.engine.request import CondTensors, Wish, check_params, make_request
from micro_musicgen.engine.runner import Runner
from micro_musicgen.engine.sampler import Progress
from micro_musicgen.engine.sounds import AudioPrompts
from micro_musicgen.engine.transformer_lm import make_network, shapes_of
from micro_musicgen.engine.windows import Windows, code_chunks, generate_codes, windows
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.weights import Shapes


class Player:
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
        beat_time: BeatTime | None = None,
    ) -> None:
        """Takes an LM's config (as `lm.builder.lm_config` gives it) and weights, and a codec that is on its device.

        window_s: seconds that the LM was trained on at once. precision: see `precision.pick_precision`. mode: how a
        step is run: eager, graph (CUDA), compile (long warm-up, see `warm_up_s`); auto is graph on CUDA. conditioner:
        None for models without conditions. shapes, source: of the weights and where they are from, where known.
        beat_time: how the model counts, whose window_s is then in the codec's nominal seconds; None for clock time.

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
        self.beat_time = beat_time
        self.name = name
        self.num_parameters = sum(math.prod(shape) for shape in shapes.values())
        self.default_cfg_coef = float(config["classifier_free_guidance"]["inference_coef"])
        self.last_seed: int | None = None
        self._progress_callback: Progress | None = None
        self.params: GenerationParams
        self.set_generation_params()

    @property
    def sample_rate(self) -> int:
        """Of the audio given, in Hz."""
        return self.codec.sample_rate

    @property
    def frame_rate(self) -> float:
        """Codec frames, which are model steps, per second of audio; in beat time at the present tempo."""
        return self.codec.frame_rate if self.beat_time is None else loops.frame_rate(self.beat_time, self.params.bpm)

    @property
    def bpm(self) -> float | None:
        """The tempo at which clips are played; None in clock time."""
        return None if self.beat_time is None else loops.played_bpm(self.beat_time, self.params)

    @property
    def audio_channels(self) -> int:
        """Of the audio given."""
        return self.codec.channels

    @property
    def max_duration(self) -> float:
        """Seconds made in one go; longer clips are made window by window. audiocraft's name for `window_s`."""
        return self.window_s if self.beat_time is None else self._window_frames / self.frame_rate

    @property
    def _window_frames(self) -> int:
        return max(1, round(self.window_s * self.codec.frame_rate))

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
        *,
        cfg_coef_audio: float | None = None,
        bars: int | None = None,
        bpm: float | None = None,
        loop: bool = False,
        loop_tries: int = GenerationParams.loop_tries,
        keep_pitch: bool = False,
    ) -> None:
        """Replaces all parameters; what is not given is back at its default.

        top_k: 250 by default, or all codes where there are fewer. duration: seconds a clip, the window by default.
        cfg_coef: guidance, as the model was trained for by default; cfg_coef_audio: that of audio prompts, the same by
        default. extend_stride: seconds that each window moves on in clips longer than the window, 60 % of it by
        default. seed: equal seeds give equal clips; None draws one for every call and keeps it in `last_seed`.

        In beat time: bars: length of a clip instead of duration (which is rounded to beats). bpm: the tempo that clips
        are played at, as trained by default. loop: they close. keep_pitch: another tempo leaves the pitch alone.

        Raises:
            MicroMusicGenError: a value out of range or without meaning for this model, naming it.
        """
        if two_step_cfg:
            raise MicroMusicGenError("two_step_cfg=True is not supported; guidance runs as one batch, leave it out")
        if duration is not None and bars is not None:
            raise MicroMusicGenError(f"duration {duration:g} s and {bars} bars are two lengths; give one of them")
        if self.beat_time is not None and duration is None and bars is None:
            bars = max(1, self._window_frames // self.beat_time.frames_per_bar)
        params = GenerationParams(
            duration_s=min(self.window_s, MAX_DURATION_S) if duration is None else duration,
            bars=bars,
            bpm=bpm,
            loop=loop,
            loop_tries=loop_tries,
            keep_pitch=keep_pitch,
            temperature=temperature,
            top_k=min(GenerationParams.top_k, self.runner.network.arch.card) if top_k is None else top_k,
            top_p=top_p,
            greedy=not use_sampling,
            cfg_coef=self.default_cfg_coef if cfg_coef is None else cfg_coef,
            cfg_coef_audio=cfg_coef_audio,
            seed=seed,
            extend_stride_s=extend_stride,
        )
        check_params(self, params)
        self.windows(extend_stride, bpm=bpm)
        self.params = params

    def set_custom_progress_callback(self, progress_callback: Progress | None = None) -> None:
        """Has `progress=True` call `progress_callback(frames done, frames in all)` instead of drawing a bar."""
        self._progress_callback = progress_callback

    @property
    def num_frames(self) -> int:
        """Codec frames of a clip under the present parameters, at least one."""
        return self.frames_of(self.params)

    def frames_of(self, params: GenerationParams) -> int:
        """Gives the codec frames of a clip under `params`, at least one."""
        if self.beat_time is not None:
            return loops.frames_of(self.beat_time, params)
        return max(1, round(params.duration_s * self.frame_rate))

    @property
    def num_samples(self) -> int:
        """Samples of each channel of a clip under the present parameters."""
        if self.beat_time is None or self.bpm is None:
            return self.num_frames * self.codec.hop_samples
        return loops.num_samples(self.beat_time, self.num_frames, self.bpm, self.sample_rate)

    def windows(self, stride_s: float | None, *, can_roll: bool = False, bpm: float | None = None) -> Windows:
        """Gives the windows of long clips; in beat time they move on by whole bars.

        Raises:
            MicroMusicGenError: the stride is not shorter than the window.
        """
        nominal = self.codec.frame_rate
        if self.beat_time is None:
            return windows(self.window_s, nominal, stride_s, can_roll=can_roll)
        if stride_s is not None:
            stride_s *= loops.frame_rate(self.beat_time, bpm) / nominal
        return windows(self.window_s, nominal, stride_s, can_roll=can_roll, grain=self.beat_time.frames_per_bar)

    def hearing(self, bpm: float | None = None) -> Codec:
        """Gives the codec for sounds that come from outside, in beat time those of this tempo; None for the present."""
        if self.beat_time is None:
            return self.codec
        tempo = loops.played_bpm(self.beat_time, self.params) if bpm is None else bpm
        heard: Any = loops.AtTempo(self.codec, self.beat_time, tempo)
        found: Codec = heard
        return found

    def codes(
        self,
        num_clips: int,
        *,
        prompt: torch.Tensor | None = None,
        descriptions: Sequence[str | None] | None = None,
        audio_prompts: AudioPrompts | None = None,
        audio_sr: int | None = None,
        cfg_coef: float | None = None,
        cfg_coef_audio: float | None = None,
        conditions: CondTensors | None = None,
        first_clip: int = 0,
        progress: bool | Progress = False,
    ) -> torch.Tensor:
        """Gives int64 codes [B, K, T] of clips number `first_clip` and following under the present seed.

        prompt: codes [B, K, T'] to begin with. descriptions, audio_prompts and coefficients: as
        `MicroMusicGen.generate` takes them. conditions: instead of both, tensors of the clips and of clips without
        conditions. progress: True for a bar (or the custom callback), or a callback.

        Raises:
            MicroMusicGenError: `num_clips` below 1, a prompt that leaves nothing to add, texts or sounds that the model
                can't use, too little memory, or a model that diverged.
        """
        wish = Wish(
            params=self.guided(cfg_coef, cfg_coef_audio),
            num_clips=num_clips,
            prompt=prompt,
            descriptions=descriptions,
            audio_prompts=audio_prompts,
            audio_sr=audio_sr,
            conditions=conditions,
            first_clip=first_clip,
        )
        request = make_request(self, wish)
        with self._reporting(progress) as report:
            codes = generate_codes(self.runner, request, progress=report)
        return loops.close_loop(self, wish, codes) if wish.params.loop else codes

    def chunks(self, wish: Wish, chunk_s: float) -> Iterator[torch.Tensor]:
        """Gives an iterator over audio [B, C, L] of new chunks of about `chunk_s` seconds, everything checked before.

        Raises:
            MicroMusicGenError: as `codes`.
        """
        if wish.params.loop or wish.params.keep_pitch:
            what = "a loop closes" if wish.params.loop else "the pitch can be kept"
            raise MicroMusicGenError(f"{what} when a clip is whole, and this one is played as it is made; leave it out")
        request = make_request(self, wish)
        frames = max(1, round(chunk_s * self.frame_rate))
        # What was wrong has been said; the generators below run as they are read.
        made = decoded(self.codec, code_chunks(self.runner, request, chunk_frames=frames), len(request.generators))
        if self.beat_time is None:
            return made
        return loops.clock_chunks(made, self.beat_time, wish.params, self.codec, request.num_frames)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L] of codes [B, K, T]; in beat time at the present tempo."""
        if self.beat_time is None:
            return self.codec.decode(codes)
        return loops.decode_beats(self.codec, codes, self.beat_time, self.params)

    def guided(self, cfg_coef: float | None = None, cfg_coef_audio: float | None = None) -> GenerationParams:
        """Gives the present parameters with other coefficients of guidance where some are given.

        Raises:
            MicroMusicGenError: one that is not finite.
        """
        given = {"cfg_coef": cfg_coef, "cfg_coef_audio": cfg_coef_audio}
        return self.params.updated(**{name: value for name, value in given.items() if value is not None})

    @property
    def warm_up_s(self) -> float:
        """Seconds spent so far on recording or compiling steps."""
        return self.runner.warm_up_s

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
