"""The frozen types: what they accept, what they refuse, and that they travel through JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from micro_musicgen.contracts import GenerationParams, LMSpec, ReleaseConfig
from micro_musicgen.errors import MicroMusicGenError

GOLDEN_RELEASE = """{"lm": {"lm_model": "transformer_lm"}, "codec": {}, "sample_rate": 32000, "window_s": 8.0,
"codec_reference": "facebook/encodec_32khz", "conditioners": {}, "decoder": null, "frames_per_beat": null,
"hashes": {"model.safetensors": "00"}, "provenance": {"run": {"seed": 1}}, "name": "jungle",
"format": "micro_musicgen", "version": 1}"""
"""config.json as version 1 wrote it. It must stay readable: a new format needs a migration, not a new golden."""


def shape(**changes: Any) -> LMSpec:
    facts = {"dim": 8, "num_heads": 2, "num_layers": 3, "ffn_dim": 32, "card": 10, "num_codebooks": 4}
    return LMSpec(**{**facts, **changes})


def test_parameters_are_counted_by_the_formula() -> None:
    K, d, card, layers = 4, 8, 10, 3
    assert shape().num_parameters == K * d * (2 * card + 1) + layers * (12 * d**2 + 4 * d) + 2 * d
    assert shape(conditioning="cross").num_parameters - shape().num_parameters == layers * (4 * d**2 + 2 * d)
    assert shape(conditioning="prefix").num_parameters == shape().num_parameters
    assert shape().num_embedding_parameters == K * d * (2 * card + 1)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(MicroMusicGenError, match="dim 8 is not a multiple of num_heads 3"):
        shape(num_heads=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("duration_s", 0),
        ("duration_s", -1.0),
        ("duration_s", 10_000.0),
        ("duration_s", float("nan")),
        ("temperature", 0.0),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("extend_stride_s", 0.0),
    ],
)
def test_parameters_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(MicroMusicGenError, match=name.removesuffix("_s")) as caught:
        GenerationParams(**{name: value})
    assert f"{value:g}" in str(caught.value) and "\n" not in str(caught.value)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(MicroMusicGenError, match="duration.*temperature.*top_k"):
        GenerationParams(duration_s=0, temperature=0, top_k=-1)


def test_parameters_are_replaced_and_never_edited() -> None:
    params = GenerationParams()
    assert params.updated(temperature=0.5).temperature == 0.5 and params.temperature == 1.0
    with pytest.raises(FrozenInstanceError):
        params.temperature = 0.5  # type: ignore[misc]
    with pytest.raises(MicroMusicGenError, match="unknown generation parameter 'temp'; known: .*temperature"):
        params.updated(temp=0.5)
    with pytest.raises(MicroMusicGenError, match="top_k -1"):
        params.updated(top_k=-1)


def test_a_release_config_travels_through_json() -> None:
    config = ReleaseConfig(lm={"a": 1}, codec={}, sample_rate=32000, window_s=8.0, name="Träume")
    assert ReleaseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_version_1_stays_readable() -> None:
    plain = json.loads(GOLDEN_RELEASE)
    config = ReleaseConfig.from_dict(plain)
    assert config.to_dict() == plain
    # `tempo` came with beat time, and is left out of clock time's releases.
    assert set(plain) | {"tempo"} == {field.name for field in fields(ReleaseConfig)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "stable"}, "format 'stable', expected 'micro_musicgen'"),
        ({"version": 2}, "release version 2 is not readable here; upgrade"),
        ({"version": "1"}, "release version '1'"),
        ({"sample_rate": ...}, "missing key 'sample_rate'"),
        ({"extra": 1, "more": 2}, "unknown key 'extra'; unknown key 'more'"),
    ],
)
def test_another_config_is_refused(changes: dict[str, Any], words: str) -> None:
    plain = {**json.loads(GOLDEN_RELEASE), **changes}
    plain = {key: value for key, value in plain.items() if value is not ...}
    with pytest.raises(MicroMusicGenError, match=words):
        ReleaseConfig.from_dict(plain)


def test_the_package_root_is_light() -> None:
    """Neither torch nor audiocraft comes with `import micro_musicgen`, nor with its contracts."""
    code = (
        "import sys, micro_musicgen.contracts; print({'torch', 'audiocraft', 'numpy', 'omegaconf'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_the_public_name_is_found_and_others_are_not() -> None:
    import micro_musicgen

    assert micro_musicgen.MicroMusicGen.__name__ == "MicroMusicGen"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        micro_musicgen.nothing  # noqa: B018
