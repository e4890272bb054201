"""A model with a short window loads and plays in audiocraft."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures_models import make_codec_model, make_lm

from micro_musicgen.upstream import audiocraft_module


def test_short_window_gets_a_stride_that_fits(unpatched: Any) -> None:
    models = audiocraft_module("models")
    codec, lm = make_codec_model(), make_lm()
    with (
        unpatched("audiocraft.models.musicgen:MusicGen.set_generation_params"),
        pytest.raises(AssertionError, match="stride by more"),
    ):
        models.MusicGen("debug", codec, lm, max_duration=10)
    model = models.MusicGen("debug", codec, lm, max_duration=10)
    assert model.extend_stride == 6.0
    assert models.MusicGen("debug", codec, lm, max_duration=30).extend_stride == 18
    model.set_generation_params(extend_stride=2.5)
    assert model.extend_stride == 2.5
    with pytest.raises(AssertionError, match="stride by more"):
        model.set_generation_params(extend_stride=11)
