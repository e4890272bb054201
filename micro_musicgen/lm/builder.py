"""Builds a language model over codes from plain config data, and reads its shape back.

Which one is the config's `lm_model`, a name in `language_models`. `transformer_lm` is audiocraft's own `LMModel`, so
that weights move between the two projects unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen.conditioners.lazy_registry import LazyRegistry
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


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a language model is built and for what, beside its config; see `build_lm`."""

    window_s: float
    device: torch.device | str = "cpu"
    frame_rate: float = FRAME_RATE
    folder: Path | None = None


@dataclass(frozen=True)
class LanguageModel:
    """One kind of language model: how its shape is read from a config, and how it is built of one.

    What `build` gives is an untrained fp32 module that `lm.losses.code_losses` takes, with its conditioners as
    `condition_provider`, and whose state_dict `engine.transformer_lm.backbones` knows under the same name.
    """

    spec: Callable[[Mapping[str, Any]], LMSpec]
    build: Callable[[Mapping[str, Any], Place], Any]


language_models: LazyRegistry[LanguageModel] = LazyRegistry(
    "language model", {"llama": "micro_musicgen.lm.llama_builder"}
)
"""By the config's `lm_model`."""


def lm_config(cfg: DictConfig) -> dict[str, Any]:
    """Gives the part of a run's config from which `build_lm` makes the same model, as plain resolved data."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(CONFIG_KEYS)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def lm_spec(config: Mapping[str, Any]) -> LMSpec:
    """Gives the shape that a config (as `lm_config` gives it) describes.

    Raises:
        MicroMusicGenError: the config names a language model that nobody knows, or is not of such a one.
    """
    return language_models.get(config["lm_model"]).spec(config)


def _transformer_spec(config: Mapping[str, Any]) -> LMSpec:
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
    """Gives an untrained language model (fp32) on `device`: audiocraft's `LMModel`, or what `lm_model` names.

    Its `condition_provider` is this project's where the config names its conditioners, and audiocraft's otherwise.
    config: as `lm_config` gives it. window_s: the trained window in seconds, which some conditioners size by.
    frame_rate: of the codec, codes a second. folder: where relative paths in the config are looked up first.

    Raises:
        MicroMusicGenError: the config names something that no builder knows, or a conditioner can't be built.
    """
    place = Place(window_s=window_s, device=device, frame_rate=frame_rate, folder=folder)
    return language_models.get(config["lm_model"]).build(config, place)


def _build_transformer(config: Mapping[str, Any], place: Place) -> Any:
    """Gives audiocraft's `LMModel`."""
    from micro_musicgen.conditioners.provider import is_ours
    from micro_musicgen.upstream import audiocraft_module

    strange = [key for key in ("num_kv_heads", "ffn_dim") if key in config["transformer_lm"]]
    if strange:
        raise MicroMusicGenError(
            f"lm_model=transformer_lm has no {strange[0]}, which is a llama's; add model=lm/llama_lm, or take another "
            "model/lm/model_scale"
        )
    # Before the network, which takes longer: its conditioners are what can be missing.
    provider = _own_provider(config, place) if is_ours(config) else None
    upstreams = config if provider is None else {**config, "conditioners": None}
    full = _full_config(upstreams, place.window_s, place.device)
    try:
        model = audiocraft_module("models.builders").get_lm_model(full)
    except KeyError as error:
        raise MicroMusicGenError(f"cannot build the language model: {error.args[0]}") from error
    if provider is not None:
        model.condition_provider = provider
    return model


language_models.register("transformer_lm")(LanguageModel(_transformer_spec, _build_transformer))


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
        return _own_provider(config, Place(window_s=window_s, device=device, frame_rate=frame_rate, folder=folder))
    full = _full_config(config, window_s, device)
    builders = audiocraft_module("models.builders")
    try:
        return builders.get_conditioner_provider(full.transformer_lm.dim, full).to(device)
    except KeyError as error:
        raise MicroMusicGenError(f"cannot build the conditioners: {error.args[0]}") from error


def build_pattern(config: Mapping[str, Any]) -> Any:
    """Gives audiocraft's provider of the order in which codes follow each other.

    Raises:
        MicroMusicGenError: no builder knows the pattern.
    """
    from micro_musicgen.upstream import audiocraft_module

    full = _full_config(config, window_s=1.0, device="cpu")
    build = audiocraft_module("models.builders").get_codebooks_pattern_provider
    try:
        return build(full.transformer_lm.n_q, full.codebooks_pattern)
    except KeyError as error:
        raise MicroMusicGenError(
            f"unknown codebooks_pattern.modeling {config['codebooks_pattern']['modeling']!r}; known: delay, parallel, "
            "unroll, coarse_first, musiclm"
        ) from error


def _own_provider(config: Mapping[str, Any], place: Place) -> ConditionProvider:
    from micro_musicgen.conditioners.base import Surroundings
    from micro_musicgen.conditioners.provider import build_provider

    shape = config["transformer_lm"]
    surroundings = Surroundings(
        dim=int(shape["dim"]),
        num_codebooks=int(shape["n_q"]),
        card=int(shape["card"]),
        frame_rate=place.frame_rate,
        folder=place.folder,
    )
    return build_provider(config, surroundings).to(place.device)


def _full_config(config: Mapping[str, Any], window_s: float, device: torch.device | str) -> DictConfig:
    """Gives what audiocraft's builders read, out of what a release keeps."""
    from omegaconf import OmegaConf

    # Ours alone (see engine.architecture): audiocraft's fuser refuses what it doesn't know.
    fuser = {key: value for key, value in (config.get("fuser") or {}).items() if key != "mask_padding"}
    built = {"device": str(device), "dtype": "float32", "dataset": {"segment_duration": window_s}}
    return OmegaConf.create({**config, "fuser": fuser, **built})
