"""Builds a codec from plain config data.

An EnCodec's modules are audiocraft's own `EncodecModel`, so that weights move between the two projects unchanged: the
base scale has the topology, and takes the weights, of the published 32 kHz mono model. Codecs of this project's own
are in the registry `codec_models`, by the word that `compression_model` says.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from micro_musicgen.conditioners.lazy_registry import LazyRegistry
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

CONFIG_KEYS = ("compression_model", "encodec", "seanet", "beat_vqvae", "rvq", "sample_rate", "channels")
"""The keys of the Hydra config that decide what the codec is. A release keeps these and nothing else."""
BEATS_KEY = "beats"
"""And of a codec that was trained in beat time: frames_per_beat as the run says it, bpm (the median)."""

UPSTREAM = "encodec"
"""The `compression_model` that is audiocraft's own."""

codec_models: LazyRegistry[Callable[[Mapping[str, Any]], Any]] = LazyRegistry(
    "codec", {"beat_vqvae": "micro_musicgen.codec.beat_vqvae"}
)
"""Builders of codecs that are not audiocraft's, of plain config data, by `compression_model`."""


def is_own(config: Mapping[str, Any]) -> bool:
    """Says whether `config` describes a codec of this project's own, and not an EnCodec of audiocraft's modules."""
    kind = config.get("compression_model")
    return kind not in (None, UPSTREAM) and kind in codec_models


def frame_samples(config: Mapping[str, Any]) -> int:
    """Gives the samples of a frame of the codec that `config` describes, without building it."""
    if config.get("compression_model") == "beat_vqvae":
        return int(config["beat_vqvae"]["samples_per_beat"]) // int(config["beat_vqvae"]["latents_per_beat"])
    return math.prod(config["seanet"]["ratios"])


def codec_config(cfg: DictConfig) -> dict[str, Any]:
    """Gives the part of a run's config from which `build_codec_model` makes the same codec, as plain resolved data."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(CONFIG_KEYS)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()} | _beats(cfg)


def _beats(cfg: DictConfig) -> dict[str, Any]:
    """Gives the key of a codec that was trained in beat time; of all others the config, and their hash, lacks it."""
    section = cfg.get("dset")  # not there in runs older than beat time
    if cfg.get("beats") is not None:  # of a release
        return {BEATS_KEY: dict(cfg.beats)}
    if not section or isinstance(section, str) or section.get("time") != "beats":
        return {}
    bpm = None if section.bpm is None else float(section.bpm)
    return {BEATS_KEY: {"frames_per_beat": int(section.frames_per_beat), "bpm": bpm}}


def build_codec_model(config: Mapping[str, Any], *, device: torch.device | str = "cpu") -> Any:
    """Gives an untrained codec (fp32) on `device`: audiocraft's `EncodecModel`, or a model of `codec_models`.

    Raises:
        MicroMusicGenError: the config names something that no builder knows.
    """
    from omegaconf import OmegaConf

    from micro_musicgen.upstream import audiocraft_module

    if is_own(config):
        return codec_models.get(config["compression_model"])(config).to(device)
    builders = audiocraft_module("models.builders")
    try:
        with warnings.catch_warnings():
            # audiocraft's weight norm is torch's old form: its state_dict keys are the ones published weights have.
            warnings.filterwarnings("ignore", message=".*weight_norm.* is deprecated")
            return builders.get_compression_model(OmegaConf.create({**config, "device": str(device)}))
    except KeyError as error:
        raise MicroMusicGenError(f"cannot build the codec: {error.args[0]}") from error
