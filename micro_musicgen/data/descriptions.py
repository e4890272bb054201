"""What a model hears about a sound: the words of its track, as text, put together anew for every crop.

A track that has only a description gives it. Attributes become "genre: jungle. bpm: 170. key: A minor"; training
varies which are there and in what order, so that a model understands each of them alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from micro_musicgen.data.info import clean
from micro_musicgen.data.manifest import Track
from micro_musicgen.errors import MicroMusicGenError

NUM_VARIANTS = 16
"""Texts that one track has beside the full one. So few that a frozen encoder, which reads each of them once, has soon
read them all: on a CPU it takes as long for a text as a small model for a training step.
"""

ATTRIBUTES = ("genre", "moods", "instrument", "bpm", "key", "keywords")
"""The attributes that are heard, in the order of the full text. Titles, artists and licences are not heard."""


@dataclass(frozen=True)
class Templates:
    """How often a training text takes which form; probabilities.

    add_attributes: a description gets attributes added. drop_description: of these, the attributes stand alone.
    keep_attribute: an attribute that is known is told; of several one always is. shuffle: they come in another order.
    A track without a description tells attributes every time.
    """

    add_attributes: float = 0.5
    drop_description: float = 0.25
    keep_attribute: float = 0.75
    shuffle: float = 1.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not 0 <= value <= 1:
                raise MicroMusicGenError(f"templates: {one.name} is {value}, give a probability from 0 to 1")


class _Words(NamedTuple):
    """What one track has to say. full: everything, in fixed order."""

    description: str
    attributes: tuple[str, ...]
    full: str


class Descriptions:
    """The texts of a data set's tracks. seed: decides the variants, and which of them a crop is told."""

    def __init__(
        self,
        tracks: Sequence[Track],
        seed: int = 0,
        templates: Templates | None = None,
        *,
        num_variants: int = NUM_VARIANTS,
    ) -> None:
        self.seed = seed
        self.templates = templates or Templates()
        self.num_variants = num_variants
        self._words = [_words(track.info) for track in tracks]

    @property
    def num_known(self) -> int:
        """How many tracks have any text."""
        return sum(words is not None for words in self._words)

    def text(self, track_index: int, place: int) -> str | None:
        """Gives the text of a track, None where nothing is known about it.

        place: below 0 for the full text, which never changes (validation, evaluation); else the global number of the
        crop, which with the seed decides the variant, whatever was asked before.
        """
        words = self._words[track_index]
        if words is None or place < 0:
            return None if words is None else words.full
        return self.variant(track_index, int(random.Random(f"{self.seed} {place}").random() * self.num_variants))

    def variant(self, track_index: int, number: int) -> str | None:
        """Gives variant `number`, in [0, num_variants), of a track's text; None where nothing is known about it."""
        words = self._words[track_index]
        if words is None or not words.attributes:
            return None if words is None else words.description
        return self._variant(words, random.Random(f"{self.seed} {track_index} {number}"))

    def _variant(self, words: _Words, chance: random.Random) -> str:
        templates = self.templates
        description = words.description
        if description:
            if chance.random() >= templates.add_attributes:
                return description
            if chance.random() < templates.drop_description:
                description = ""
        told = [attribute for attribute in words.attributes if chance.random() < templates.keep_attribute]
        if not told and not description:
            told = [words.attributes[int(chance.random() * len(words.attributes))]]
        if chance.random() < templates.shuffle:
            # By drawn numbers and not by `shuffle`, whose order may differ between versions of Python.
            told = [attribute for _, attribute in sorted((chance.random(), attribute) for attribute in told)]
        return _joined(description, told)


def _words(info: Mapping[str, Any] | None) -> _Words | None:
    known = clean(info or {}).info  # a manifest may have been written by others
    attributes = tuple(f"{name}: {_said(known[name])}" for name in ATTRIBUTES if name in known)
    description = known.get("description", "")
    full = _joined(description, attributes)
    return _Words(description, attributes, full) if full else None


def _said(value: str | float | list[str]) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else value


def _joined(description: str, attributes: Sequence[str]) -> str:
    """Gives sentences with one full stop between them; a description keeps the end that it has."""
    if not description or not attributes:
        return description or ". ".join(attributes)
    end = "" if description[-1] in ".!?…" else "."
    return f"{description}{end} {'. '.join(attributes)}"
