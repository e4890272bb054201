"""A CLAP model of tens of thousands of weights, random, in the very files that real ones are published in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import micro_musicgen.upstream  # noqa: F401  (transformers imports torchaudio, which may need its patch)

SAMPLE_RATE = 32000
WINDOW_S = 2
N_MELS = 32
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def make_tiny_clap(folder: Path | str, words: Sequence[str], seed: int = 0, **audio_changes: Any) -> Path:
    """Gives `folder` with a ClapModel, its feature extractor and a tokenizer that knows `words`, as transformers saves
    them. audio_changes: of its ClapAudioConfig; enable_fusion=True, fusion_type="aff_2d" is one published kind.
    """
    from transformers import ClapModel

    folder = Path(folder)
    tokenizer = _tokenizer(words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ClapModel(_config(len(tokenizer), audio_changes)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _extractor("fusion" if audio_changes.get("enable_fusion") else "rand_trunc").save_pretrained(folder)
    return folder


def _config(vocab_size: int, audio_changes: dict[str, Any]) -> Any:
    """The smallest that makes sense: two stages of one block each over a spectrogram of 32 bands and 128 frames.

    The spectrogram is folded into a square of `spec_size`: bands x (spec_size / bands) high.
    """
    from transformers import ClapConfig

    audio = {
        "window_size": 4,
        "num_mel_bins": N_MELS,
        "spec_size": 64,
        "patch_size": 8,
        "patch_stride": [8, 8],
        "hidden_size": 96,  # the last stage's: patch_embeds_hidden_size doubled at each stage after the first
        "patch_embeds_hidden_size": 48,
        "depths": [1, 1],
        "num_attention_heads": [2, 4],
        "num_hidden_layers": 2,
        "hidden_dropout_prob": 0.0,
        "num_classes": 2,
    }
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return ClapConfig(text_config=text, audio_config={**audio, **audio_changes}, projection_dim=32)


def _extractor(truncation: str) -> Any:
    from transformers import ClapFeatureExtractor

    return ClapFeatureExtractor(
        feature_size=N_MELS,
        sampling_rate=SAMPLE_RATE,
        hop_length=512,
        max_length_s=WINDOW_S,
        fft_window_size=1024,
        frequency_min=40,
        truncation=truncation,
        padding="repeatpad",
    )


def _tokenizer(words: Sequence[str]) -> Any:
    """Pairs of bytes as the published ones have, merged until each of `words` is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(words)), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=64,
    )
