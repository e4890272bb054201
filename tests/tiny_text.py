"""A T5 encoder that is as small as it gets, in a folder as the Hub's are: made here, with random weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import micro_musicgen.upstream  # noqa: F401  (transformers imports torchaudio, which may need its patch)

SPECIAL = ("<pad>", "</s>", "<unk>")


def words_of(*texts: str) -> list[str]:
    """Gives the words of texts, each once, sorted: a vocabulary that knows all of them."""
    return sorted({word for text in texts for word in text.split()})


def make_tiny_t5(folder: Path, words: Sequence[str], dim: int = 32, num_layers: int = 2, seed: int = 0) -> Path:
    """Gives `folder` with an untrained T5 encoder (config.json, model.safetensors, tokenizer.json) that knows `words`.

    Each word is one token; any other run of letters is `<unk>`. Its features, [S, dim], are of size 1 and differ
    between words although nothing was trained.
    """
    import torch
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    unique = sorted(set(words))
    assert not any(re.search(r"\s", word) for word in unique), f"words hold no spaces: {unique}"
    vocabulary = [(token, 0.0) for token in SPECIAL] + [("▁", -2.0)] + [(f"▁{word}", -1.0) for word in unique]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, additional_special_tokens=[])
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=dim,
        d_kv=max(dim // 2, 4),
        d_ff=2 * dim,
        num_heads=2,
        num_layers=num_layers,
        dropout_rate=0.1,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
