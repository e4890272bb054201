"""Sounds as points in a space where a distance means something, and the registry of ways to get there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from micro_musicgen.audio.io import resample
from micro_musicgen.contracts import Codec
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.registry import Registry

Array = npt.NDArray[np.float64]


class Embedder(Protocol):
    """Turns sounds into rows of numbers. Invariants: nothing is random, and a clip's rows don't depend on the others.

    name: says everything that shapes the numbers, weights by their content hash. width: D of a row.
    """

    name: str
    width: int

    def embed(self, wav: torch.Tensor, sample_rate: int) -> Array:
        """Gives rows float64 [N, D] of clips [B, C, L], as many for each and at least one, clip after clip."""

    def embed_clips(self, wav: torch.Tensor, sample_rate: int) -> Array:
        """Gives one row for each clip, float64 [B, D]."""


class MakeEmbedder(Protocol):
    """Gives an embedder; takes of the arguments what it needs. codec: of the model that is looked at. reference: a Hub
    id or a path to the weights that the embedder runs on.
    """

    def __call__(self, *, codec: Codec | None, reference: str | None, device: str | torch.device) -> Embedder:
        """Gives the embedder."""


embedders: Registry[MakeEmbedder] = Registry("embedder")
"""By the name that a person gives: log_mel, codec, clap, or what another module has registered."""


def make_embedder(
    name: str, codec: Codec | None = None, reference: str | None = None, device: str | torch.device = "cpu"
) -> Embedder:
    """Gives the embedder called `name`; see `MakeEmbedder`.

    Raises:
        MicroMusicGenError: no embedder has that name, or it lacks something that it needs.
    """
    return embedders.get(name)(codec=codec, reference=reference, device=device)


@embedders.register("log_mel")
def _log_mel(*, codec: Codec | None, reference: str | None, device: str | torch.device) -> Embedder:
    from micro_musicgen.metrics.log_mel import LogMelEmbedder

    return LogMelEmbedder()


@embedders.register("codec")
def _codec(*, codec: Codec | None, reference: str | None, device: str | torch.device) -> Embedder:
    from micro_musicgen.codec.resolve import load_codec
    from micro_musicgen.metrics.codec_embedder import CodecEmbedder

    if codec is None and reference is None:
        raise MicroMusicGenError("embedder codec needs a codec; name the codec's run or release, or use log_mel")
    return CodecEmbedder(codec if codec is not None else load_codec(str(reference), device))


@embedders.register("clap")
def _clap(*, codec: Codec | None, reference: str | None, device: str | torch.device) -> Embedder:
    from micro_musicgen.metrics.clap import load_clap

    if reference is None:
        raise MicroMusicGenError(
            "embedder clap needs a CLAP model; give its Hub id, such as laion/clap-htsat-unfused, or its folder"
        )
    return load_clap(reference, device)


def mono_at(wav: torch.Tensor, sample_rate: int, wanted_rate: int) -> torch.Tensor:
    """Gives clips [B, C, L] at another rate and mixed to one channel, float32 [B, L'] on the CPU.

    Raises:
        MicroMusicGenError: other axes, no clip or no sample, NaN, or a rate that is not above 0.
    """
    if wav.dim() != 3 or not wav.is_floating_point() or not wav.numel():
        kind = f"{tuple(wav.shape)} {wav.dtype}"
        raise MicroMusicGenError(f"clips have the axes [B, C, L], are float and not empty; got {kind}")
    if not sample_rate > 0:
        raise MicroMusicGenError(f"sample rate {sample_rate} must be above 0 Hz")
    if not wav.isfinite().all():
        raise MicroMusicGenError("a clip holds NaN or infinite samples; check where it comes from")
    mono = wav.detach().float().cpu().mean(dim=1)
    if sample_rate == wanted_rate:
        return mono
    return torch.stack([torch.from_numpy(resample(clip.numpy(), sample_rate, wanted_rate)) for clip in mono])


def clip_means(rows: Array, num_clips: int) -> Array:
    """Gives the mean row of each clip, [B, D], of rows [N, D] that are as many for each of them."""
    means: Array = rows.reshape(num_clips, -1, rows.shape[-1]).mean(axis=1)
    return means


def in_batches(wav: torch.Tensor, batch_samples: int, embed: Callable[[torch.Tensor], torch.Tensor]) -> Array:
    """Gives the rows that `embed` gives of clips [B, L], a few clips at once so that memory stays bounded."""
    few = max(1, batch_samples // wav.shape[-1])
    return np.concatenate([embed(wav[at : at + few]).double().cpu().numpy() for at in range(0, len(wav), few)])
