"""Builds a language model over codes from plain config data, and reads its shape back.

The modules are audiocraft's own `LMModel`, so that weights move between the two projects unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen.contracts import LMSpec
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from micro_musicgen.conditioners.provider import ConditionProvider

FRAME_RATE = 50.0
"""Codes a second of the published 32 kHz codec and of most that are trained here."""

CONFIG_KEYS = (
    "lm_model",
    "transformer_lm",
    "codebooks_pattern",
    "classifier_free_guidance",
    "attribute_dropout",
    "fuser",
    "conditioners",
)
"""The groups of the Hydra config that decide what the model is. A release keeps these and nothing else."""


def lm_config(cfg: DictConfig) -> dict[str, Any]:
    """Gives the part of a run's config from which `build_lm` makes the same model, as plain resolved data."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(CONFIG_KEYS)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def lm_spec(config: Mapping[str, Any]) -> LMSpec:
    """Gives the shape that a config (as `lm_config` gives it) describes."""
    shape = config["transformer_lm"]
    fuser = config.get("fuser") or {}
    return LMSpec(
        backbone=config["lm_model"],
        dim=shape["dim"],
        num_heads=shape["num_heads"],
        num_layers=shape["num_layers"],
        ffn_dim=int(shape["hidden_scale"] * shape["dim"]),
        card=shape["card"],
        num_codebooks=shape["n_q"],
        pattern=config["codebooks_pattern"]["modeling"],
        conditioning="cross" if fuser.get("cross") else "prefix" if fuser.get("prepend") else "none",
    )


def build_lm(
    config: Mapping[str, Any],
    *,
    window_s: float,
    device: torch.device | str = "cpu",
    frame_rate: float = FRAME_RATE,
    folder: Path | None = None,
) -> Any:
    """Gives an untrained audiocraft `LMModel` (fp32) on `device`.

    Its `condition_provider` is this project's where the config names its conditioners, and audiocraft's otherwise.
    config: as `lm_config` gives it. window_s: the trained window in seconds, which some conditioners size by.
    frame_rate: of the codec, codes a second. folder: where relative paths in the config are looked up first.

    Raises:
        MicroMusicGenError: the config names something that no builder knows, or a conditioner can't be built.
    """
    from micro_musicgen.conditioners.provider import is_ours
    from micro_musicgen.upstream import audiocraft_module

    # Before the network, which takes longer: its conditioners are what can be missing.
    provider = _own_provider(config, device, frame_rate, folder) if is_ours(config) else None
    upstreams = config if provider is None else {**config, "conditioners": None}
    try:
        model = audiocraft_module("models.builders").get_lm_model(_full_config(upstreams, window_s, device))
    except KeyError as error:
        raise MicroMusicGenError(f"cannot build the language model: {error.args[0]}") from error
    if provider is not None:
        model.condition_provider = provider
    return model


def build_condition_provider(
    config: Mapping[str, Any],
    *,
    window_s: float,
    device: torch.device | str = "cpu",
    frame_rate: float = FRAME_RATE,
    folder: Path | None = None,
) -> Any:
    """Gives the condition provider of `build_lm` alone, untrained: the language model around it may be a thousand
    times as large.

    Raises:
        MicroMusicGenError: the config names something that no builder knows, or a conditioner can't be built.
    """
    from micro_musicgen.conditioners.provider import is_ours
    from micro_musicgen.upstream import audiocraft_module

    if is_ours(config):
        return _own_provider(config, device, frame_rate, folder)
    full = _full_config(config, window_s, device)
    builders = audiocraft_module("models.builders")
    try:
        return builders.get_conditioner_provider(full.transformer_lm.dim, full).to(device)
    except KeyError as error:
        raise MicroMusicGenError(f"cannot build the conditioners: {error.args[0]}") from error


def _own_provider(
    config: Mapping[str, Any], device: torch.device | str, frame_rate: float, folder: Path | None
) -> ConditionProvider:
    from micro_musicgen.conditioners.base import Surroundings
    from micro_musicgen.conditioners.provider import build_provider

    shape = config["transformer_lm"]
    surroundings = Surroundings(
        dim=int(shape["dim"]),
        num_codebooks=int(shape["n_q"]),
        card=int(shape["card"]),
        frame_rate=frame_rate,
        folder=folder,
    )
    return build_provider(config, surroundings).to(device)


def _full_config(config: Mapping[str, Any], window_s: float, device: torch.device | str) -> DictConfig:
    """Gives what audiocraft's builders read, out of what a release keeps."""
    from omegaconf import OmegaConf

    # Ours alone (see engine.architecture): audiocraft's fuser refuses what it doesn't know.
    fuser = {key: value for key, value in (config.get("fuser") or {}).items() if key != "mask_padding"}
    built = {"device": str(device), "dtype": "float32", "dataset": {"segment_duration": window_s}}
    return OmegaConf.create({**config, "fuser": fuser, **built})
