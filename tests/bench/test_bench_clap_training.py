"""bench/clap_training.py's parts: the loss against torch's, and a model that trains, is saved and is loaded."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

pytest.importorskip("transformers")

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from clap_training import attribute_accuracy, contrastive_loss, retrieval, train_tiny_clap  # noqa: E402

from micro_musicgen.metrics.clap import load_clap  # noqa: E402

RATE = 32000


def test_with_no_text_twice_the_loss_is_the_usual_one() -> None:
    generator = torch.Generator().manual_seed(0)
    audio, text = (functional.normalize(torch.randn(5, 8, generator=generator), dim=-1) for _ in range(2))
    logits, wanted = 3 * audio @ text.T, torch.arange(5)
    usual = (functional.cross_entropy(logits, wanted) + functional.cross_entropy(logits.T, wanted)) / 2
    torch.testing.assert_close(contrastive_loss(audio, text, torch.eye(5).bool(), torch.tensor(3.0)), usual)


def test_clips_of_one_text_are_not_pushed_apart() -> None:
    audio = torch.eye(2).repeat_interleave(2, dim=0)  # two clips of each of two texts, perfectly placed
    same = (audio @ audio.T).bool()
    # Of each row half the target lies on either partner: nothing better than ln 2 can be had, and it is had.
    assert contrastive_loss(audio, audio, same, torch.tensor(50.0)) == pytest.approx(math.log(2), abs=1e-6)
    apart = torch.zeros(4, 2, requires_grad=True)
    contrastive_loss(audio + apart, audio, same, torch.tensor(50.0)).backward()
    assert apart.grad is not None and apart.grad.abs().max() < 1e-6


def _clips(seed: int) -> list[tuple[torch.Tensor, str]]:
    generator = torch.Generator().manual_seed(seed)
    noise = 0.1 * torch.randn(12, RATE, generator=generator)
    low = 0.3 * torch.sin(2 * math.pi * 80 * torch.arange(RATE) / RATE)
    return [(wav if i % 2 else 0.1 * wav + low, "bright hiss" if i % 2 else "dark tone") for i, wav in enumerate(noise)]


@pytest.mark.slow
def test_seconds_of_training_tell_a_tone_from_hiss(tmp_path: Path) -> None:
    said: list[str] = []
    folder = train_tiny_clap(tmp_path / "clap", _clips(0), minutes=0.1, seed=0, say=said.append)
    clap, held_out = load_clap(str(folder)), _clips(1)
    found = retrieval(clap, held_out)
    assert found == {"accuracy": 1.0, "chance": 0.5, "num_clips": 12, "num_texts": 2} and "loss" in said[0]
    truths = [int(text == "bright hiss") for _, text in held_out]
    wavs = [wav for wav, _ in held_out]
    assert attribute_accuracy(clap, wavs, [["dark tone"], ["bright hiss"]], truths) == 1.0
    assert attribute_accuracy(clap, wavs, [["bright hiss"], ["dark tone"]], truths) == 0.0
