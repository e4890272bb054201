"""Enters `llama` among the language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from micro_musicgen.lm.builder import LanguageModel, Place, build_condition_provider, build_pattern, language_models
from micro_musicgen.lm.llama_shape import BACKBONE, llama_spec, read_llama_shape


def build_llama(config: Mapping[str, Any], place: Place) -> Any:
    """Gives an untrained `LlamaLM`.

    Raises:
        MicroMusicGenError: the config is not a llama's, or a conditioner can't be built.
    """
    from micro_musicgen.lm.llama import LlamaLM

    shape = read_llama_shape(config)
    # Before the network, which takes longer: its conditioners are what can be missing.
    provider = build_condition_provider(
        config, window_s=place.window_s, device=place.device, frame_rate=place.frame_rate, folder=place.folder
    )
    made = LlamaLM(
        shape,
        crosses=bool((config.get("fuser") or {}).get("cross")),
        pattern_provider=build_pattern(config),
        condition_provider=provider,
    )
    return made.to(place.device)


language_models.register(BACKBONE)(LanguageModel(llama_spec, build_llama))
