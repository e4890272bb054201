"""Tiny models of this project that listen to words and sounds, and the runs that training would have left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import fixtures_models as models
import torch
from torch import nn

from micro_musicgen import MicroMusicGen
from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.conditioners.base import Conditioner, Kind, Surroundings, conditioners
from micro_musicgen.engine.codec import playing
from micro_musicgen.engine.inputs import OwnConditioner

MAX_LENGTH = 5
SOUND_S = 0.1
UNROLL = {"modeling": "unroll", "unroll": {"flattening": [0, 1, 2, 3], "delays": [0, 0, 0, 0]}}
FORMS = ("prefix, unroll", "prefix, delay", "text", "text and sound", "sound", "prefix and sound")
"""Ways into the network: text before the sequence, or attended to, alone or beside a sound."""


class Words(Conditioner):
    """A text conditioner without an encoder: a word is a row of a table, told apart by its letters."""

    kind: ClassVar[Kind] = "text"

    def __init__(self, settings: Mapping[str, Any], surroundings: Surroundings) -> None:
        super().__init__()
        self.num_positions = int(settings["max_length"])
        self.dim = surroundings.dim
        self.table = nn.Embedding(32, self.dim)
        self.prepared: list[str | None] = []

    def prepare(self, raw: Sequence[str | None]) -> torch.Tensor:
        self.prepared += raw
        tokens = torch.full((len(raw), self.num_positions), -1)
        for row, text in enumerate(raw):
            for place, word in enumerate((text or "").split()[: self.num_positions]):
                tokens[row, place] = sum(map(ord, word)) % 32
        return tokens

    def forward(self, prepared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = prepared >= 0
        return self.table(prepared.clamp(min=0)) * mask[..., None], mask


if "test_words" not in conditioners:
    conditioners.register("test_words")(Words)


def own_config(form: str, *, encoder: Path | str | None = None) -> dict[str, Any]:
    """Facts of a model in one of `FORMS`. encoder: a T5's, or words without an encoder."""
    config = deepcopy(models.lm_config())
    names = [name for name, word in (("description", "text"), ("audio_prompt", "sound")) if word in form]
    before = ["description"] if "prefix" in form else []
    names = [*before, *(name for name in names if name not in before)]
    crossed = [name for name in names if name not in before]
    settings: dict[str, Any] = {"model": "test_words", "test_words": {"max_length": MAX_LENGTH}}
    if encoder is not None:
        settings = {"model": "text", "text": {"encoder": str(encoder), "max_length": MAX_LENGTH}}
    sound = {"model": "audio_prompt", "audio_prompt": {"duration_s": SOUND_S, "dim": 8, "modality": True}}
    config["conditioners"] = {name: settings if name == "description" else sound for name in names}
    config["fuser"] |= {"prepend": before, "cross": crossed, "cross_attention_pos_emb": False,
                        "cross_attention_pos_emb_scale": 1, "mask_padding": True}  # fmt: skip
    config["transformer_lm"]["cross_attention"] = bool(crossed)
    config["classifier_free_guidance"] = {"training_dropout": 0.1, "inference_coef": 3.0}
    if "unroll" in form:
        config["codebooks_pattern"] = UNROLL
    return config


def make_lively(config: dict[str, Any], seed: int = 0) -> Any:
    """A model whose weights are far from their start, so that what it is told matters."""
    lm = models.make_lm(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in lm.named_parameters():
            if not name.startswith("condition_provider"):
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return lm


def make_player(form: str = "text and sound", *, lm: Any = None, **changes: Any) -> MicroMusicGen:
    """The engine around such a model, set to clips of 0.3 s of seed 1."""
    config = own_config(form)
    lm = lm or make_lively(config)
    device = changes.setdefault("device", "cpu")
    codec = playing(EncodecCodec(models.make_codec_model().to(device), models.codec_config()))
    conditioner = OwnConditioner(lm.condition_provider.to(device))
    model = MicroMusicGen(
        config, lm.state_dict(), codec, window_s=models.WINDOW_S, conditioner=conditioner, **changes
    )  # fmt: skip
    model.set_generation_params(duration=0.3, seed=1)
    return model


def noise(
    seconds: float = SOUND_S, *, seed: int = 0, channels: int = 1, rate: int = models.SAMPLE_RATE
) -> torch.Tensor:
    """A sound [C, L] that is not like any other seed's."""
    generator = torch.Generator().manual_seed(seed)
    return 0.2 * torch.randn(channels, round(seconds * rate), generator=generator)


def write_own_run(form: str, encoder: Path | str) -> Path:
    """The run folder of a model with a real text encoder, and of its codec."""
    models.write_codec_run()
    return models.write_lm_run(config=own_config(form, encoder=encoder))
