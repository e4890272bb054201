"""A tiny CLAP, trained on labelled sounds in CPU minutes: none of the published ones can be fetched everywhere.

Texts may repeat in a batch: all clips of one text are its rightful partners, so a clip's target is shared among them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from micro_musicgen.metrics.clap import Clap, load_clap
from micro_musicgen.metrics.embedders import mono_at

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

LabelledClip = tuple[torch.Tensor, str]
"""Mono sound [L] at the sample rate said beside it, and what it is called."""

BATCH = 64
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
WARM_UP_STEPS = 50
WINDOWS_PER_CLIP = 6
MAX_SCALE = 50.0
GAIN_DB = 6.0


def train_tiny_clap(
    folder: Path | str,
    clips: Sequence[LabelledClip],
    minutes: float,
    seed: int = 0,
    *,
    sample_rate: int = 32000,
    say: Callable[[str], None] = print,
) -> Path:
    """Gives `folder` with a ClapModel as transformers saves one, trained for `minutes` (0: not at all) on `clips`.

    The same seed gives the same start and the same batches; how many there are depends on the machine.
    """
    from tiny_clap import make_tiny_clap

    folder = make_tiny_clap(folder, sorted({word for _, text in clips for word in text.split()}), seed)
    clap = load_clap(str(folder))
    sounds, texts, text_of = _features(clap, clips, sample_rate, np.random.default_rng(seed))
    model = clap.model.train().requires_grad_(True)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # out of the file, which is written over at the end
    with torch.no_grad():  # the published start, 14, is steep for a model that knows nothing
        model.logit_scale_a.fill_(np.log(5.0))
        model.logit_scale_t.fill_(np.log(5.0))
    # Loud and quiet bands alike from the first step on: batch norm's running figures take a while to get there.
    model.audio_model.audio_encoder.batch_norm.momentum = 0.05
    _train(model, sounds, texts, text_of, minutes=minutes, rng=np.random.default_rng(seed + 1), say=say)
    model.eval().save_pretrained(folder)
    return folder


def _features(
    clap: Clap, clips: Sequence[LabelledClip], sample_rate: int, rng: np.random.Generator
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Gives the extractor's features [clips, windows, 1, frames, bands], the tokens of the texts, each clip's text.

    Windows begin anywhere, computed once: the extractor takes longer than a step of the model.
    """
    windows = []
    for wav, _ in clips:
        mono = mono_at(wav.reshape(1, 1, -1), sample_rate, clap.sample_rate)[0]
        room = max(0, len(mono) - clap.max_samples)
        starts = rng.integers(0, room + 1, WINDOWS_PER_CLIP)
        cut = torch.stack([mono[start : start + clap.max_samples] for start in starts])
        windows.append(clap.features(cut))
    names = sorted({text for _, text in clips})
    tokens = clap.tokenizer(names, padding=True, return_tensors="pt")
    places = {name: place for place, name in enumerate(names)}
    texts = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    return torch.stack(windows), texts, torch.tensor([places[text] for _, text in clips])


def contrastive_loss(audio: torch.Tensor, text: torch.Tensor, same: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Gives the symmetric InfoNCE of directions [B, D] and [B, D]; same [B, B] is true where clip i may go with text j.

    With no text twice that is the usual loss. A text that is there n times shares its target, 1/n each: to be told
    apart from itself is not asked of a clip.
    """
    target = same.float() / same.float().sum(dim=1, keepdim=True)
    logits = scale * audio @ text.T
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def _train(
    model: Any,
    sounds: torch.Tensor,
    texts: dict[str, torch.Tensor],
    text_of: torch.Tensor,
    *,
    minutes: float,
    rng: np.random.Generator,
    say: Callable[[str], None],
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    started, step, told = time.monotonic(), 0, 0.0
    while (spent := (time.monotonic() - started) / 60) < minutes:
        chosen = torch.from_numpy(rng.choice(len(sounds), min(BATCH, len(sounds)), replace=False))
        window = torch.from_numpy(rng.integers(0, sounds.shape[1], len(chosen)))
        # A gain adds to a spectrogram in dB: loudness must not be what a text is known by.
        gain = torch.from_numpy(rng.uniform(-GAIN_DB, GAIN_DB, len(chosen))).float()
        heard = _directions_of_sounds(model, sounds[chosen, window] + gain[:, None, None, None])
        used, place = text_of[chosen].unique(return_inverse=True)
        said = _directions_of_texts(model, {key: value[used] for key, value in texts.items()})[place]
        scale = model.logit_scale_a.exp().clamp(max=MAX_SCALE)
        loss = contrastive_loss(heard, said, text_of[chosen, None] == text_of[None, chosen], scale)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - 0.95 * spent / minutes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if spent > told:
            say(f"tiny CLAP: step {step}, {spent:.1f} of {minutes:g} min, loss {loss.item():.3f}")
            told = spent + 0.25


def _directions_of_sounds(model: Any, features: torch.Tensor) -> torch.Tensor:
    pooled = model.audio_model(input_features=features).pooler_output
    return functional.normalize(model.audio_projection(pooled), dim=-1)


def _directions_of_texts(model: Any, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    pooled = model.text_model(**tokens).pooler_output
    return functional.normalize(model.text_projection(pooled), dim=-1)


def retrieval(clap: Clap, clips: Sequence[LabelledClip], sample_rate: int = 32000) -> dict[str, float]:
    """Gives how often a clip's own text is the best of all of the clips' texts, and what chance would give."""
    names = sorted({text for _, text in clips})
    heard = torch.cat([clap.embed_audio(wav.reshape(1, 1, -1), sample_rate) for wav, _ in clips])
    found = (heard @ clap.embed_text(names).T).argmax(dim=1)
    right = sum(names[int(place)] == text for place, (_, text) in zip(found, clips, strict=True))
    return {"accuracy": right / len(clips), "chance": 1 / len(names), "num_clips": len(clips), "num_texts": len(names)}


def attribute_accuracy(
    clap: Clap,
    sounds: Sequence[torch.Tensor],
    prompts: Sequence[Sequence[str]],
    truths: Sequence[int],
    sample_rate: int = 32000,
) -> float:
    """Gives how often the right value has the best text: prompts[v] are texts that say value v, alike otherwise."""
    heard = torch.cat([clap.embed_audio(wav.reshape(1, 1, -1), sample_rate) for wav in sounds])
    best = torch.stack([(heard @ clap.embed_text(texts).T).amax(dim=1) for texts in prompts])
    return float((best.argmax(dim=0) == torch.tensor(list(truths))).double().mean())
