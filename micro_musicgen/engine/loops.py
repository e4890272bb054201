"""Beat time, played: bars to frames, codes to sound at any tempo, and loops whose end flows into their start."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from micro_musicgen.audio.warp import beat_rate, to_clock_time
from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.contracts import MAX_DURATION_S, BeatTime, Codec, GenerationParams
from micro_musicgen.engine.scoring import step_logits
from micro_musicgen.engine.windows import generate_codes
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    from micro_musicgen.engine.player import Player
    from micro_musicgen.engine.request import Wish

LEAD_BEATS, TAIL_BEATS = 16, 4
"""Beats of a loop that a codec decodes before and after the pass that is kept, so that it hears the loop around it."""


def check_beats(time: BeatTime | None, params: GenerationParams) -> None:
    """Refuses parameters of beat time that mean nothing, or too much, to a model.

    Raises:
        MicroMusicGenError: naming the value and the way out.
    """
    if time is None:
        given = {"bars": params.bars, "bpm": params.bpm, "loop": params.loop, "keep_pitch": params.keep_pitch}
        asked = [name for name, value in given.items() if value]
        if asked:
            raise MicroMusicGenError(
                f"{' and '.join(asked)} can't be had of this model, which was trained in clock time and counts no "
                "beats; give a duration, or train one with --time beats"
            )
        return
    seconds = frames_of(time, params) / frame_rate(time, params.bpm)
    if seconds > MAX_DURATION_S:
        raise MicroMusicGenError(
            f"{params.bars} bars at {played_bpm(time, params):g} BPM are {seconds:.0f} s; at most {MAX_DURATION_S:g} s "
            "are made at once, ask for fewer"
        )


def played_bpm(time: BeatTime, params: GenerationParams) -> float:
    """Gives the tempo at which clips are played."""
    return time.bpm if params.bpm is None else params.bpm


def frame_rate(time: BeatTime, bpm: float | None) -> float:
    """Gives codec frames a second at a tempo, the usual one when None."""
    return time.frames_per_beat * (time.bpm if bpm is None else bpm) / 60


def frames_of(time: BeatTime, params: GenerationParams) -> int:
    """Gives the codec frames of a clip: bars, or the whole beats nearest to a duration, one at least."""
    if params.bars is not None:
        return params.bars * time.frames_per_bar
    beats = max(1, round(params.duration_s * played_bpm(time, params) / 60))
    return beats * time.frames_per_beat


def told_bars(time: BeatTime | None, params: GenerationParams) -> tuple[int, int] | None:
    """Gives what a model that listens to bars is told of a clip: it starts with one, and how many bars loop, if so."""
    if time is None:
        return None
    bars, rest = divmod(frames_of(time, params), time.frames_per_bar)
    return 0, bars if params.loop and not rest else 0


def num_samples(time: BeatTime, num_frames: int, bpm: float, sample_rate: int) -> int:
    """Gives how many samples a clip is at a tempo."""
    return max(1, round(num_frames / frame_rate(time, bpm) * sample_rate))


class AtTempo:
    """A codec as it hears sound of one tempo: what is at its `sample_rate` is in beat time. All else is the codec's."""

    def __init__(self, codec: Codec, time: BeatTime, bpm: float) -> None:
        self._codec = codec
        self.sample_rate = round(beat_rate(bpm, time.frames_per_beat * codec.hop_samples))
        self.frame_rate = frame_rate(time, bpm)

    def __getattr__(self, name: str) -> Any:
        """Gives what the codec says."""
        return getattr(self._codec, name)


def decode_loop(codec: Codec, codes: torch.Tensor, frames_per_beat: int) -> torch.Tensor:
    """Gives audio [B, C, T * hop_samples] of codes [B, K, T] that go round and round: one pass out of the middle."""
    frames, device = codes.shape[-1], codes.device
    lead, tail = LEAD_BEATS * frames_per_beat, TAIL_BEATS * frames_per_beat
    around = torch.arange(-lead, frames + tail, device=device) % frames
    wav = codec.decode(codes[..., around])
    return wav[..., lead * codec.hop_samples : (lead + frames) * codec.hop_samples]


def decode_beats(codec: Codec, codes: torch.Tensor, time: BeatTime, params: GenerationParams) -> torch.Tensor:
    """Gives audio [B, C, L] at the codec's rate, played at the parameters' tempo, of codes [B, K, T] in beat time.

    L is the clip's length at that tempo to the nearest sample.

    Raises:
        MissingExtraError: the pitch is to be kept, and python-stretch is not there.
    """
    wav = decode_loop(codec, codes, time.frames_per_beat) if params.loop else codec.decode(codes)
    return in_clock_time(wav, time, params, codec)


def in_clock_time(wav: torch.Tensor, time: BeatTime, params: GenerationParams, codec: Codec) -> torch.Tensor:
    """Gives audio [B, C, L] of audio in beat time [B, C, M]."""
    clips = [
        to_clock_time(
            clip,
            time.frames_per_beat * codec.hop_samples,
            played_bpm(time, params),
            codec.sample_rate,
            loops=params.loop,
            keep_pitch=params.keep_pitch,
            recorded_tempo=time.bpm if params.keep_pitch else None,
        )
        for clip in wav.float().cpu().numpy()
    ]
    return torch.from_numpy(np.stack(clips)).to(wav.device)


def clock_chunks(
    chunks: Iterator[torch.Tensor], time: BeatTime, params: GenerationParams, codec: Codec, num_frames: int
) -> Iterator[torch.Tensor]:
    """Yields audio [B, C, L] of chunks in beat time as they come; together as long as the clip is, to the sample."""
    import soxr

    bpm = played_bpm(time, params)
    total, given = num_samples(time, num_frames, bpm, codec.sample_rate), 0
    rate = beat_rate(bpm, time.frames_per_beat * codec.hop_samples)
    stream, shape = None, (1, codec.channels)
    for chunk in chunks:
        if stream is None:
            shape = (chunk.shape[0], chunk.shape[1])
            stream = soxr.ResampleStream(rate, codec.sample_rate, shape[0] * shape[1], dtype="float32", quality="VHQ")
        made = _columns(stream.resample_chunk(_rows(chunk), last=False), shape)[..., : total - given]
        given += made.shape[-1]
        if made.shape[-1]:
            yield made
    if stream is not None:
        last = np.zeros((0, shape[0] * shape[1]), np.float32)
        made = _columns(stream.resample_chunk(last, last=True), shape)[..., : total - given]
        yield torch.nn.functional.pad(made, (0, total - given - made.shape[-1]))


def _rows(chunk: torch.Tensor) -> np.ndarray:
    """Gives [B, C, L] as soxr takes it, [L, B * C]."""
    return np.ascontiguousarray(chunk.float().cpu().numpy().reshape(-1, chunk.shape[-1]).T)


def _columns(samples: np.ndarray, shape: tuple[int, int]) -> torch.Tensor:
    samples = samples.reshape(-1, shape[0] * shape[1])
    return torch.from_numpy(np.ascontiguousarray(samples.T)).reshape(*shape, -1)


# Closing a loop.


def close_loop(model: Player, wish: Wish, codes: torch.Tensor) -> torch.Tensor:
    """Gives codes [B, K, T] whose last bar leads into the first as well as the model can have it.

    The last bar is made `loop_tries` times more, and of all of them the one is kept after which the model finds the
    first bar likeliest. A loop of one bar, or whose prompt reaches into its last bar, stays as it is.
    """
    from micro_musicgen.engine.request import make_request

    time, tries = model.beat_time, wish.params.loop_tries
    assert time is not None, "clock time has no loops"
    bar, clips = time.frames_per_bar, len(codes)
    known = 0 if wish.prompt is None else wish.prompt.shape[-1]
    if not tries or codes.shape[-1] < 2 * bar or known > codes.shape[-1] - bar:
        return codes
    seed = model.last_seed
    assert seed is not None, "codes come from a seed"
    request = make_request(model, replace(wish, prompt=codes[..., :-bar]))
    made = [codes]
    for attempt in range(tries):
        generators = [_generator(seed, wish.first_clip + clip, attempt) for clip in range(clips)]
        made.append(generate_codes(model.runner, replace(request, generators=generators)).to(codes.device))
    model.last_seed = seed
    window = max(2, round(model.window_s * model.codec.frame_rate) // bar) * bar
    told = _first_rows(request.conditions, clips)
    losses = torch.stack([_seam_loss(model, each, bar, window, told) for each in made])
    best = losses.argmin(dim=0)
    return torch.stack([made[int(choice)][clip] for clip, choice in enumerate(best)])


def _generator(seed: int, clip: int, attempt: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {clip} last bar {attempt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _seam_loss(model: Player, codes: torch.Tensor, bar: int, window: int, told: Fused) -> torch.Tensor:
    """Gives [B]: the mean cross-entropy of the first bar after the whole loop, as far as the model hears back."""
    around = torch.cat([codes, codes[..., :bar]], dim=-1)[..., -window:]
    logits = step_logits(model.runner, around, told)[:, :, -bar:]
    wanted = around[..., -bar:].to(logits.device)
    losses = torch.nn.functional.cross_entropy(logits.permute(0, 3, 1, 2), wanted, reduction="none")
    return losses.mean(dim=(1, 2))


def _first_rows(fused: Fused, count: int) -> Fused:
    """Gives the conditions of the most conditioned branch alone."""
    named = ("prefix", "prefix_mask", "cross", "cross_mask", "added")
    cut = {name: None if getattr(fused, name) is None else getattr(fused, name)[:count] for name in named}
    return replace(fused, rows=count if fused.rows else 0, **cut)
