"""`REFERENCE:N` is a codec with its first N codebooks only: coarser sound, fewer codes to learn.

Any residual quantiser can be cut so, and those that were trained at several bandwidths are made for it. The colon needs
quotes neither in a shell nor in a Hydra override.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from micro_musicgen.codec.parts import CodecParts
from micro_musicgen.errors import MicroMusicGenError

_LAYER = re.compile(r"quantizer\.vq\.layers\.(\d+)\.")


def split(text: str) -> tuple[str, int | None]:
    """Gives a reference without its number of codebooks, and that number; None when it has none."""
    found = re.fullmatch(r"(.+):(\d+)", text)
    if found is None or Path(text).exists():
        return text, None
    return found[1], int(found[2])


def check(number: int, available: int, source: str) -> None:
    """Refuses a number of codebooks that a codec doesn't have.

    Raises:
        MicroMusicGenError: naming `source`, the number and what there is.
    """
    if not 1 <= number <= available:
        raise MicroMusicGenError(
            f"{source} has {available} codebooks, so {source}:{number} can't be had; give 1 to {available}"
        )


def first(found: CodecParts, number: int | None) -> CodecParts:
    """Gives a codec with its first `number` codebooks; all of them when None.

    Raises:
        MicroMusicGenError: it has fewer, or is no residual quantiser.
    """
    if number is None:
        return found
    if found.pretrained is not None:
        return replace(found, pretrained=f"{split(found.pretrained)[0]}:{number}")
    section = found.config.get("rvq") or {}
    available = section.get("n_q")
    if not isinstance(available, int):
        raise MicroMusicGenError(f"{found.source} has no residual codebooks to choose from; leave :{number} out")
    check(number, available, found.source)
    state = {name: tensor for name, tensor in found.state.items() if _layer(name) < number}
    return replace(found, config={**found.config, "rvq": {**section, "n_q": number}}, state=state)


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return -1 if found is None else int(found[1])
