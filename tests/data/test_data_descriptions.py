"""What a model hears: the full text, and variants that depend on seed and place alone."""

from __future__ import annotations

from collections import Counter

import pytest

from micro_musicgen.data.descriptions import Descriptions, Templates
from micro_musicgen.data.manifest import Track
from micro_musicgen.errors import MicroMusicGenError

ALL = {
    "description": "A fast break, chopped up",
    "genre": "jungle",
    "moods": ["wild", "raw"],
    "instrument": "drums",
    "bpm": 170.0,
    "key": "A minor",
    "keywords": ["amen"],
    "title": "Secret",
    "artist": "Ann",
    "license": "cc0-1.0",
}
ATTRIBUTES = ["genre: jungle", "moods: wild, raw", "instrument: drums", "bpm: 170", "key: A minor", "keywords: amen"]
FULL = f"A fast break, chopped up. {'. '.join(ATTRIBUTES)}"


def texts(*infos: dict | None, **options) -> Descriptions:
    return Descriptions([Track(f"/{n}.wav", 1.0, 8000, info=info) for n, info in enumerate(infos)], **options)


@pytest.mark.parametrize(
    ("info", "full"),
    [
        (ALL, FULL),
        ({"description": "Rain."}, "Rain."),
        ({"description": "Rain.", "bpm": 97.5}, "Rain. bpm: 97.5"),
        ({"description": "Is it rain?", "bpm": 90}, "Is it rain? bpm: 90"),
        ({"genre": "dub", "bpm": "140"}, "genre: dub. bpm: 140"),
        ({"title": "Secret", "license": "cc0-1.0"}, None),
        ({}, None),
        (None, None),
        ({"bpm": -5, "moods": {"a": 1}, "description": ["x"]}, None),  # a manifest that somebody else wrote
    ],
)
def test_the_full_text(info: dict | None, full: str | None) -> None:
    said = texts(info)
    assert said.text(0, -1) == said.text(0, -99) == full
    assert said.num_known == (full is not None)
    if full is None:
        assert said.text(0, 5) is None


def test_a_variant_depends_on_seed_and_place_alone() -> None:
    first, again = texts(ALL, ALL, seed=1), texts(ALL, ALL, seed=1)
    forwards = [first.text(0, place) for place in range(50)]
    backwards = [again.text(0, place) for place in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [texts(ALL, seed=2).text(0, place) for place in range(50)]
    # Frozen: a resumed run on another machine hears the same words.
    assert [texts({"genre": "dub", "bpm": 140, "key": "Am"}, seed=7).text(0, place) for place in range(4)] == GOLDEN


GOLDEN = [
    "key: A minor",
    "genre: dub. key: A minor. bpm: 140",
    "bpm: 140. key: A minor",
    "bpm: 140. key: A minor. genre: dub",
]


def test_a_track_has_few_variants_and_a_crop_gets_any_of_them() -> None:
    said = texts(ALL, ALL, seed=5, num_variants=4)
    own = [{said.variant(track, number) for number in range(4)} for track in (0, 1)]
    assert own[0] != own[1]
    for track in (0, 1):
        assert {said.text(track, place) for place in range(200)} == own[track]


def test_the_shares_are_the_templates() -> None:
    settings = Templates(add_attributes=0.4, drop_description=0.3, keep_attribute=0.6)
    said = texts(ALL, seed=3, templates=settings)
    number = 6000
    variants = [said.variant(0, place) or "" for place in range(number)]
    alone = sum(text == ALL["description"] for text in variants) / number
    dropped = sum("chopped" not in text for text in variants) / number
    assert alone == pytest.approx(0.6 + 0.4 * 0.7 * 0.4**6, abs=0.02)
    assert dropped == pytest.approx(0.4 * 0.3, abs=0.015)
    added = [text.removeprefix("A fast break, chopped up").removeprefix(". ") for text in variants]
    told = Counter(part for text in added if text for part in text.split(". "))
    assert set(told) == set(ATTRIBUTES)  # nothing else is ever said
    for attribute in ATTRIBUTES:
        assert told[attribute] / (0.4 * number) == pytest.approx(0.6, abs=0.04)
    first = Counter(text.split(": ")[0] for text in added if text.count(": ") == 6)
    assert len(first) == 6  # in any order


def test_one_attribute_at_least_is_told() -> None:
    said = texts({"genre": "dub", "bpm": 140}, templates=Templates(keep_attribute=0.0))
    assert {said.variant(0, number) for number in range(40)} == {"genre: dub", "bpm: 140"}


def test_templates_of_ones_and_zeros() -> None:
    assert texts(ALL, templates=Templates(add_attributes=0)).text(0, 8) == ALL["description"]
    plain = Templates(add_attributes=1, drop_description=0, keep_attribute=1, shuffle=0)
    assert texts(ALL, templates=plain).text(0, 8) == FULL
    assert texts({"description": "Rain."}, templates=plain).text(0, 8) == "Rain."
    with pytest.raises(MicroMusicGenError, match="templates: shuffle is 1.5, give a probability from 0 to 1"):
        Templates(shuffle=1.5)
