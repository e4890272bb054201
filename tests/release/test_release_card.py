"""What the card claims, and what it must not claim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from micro_musicgen.data.manifest import Track, write_manifest
from micro_musicgen.lm.scales import spec
from micro_musicgen.release.card import CardFacts, render_card
from micro_musicgen.release.provenance import sound_facts

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


def sounds(licenses: dict[str, int], sources: dict[str, int] | None = None) -> CardFacts:
    """Facts about sounds that lie under `licenses`, name to files of 0.5 hours each."""
    split = {
        "files": sum(licenses.values()),
        "hours": 0.5 * sum(licenses.values()),
        "licenses": {name: {"files": number, "hours": 0.5 * number} for name, number in licenses.items()},
        "sources": {name: {"files": number, "hours": 0.5 * number} for name, number in (sources or {}).items()},
    }
    return replace(FACTS, provenance={"sounds": {"train": split}})


def test_licences_of_the_sounds_are_summed() -> None:
    card = render_card(sounds({"cc0-1.0": 4, "cc-by-nc-4.0": 1}, {"freesound.org": 3, "unknown": 2}))
    assert "| licence | files | length |\n|---|---|---|\n| cc0-1.0 | 4 | 2.0 hours |\n" in card
    assert "| cc-by-nc-4.0 | 1 | 30.0 minutes |\n" in card and "Sources: freesound.org 3, unknown 2." in card
    assert "authors of the sounds be named" in card and "do not allow commercial use of the sounds" in card
    assert "is unknown" not in card


def test_unknown_licences_are_said_plainly() -> None:
    card = render_card(sounds({"cc0-1.0": 4, "unknown": 2}, {"unknown": 6}))
    assert "**The licence of 2 of 6 training files is unknown.**" in card and "Sources:" not in card
    assert "authors of the sounds" not in card and "commercial use of the sounds" not in card
    assert "Licences of the training sounds: not recorded." in render_card(FACTS)


def test_words_of_others_stay_in_their_cell() -> None:
    card = render_card(sounds({"mine | [x](http://y) <script>": 1}))
    assert r"| mine \| \[x\](http://y) \<script\> | 1 |" in card


def test_sound_facts_sum_licences_and_name_no_path(tmp_path: Path) -> None:
    def track(number: int, **info: str) -> Track:
        return Track(f"/home/ann/{number}.wav", 1800.0, 8000, audio_hash=f"{number}", info=info or None)

    known = [
        track(0, license="cc0-1.0", source="https://www.Freesound.org/people/x/sounds/1"),
        track(1, license="cc0-1.0", source="see http://freesound.org/s/2"),
        track(2, license="cc-by-4.0", source="/home/ann/secret"),
        track(3, source="C:\\Users\\ann"),
        track(4),
    ]
    config = {"datasource": {split: str(tmp_path / split) for split in ("train", "valid")}}
    write_manifest(tmp_path / "train", known)
    write_manifest(tmp_path / "valid", known[:1])
    facts = sound_facts(config)
    assert facts["train"] == {
        "files": 5,
        "hours": 2.5,
        "licenses": {
            "cc0-1.0": {"files": 2, "hours": 1.0},
            "unknown": {"files": 2, "hours": 1.0},
            "cc-by-4.0": {"files": 1, "hours": 0.5},
        },
        "sources": {
            "a folder": {"files": 2, "hours": 1.0},
            "freesound.org": {"files": 2, "hours": 1.0},
            "unknown": {"files": 1, "hours": 0.5},
        },
    }
    assert facts["valid"]["licenses"] == {"cc0-1.0": {"files": 1, "hours": 0.5}}
    assert "ann" not in json.dumps(facts)
    # What names the sounds does not depend on what is said about them.
    write_manifest(tmp_path / "train", [replace(one, info=None) for one in known])
    assert sound_facts(config)["hash"] == facts["hash"]
    # A licence of its own for every file: told up to a limit, and the unknown ones always.
    many = [track(number, license=f"note {number}") for number in range(30)] + [track(99)]
    write_manifest(tmp_path / "train", many)
    licenses = sound_facts(config)["train"]["licenses"]
    assert len(licenses) == 22 and licenses["others"]["files"] == 10 and licenses["unknown"]["files"] == 1
    assert sum(one["files"] for one in licenses.values()) == 31
