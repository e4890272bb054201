"""Dropout of conditions: the shares asked for, each case alone, and the same for every batch that a crop is in."""

from __future__ import annotations

import math

import pytest

from micro_musicgen.conditioners.dropout import ConditionDropout
from micro_musicgen.errors import MicroMusicGenError

NAMES = ("description", "audio_prompt")
MODEL_B = ConditionDropout(0.1, {"description": 0.1, "audio_prompt": 0.1})
DRAWS = 20_000


def test_the_three_cases_have_their_shares_and_exclude_each_other() -> None:
    counts = {case: 0 for case in ((True, True), (True, False), (False, True), (False, False))}
    for place in range(DRAWS):
        text, audio = (MODEL_B.kept(name, seed=1, place=place) for name in NAMES)
        counts[text, audio] += 1
    error = 4 * math.sqrt(0.09 / DRAWS)  # four standard deviations of a share of 0.1
    for case in ((True, False), (False, True), (False, False)):
        assert counts[case] / DRAWS == pytest.approx(0.1, abs=error)


def test_is_a_pure_function_of_seed_and_place() -> None:
    first = [MODEL_B.kept("description", seed=3, place=place) for place in range(200)]
    assert first == [MODEL_B.kept("description", seed=3, place=place) for place in range(200)]
    assert first != [MODEL_B.kept("description", seed=4, place=place) for place in range(200)]


def test_none_and_all() -> None:
    assert all(ConditionDropout().kept("description", seed=0, place=place) for place in range(100))
    assert not any(ConditionDropout(1.0).kept("description", seed=0, place=place) for place in range(100))


def test_reads_audiocrafts_keys() -> None:
    config = {
        "classifier_free_guidance": {"training_dropout": 0.2},
        "attribute_dropout": {"text": {"description": 0.1}, "wav": {}},
        "conditioners": {"description": {}},
    }
    assert ConditionDropout.parse(config) == ConditionDropout(0.2, {"description": 0.1})


@pytest.mark.parametrize("shares", [(1.1, {}), (-0.1, {}), (0.6, {"a": 0.5}), (math.nan, {})])
def test_impossible_shares_are_told(shares: tuple[float, dict[str, float]]) -> None:
    with pytest.raises(MicroMusicGenError, match="training_dropout"):
        ConditionDropout(*shares)


def test_a_name_that_nobody_listens_to_is_told() -> None:
    config = {
        "classifier_free_guidance": {"training_dropout": 0.0},
        "attribute_dropout": {"text": {"genre": 0.1}},
        "conditioners": {"description": {}},
    }
    with pytest.raises(MicroMusicGenError, match=r"'genre'; this model listens to description"):
        ConditionDropout.parse(config)
