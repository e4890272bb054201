"""The `Codec` contract over audiocraft's modules (ours, upstream's and exported ones alike)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from micro_musicgen.codec.wrapping import PartedCodec
from micro_musicgen.errors import MicroMusicGenError


class EncodecCodec(PartedCodec):
    """A frozen EnCodec of audiocraft's; see `FrozenCodec`.

    Raises:
        MicroMusicGenError: it renormalises loudness, so that its codes don't stand alone.
    """

    def __init__(self, model: Any, config: Mapping[str, Any]) -> None:
        if model.renormalize:
            raise MicroMusicGenError(
                "the codec renormalises loudness, which codes alone can't say; use one with encodec.renormalize=false"
            )
        super().__init__(model, config)
