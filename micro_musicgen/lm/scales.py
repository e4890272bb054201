"""The published LM sizes. `config/model/lm/model_scale/NAME.yaml` says the same numbers; a test holds them together.

All but `micro` have narrow heads (32-64 wide), which fast attention kernels like and small models learn better with.
`micro` (2 layers of width 2048, 134 M parameters) is kept exactly for checkpoints that exist, name included, although
it is larger than `midi`: its speed comes from having only two sequential layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from micro_musicgen.contracts import LMSpec
from micro_musicgen.errors import MicroMusicGenError

FFN_SCALE = 4


@dataclass(frozen=True)
class Scale:
    """Width, heads and depth of one size. The feed-forward part is always four times as wide."""

    dim: int
    num_heads: int
    num_layers: int


SCALES: dict[str, Scale] = {
    "nano": Scale(dim=128, num_heads=4, num_layers=4),
    "tiny": Scale(dim=256, num_heads=8, num_layers=6),
    "mini": Scale(dim=384, num_heads=8, num_layers=8),
    "midi": Scale(dim=512, num_heads=8, num_layers=8),
    "micro": Scale(dim=2048, num_heads=2, num_layers=2),
}


def spec(name: str, *, card: int = 2048, num_codebooks: int = 4) -> LMSpec:
    """Gives the shape of scale `name` over a codec with `num_codebooks` codebooks of `card` entries.

    Raises:
        MicroMusicGenError: there is no scale of that name.
    """
    if name not in SCALES:
        raise MicroMusicGenError(f"unknown scale {name!r}; known: {', '.join(SCALES)}")
    scale = SCALES[name]
    return LMSpec(
        dim=scale.dim,
        num_heads=scale.num_heads,
        num_layers=scale.num_layers,
        ffn_dim=FFN_SCALE * scale.dim,
        card=card,
        num_codebooks=num_codebooks,
    )
