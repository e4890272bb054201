"""Whether a codec's codes are the ones that a language model speaks."""

from __future__ import annotations

from typing import NamedTuple

from micro_musicgen.contracts import Codec, LMSpec


class Difference(NamedTuple):
    """One thing in which codec and language model differ. key: the config key that would make them agree."""

    what: str
    codec: int
    lm: int
    key: str


def differences(codec: Codec, spec: LMSpec, sample_rate: int) -> list[Difference]:
    """Gives everything in which `codec` and a language model of `sample_rate` Hz differ; nothing when they fit."""
    pairs = (
        Difference("codebooks", codec.num_codebooks, spec.num_codebooks, "transformer_lm.n_q"),
        Difference("codes per codebook", codec.cardinality, spec.card, "transformer_lm.card"),
        Difference("Hz", codec.sample_rate, sample_rate, "sample_rate"),
    )
    return [pair for pair in pairs if pair.codec != pair.lm]
