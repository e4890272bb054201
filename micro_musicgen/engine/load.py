"""From a reference to a model that plays, by the shortest way: files to buffers, without audiocraft or config tools.

Models with audiocraft's conditioners are the exception: those come from audiocraft.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from micro_musicgen.conditioners.provider import ConditionProvider
from micro_musicgen.engine.codec import codec_of_parts
from micro_musicgen.engine.inputs import Conditioner, OwnConditioner, UpstreamConditioner
from micro_musicgen.engine.precision import pick_precision
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import lm_spec
from micro_musicgen.release import decoder as decoders
from micro_musicgen.release.load import build_conditioners, check_fit
from micro_musicgen.release.source import ModelParts, read_parts

if TYPE_CHECKING:
    from micro_musicgen.contracts import Codec
    from micro_musicgen.engine.engine import MicroMusicGen


@dataclass(frozen=True, kw_only=True)
class DecoderWish:
    """How codes are to sound. reference: "plain" (or None) is the codec alone, "diffusion" the model's own diffusion
    decoder, all else the run or release of one. steps, guidance, noise_scale: of its sampler, None for what it was made
    with.
    """

    reference: str | Path | None = None
    steps: int | None = None
    guidance: float | None = None
    noise_scale: float | None = None

    def __post_init__(self) -> None:
        if self.is_plain and (self.steps, self.guidance, self.noise_scale) != (None, None, None):
            raise MicroMusicGenError(
                "decoder steps, guidance and noise are a diffusion decoder's, and the codec alone plays; choose a "
                f"decoder ({decoders.OWN}, or a run of one), or leave them out"
            )

    @property
    def is_plain(self) -> bool:
        """Whether the codec plays alone."""
        return self.reference in (None, decoders.PLAIN)


def load_player(
    kind: type[MicroMusicGen],
    reference: str | Path,
    device: torch.device,
    *,
    precision: str,
    mode: str,
    decoder: DecoderWish,
) -> MicroMusicGen:
    """Gives the model that `reference` names, as a `kind`.

    Raises:
        MicroMusicGenError: it does not exist, is damaged or incomplete, or codec, LM and decoder don't fit.
    """
    found = read_parts(reference)
    codec_parts = found.codec()
    codec = codec_of_parts(codec_parts, device, "fp32" if precision == "fp32" else "auto")
    check_fit(lm_spec(found.lm), codec, found, codec_parts)
    if not decoder.is_plain:
        codec = _with_decoder(codec, found, decoder, device, precision)
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
        beat_time=found.beat_time,
    )


def _with_decoder(codec: Codec, found: ModelParts, wish: DecoderWish, device: torch.device, precision: str) -> Codec:
    # Who plays through the codec alone does not wait for these.
    from micro_musicgen.engine.diffusion_codec import DiffusionCodec
    from micro_musicgen.release.decoder_model import build_decoder

    assert wish.reference is not None
    parts = decoders.choose(wish.reference, found.decoder, found.source)
    assert parts is not None, wish
    decoders.check_fit(parts.config, codec, source=parts.source)  # before memory is taken for the network
    dtype = torch.bfloat16 if pick_precision(precision, device) == "bf16" else None
    made = DiffusionCodec(codec, build_decoder(parts, device), parts.config, dtype=dtype, source=parts.source)
    return made.with_params(steps=wish.steps, guidance=wish.guidance, noise_scale=wish.noise_scale)


def _conditioner(found: ModelParts, device: torch.device, frame_rate: float) -> Conditioner | None:
    if not found.lm["conditioners"]:
        return None
    provider = build_conditioners(found, frame_rate=frame_rate).to(device)
    return OwnConditioner(provider) if isinstance(provider, ConditionProvider) else UpstreamConditioner(provider)
