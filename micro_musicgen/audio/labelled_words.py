"""Saying the attributes of a labelled track in words: several wordings of each, a vocabulary that is closed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "kit": {number: (f"on kit {number}", f"played on kit {number}") for number in ("one", "two", "three", "four")},
    "tempo": {"slow": ("slow", "relaxed"), "fast": ("fast", "quick")},
    "bass": {"no": ("without bass", "with no bass"), "yes": ("with bass", "with a bass line")},
    "tone": {"dark": ("dark", "muffled"), "bright": ("bright", "crisp")},
    "style": {"breakbeat": ("breakbeat", "broken beat"), "four": ("four on the floor", "house beat")},
}
"""Attribute -> value -> the ways to say it. The first is the plain one."""

_ORDERS = (
    ("a", "tempo", "tone", "style", "bass", "kit"),
    ("a", "tone", "tempo", "style", "kit", "bass"),
    ("kit", "a", "tone", "tempo", "style", "bass"),
    ("bass", "a", "tempo", "tone", "style", "kit"),
)
_PLAIN = "beat"
"""Stands for a style that is not said."""


def describe(attributes: Mapping[str, str], rng: np.random.Generator | None = None) -> str:
    """Gives words for the attributes that are there, such as "a fast dark breakbeat with bass on kit two".

    rng: chooses among orders and wordings; None takes the plain ones. Said in part (without "kit", say), a track is
    described in part.
    """
    order = _ORDERS[0] if rng is None else _ORDERS[int(rng.integers(len(_ORDERS)))]
    words = []
    for place in order:
        if place == "a":
            words.append("a")
        elif place in attributes:
            wordings = WORDINGS[place][attributes[place]]
            words.append(wordings[0] if rng is None else wordings[int(rng.integers(len(wordings)))])
        elif place == "style":
            words.append(_PLAIN)
    return " ".join(words)


def vocabulary() -> list[str]:
    """Gives every word that `describe` can say, each once, sorted."""
    said = [phrase for values in WORDINGS.values() for phrases in values.values() for phrase in phrases]
    return sorted({word for phrase in (*said, "a", _PLAIN) for word in phrase.split()})
