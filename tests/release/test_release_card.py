"""What the card claims, and what it must not claim."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from micro_musicgen.lm.scales import spec
from micro_musicgen.release.card import CardFacts, render_card

FACTS = CardFacts(
    name="Dschungel: nachts",
    form="micro",
    spec=spec("nano", card=256),
    num_lm_parameters=1_051_392,
    num_codec_parameters=900_000,
    pretrained_codec=None,
    sample_rate=32000,
    window_s=8.0,
    license_id=None,
    provenance={
        "run": {"signature": "abcd0123", "updates": 900, "seed": 1},
        "sounds": {"train": {"files": 12, "hours": 2.5}, "valid": {"files": 2, "hours": 0.05}},
    },
)


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_no_licence_is_claimed_for_somebody_elses_weights() -> None:
    card = render_card(FACTS)
    assert front(card)["license"] == "other" and front(card)["license_name"] == "not-stated"
    assert "none is claimed" in card and "--license" in card


def test_a_chosen_licence() -> None:
    card = render_card(replace(FACTS, license_id="cc-by-4.0"))
    assert front(card)["license"] == "cc-by-4.0" and "license_name" not in front(card)


@pytest.mark.parametrize(
    ("codec", "origin", "words"),
    [
        (None, {"from_scratch": True}, "trained from scratch by the maker"),
        (None, {"from_scratch": False}, "their maker's licence applies"),
        (None, {}, "their maker's licence applies"),
        ("facebook/encodec_32khz", {}, "CC-BY-NC-4.0, which does not allow commercial use"),
        ("facebook/encodec_32khz:2", {}, "CC-BY-NC-4.0"),
        ("/somewhere/dac", {}, "lies in a folder"),
        ("somebody/codec", {}, "has a licence of its own; see its page"),
    ],
)
def test_the_codecs_licence_is_named(codec: str | None, origin: dict, words: str) -> None:
    facts = replace(FACTS, pretrained_codec=codec, provenance={**FACTS.provenance, "codec": origin})
    assert words in render_card(facts)


def test_weights_that_were_started_from_others() -> None:
    run = {**FACTS.provenance["run"], "started_from": "their-release"}
    card = render_card(replace(FACTS, provenance={"run": run}))
    assert "started from the weights of `their-release`, whose licence holds here too" in card


def test_sizes_sounds_and_how_to_play() -> None:
    card = render_card(FACTS)
    assert "1,051,392 parameters" in card and "900,000 parameters" in card
    assert f"{FACTS.spec.num_embedding_parameters:,}" in card
    assert "training: 12 files, 2.5 hours" in card and "validation: 2 files, 3.0 minutes" in card
    assert "MicroMusicGen.get_pretrained" in card and "micro-musicgen generate" in card
    assert "audiocraft.models import MusicGen" in render_card(replace(FACTS, form="audiocraft"))
