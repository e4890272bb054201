"""Builds an EnCodec from plain config data.

The modules are audiocraft's own `EncodecModel`, so that weights move between the two projects unchanged: the base
scale has the topology, and takes the weights, of the published 32 kHz mono model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

CONFIG_KEYS = ("compression_model", "encodec", "seanet", "rvq", "sample_rate", "channels")
"""The keys of the Hydra config that decide what the codec is. A release keeps these and nothing else."""


def codec_config(cfg: DictConfig) -> dict[str, Any]:
    """Gives the part of a run's config from which `build_codec_model` makes the same codec, as plain resolved data."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(CONFIG_KEYS)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def build_codec_model(config: Mapping[str, Any], *, device: torch.device | str = "cpu") -> Any:
    """Gives an untrained audiocraft `EncodecModel` (fp32) on `device`.

    Raises:
        MicroMusicGenError: the config names something that no builder knows.
    """
    from omegaconf import OmegaConf

    from micro_musicgen.upstream import audiocraft_module

    builders = audiocraft_module("models.builders")
    try:
        with warnings.catch_warnings():
            # audiocraft's weight norm is torch's old form: its state_dict keys are the ones published weights have.
            warnings.filterwarnings("ignore", message=".*weight_norm.* is deprecated")
            return builders.get_compression_model(OmegaConf.create({**config, "device": str(device)}))
    except KeyError as error:
        raise MicroMusicGenError(f"cannot build the codec: {error.args[0]}") from error
