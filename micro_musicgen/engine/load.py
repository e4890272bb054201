"""From a reference to a model that plays, by the shortest way: files to buffers, without audiocraft or config tools.

Models with audiocraft's conditioners are the exception: those come from audiocraft.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from micro_musicgen.conditioners.provider import ConditionProvider
from micro_musicgen.engine.codec import codec_of_parts
from micro_musicgen.engine.inputs import Conditioner, OwnConditioner, UpstreamConditioner
from micro_musicgen.lm.builder import lm_spec
from micro_musicgen.release.load import build_conditioners, check_fit
from micro_musicgen.release.source import ModelParts, read_parts

if TYPE_CHECKING:
    from micro_musicgen.engine.engine import MicroMusicGen


def load_player(
    kind: type[MicroMusicGen], reference: str | Path, device: torch.device, *, precision: str, mode: str
) -> MicroMusicGen:
    """Gives the model that `reference` names, as a `kind`.

    Raises:
        MicroMusicGenError: it does not exist, is damaged or incomplete, or codec and LM don't fit.
    """
    found = read_parts(reference)
    codec_parts = found.codec()
    codec = codec_of_parts(codec_parts, device, "fp32" if precision == "fp32" else "auto")
    check_fit(lm_spec(found.lm), codec, found, codec_parts)
    return kind(
        found.lm,
        found.read_lm(),
        codec,
        window_s=found.window_s,
        name=found.name,
        device=device,
        precision=precision,
        mode=mode,
        conditioner=_conditioner(found, device, codec.frame_rate),
        shapes=found.shapes,
        source=found.source,
    )


def _conditioner(found: ModelParts, device: torch.device, frame_rate: float) -> Conditioner | None:
    if not found.lm["conditioners"]:
        return None
    provider = build_conditioners(found, frame_rate=frame_rate).to(device)
    return OwnConditioner(provider) if isinstance(provider, ConditionProvider) else UpstreamConditioner(provider)
