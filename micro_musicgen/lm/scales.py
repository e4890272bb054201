"""The published LM sizes. `config/model/lm/model_scale/NAME.yaml` says the same numbers; a test holds them together.

All but `micro` have narrow heads (32-64 wide), which fast attention kernels like and small models learn better with.
`micro` (2 layers of width 2048, 134 M parameters) is kept exactly for checkpoints that exist, name included, although
it is larger than `midi`: its speed comes from having only two sequential layers.

A llama of a scale has the same width, heads and depth, and a feed-forward part that makes up the same weight, give or
take 1 %. `melformer` is a llama alone: a small one of many layers, whose keys are shared by pairs of heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from micro_musicgen.contracts import LMSpec
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.llama_shape import BACKBONE as LLAMA
from micro_musicgen.lm.llama_shape import swiglu_width

TRANSFORMER = "transformer_lm"
FFN_SCALE = 4


@dataclass(frozen=True)
class Scale:
    """Width, heads and depth of one size.

    The feed-forward part of a transformer is always four times as wide. num_kv_heads, ffn_dim: of llamas, where they
    are not `num_heads` and what `swiglu_width` gives.
    """

    dim: int
    num_heads: int
    num_layers: int
    num_kv_heads: int | None = None
    ffn_dim: int | None = None


SCALES: dict[str, Scale] = {
    "nano": Scale(dim=128, num_heads=4, num_layers=4),
    "tiny": Scale(dim=256, num_heads=8, num_layers=6),
    "mini": Scale(dim=384, num_heads=8, num_layers=8),
    "midi": Scale(dim=512, num_heads=8, num_layers=8),
    "micro": Scale(dim=2048, num_heads=2, num_layers=2),
}


LLAMA_SCALES: dict[str, Scale] = {
    **SCALES,
    "melformer": Scale(dim=128, num_heads=8, num_layers=8, num_kv_heads=4, ffn_dim=1024),
}
_OF: dict[str, dict[str, Scale]] = {TRANSFORMER: SCALES, LLAMA: LLAMA_SCALES}


def scales_of(backbone: str = TRANSFORMER) -> dict[str, Scale]:
    """Gives the published scales of a backbone by name.

    Raises:
        MicroMusicGenError: it has none.
    """
    if backbone not in _OF:
        raise MicroMusicGenError(f"unknown backbone {backbone!r}; known: {', '.join(_OF)}")
    return _OF[backbone]


def spec(name: str, *, card: int = 2048, num_codebooks: int = 4, backbone: str = TRANSFORMER) -> LMSpec:
    """Gives the shape of scale `name` over a codec with `num_codebooks` codebooks of `card` entries.

    Raises:
        MicroMusicGenError: there is no scale of that name.
    """
    known = scales_of(backbone)
    if name not in known:
        raise MicroMusicGenError(f"unknown scale {name!r}; known: {', '.join(known)}")
    scale = known[name]
    kv_heads, ffn_dim = None, FFN_SCALE * scale.dim
    if backbone == LLAMA:
        kv_heads = scale.num_kv_heads or scale.num_heads
        ffn_dim = scale.ffn_dim or swiglu_width(scale.dim, scale.num_heads, kv_heads)
    return LMSpec(
        backbone=backbone,
        dim=scale.dim,
        num_heads=scale.num_heads,
        num_kv_heads=kv_heads,
        num_layers=scale.num_layers,
        ffn_dim=ffn_dim,
        card=card,
        num_codebooks=num_codebooks,
    )
