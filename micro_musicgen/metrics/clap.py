"""CLAP: sounds and texts in one space, so that an angle says how well they fit. Any ClapModel of transformers'."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from micro_musicgen.codec.wrapping import content_hash
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.clap_files import find_clap, read_clap
from micro_musicgen.metrics.embedders import Array, mono_at

BATCH_WINDOWS = 8

# What the weights don't show and yet decides what they give. Not whole configs, which say who wrote them as well.
_AUDIO_FACTS = (
    "window_size", "num_mel_bins", "spec_size", "patch_stride", "depths", "num_attention_heads", "enable_fusion",
    "fusion_type", "hidden_act", "projection_hidden_act", "layer_norm_eps",
)  # fmt: skip
_TEXT_FACTS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "pad_token_id")
_EXTRACTOR_FACTS = (
    "feature_size", "sampling_rate", "hop_length", "fft_window_size", "nb_max_samples", "frequency_min",
    "frequency_max", "top_db", "truncation", "padding",
)  # fmt: skip


def load_clap(reference: str, device: str | torch.device = "cpu") -> Clap:
    """Gives the CLAP model that `reference` names: a Hub id, or a folder to which transformers saved one.

    Raises:
        MissingExtraError: transformers is not installed.
        MicroMusicGenError: it can't be found, fetched or read; the message says what to do.
    """
    return Clap(*read_clap(find_clap(reference), reference), device=device)


class Clap:
    """A frozen ClapModel; an `Embedder` of sounds and a `Scorer`.

    Invariants: nothing is random. A clip longer than the model's window is cut into windows that cover it evenly,
    never cropped; a shorter one is filled up as the model's own extractor does. Every embedding has length 1.
    """

    def __init__(self, model: Any, extractor: Any, tokenizer: Any, *, device: str | torch.device = "cpu") -> None:
        # float: numbers should not depend on the precision that somebody saved the weights in
        self.model = model.float().eval().requires_grad_(False).to(device)
        self.extractor, self.tokenizer = extractor, tokenizer
        self.device = torch.device(device)
        self.sample_rate: int = extractor.sampling_rate
        self.width: int = model.config.projection_dim
        self.max_samples: int = extractor.nb_max_samples
        text = model.config.text_config
        # Positions are counted from behind the padding's own, as in RoBERTa.
        self._max_tokens = text.max_position_embeddings - (text.pad_token_id or 0) - 1
        self.name = f"clap-{content_hash(self.model, _facts(model.config, extractor, tokenizer))}"
        self._known_texts: dict[str, torch.Tensor] = {}

    def embed(self, wav: torch.Tensor, sample_rate: int) -> Array:
        """Gives a row for each window of clips [B, C, L], float64 [N, D].

        Raises:
            MicroMusicGenError: the clips are empty, have other axes, or hold NaN.
        """
        return self._windows(wav, sample_rate).flatten(0, 1).numpy()

    def embed_clips(self, wav: torch.Tensor, sample_rate: int) -> Array:
        """Gives `embed_audio` as an array."""
        return self.embed_audio(wav, sample_rate).numpy()

    def embed_audio(self, wav: torch.Tensor, sample_rate: int) -> torch.Tensor:
        """Gives the direction of each clip of [B, C, L], float64 [B, D] on the CPU: the mean over its windows.

        Raises:
            MicroMusicGenError: the clips are empty, have other axes, or hold NaN.
        """
        return functional.normalize(self._windows(wav, sample_rate).mean(dim=1), dim=-1)

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Gives the direction of each text, float64 [B, D] on the CPU; what is too long for the model is cut off.

        Raises:
            MicroMusicGenError: there are no texts, or they are one string.
        """
        if isinstance(texts, str) or not texts:
            raise MicroMusicGenError(f"texts is a list of one or more strings; got {texts!r}")
        for text in texts:
            if text not in self._known_texts:
                self._known_texts[text] = self._read(text)
        return torch.stack([self._known_texts[text] for text in texts])

    def score(self, wavs: torch.Tensor, sample_rate: int, texts: Sequence[str]) -> torch.Tensor:
        """Gives the cosine between each clip of [B, C, L] and its text, float64 [B] in [-1, 1].

        Raises:
            MicroMusicGenError: not as many texts as clips, or clips that can't be used.
        """
        if len(wavs) != len(texts):
            raise MicroMusicGenError(f"{len(texts)} texts for {len(wavs)} clips; give one each")
        return (self.embed_audio(wavs, sample_rate) * self.embed_text(texts)).sum(dim=-1).clamp(-1, 1)

    def features(self, mono: torch.Tensor) -> torch.Tensor:
        """Gives the model's input, float32 [W, channels, frames, bands], of windows [W, L] at the model's rate."""
        with _numpy_random_state_kept():
            made = self.extractor(list(mono.numpy()), sampling_rate=self.sample_rate, return_tensors="pt")
        features: torch.Tensor = made["input_features"].float()
        return features

    def _windows(self, wav: torch.Tensor, sample_rate: int) -> torch.Tensor:
        """Gives the directions of every clip's windows, float64 [B, W, D]."""
        mono = mono_at(wav, sample_rate, self.sample_rate)
        length = mono.shape[-1]
        count = math.ceil(length / self.max_samples)
        starts = (
            [round(index * (length - self.max_samples) / (count - 1)) for index in range(count)] if count > 1 else [0]
        )
        cut = torch.stack([mono[:, start : start + self.max_samples] for start in starts], dim=1)
        # Clip by clip: in batches of other sizes the last digits differ, and a score would depend on its neighbours.
        return torch.stack([self._hear(clip) for clip in cut])

    @torch.inference_mode()
    def _hear(self, mono: torch.Tensor) -> torch.Tensor:
        if len(mono) > BATCH_WINDOWS:
            parts = [mono[at : at + BATCH_WINDOWS] for at in range(0, len(mono), BATCH_WINDOWS)]
            return torch.cat([self._hear(part) for part in parts])
        features = self.features(mono).to(self.device)
        # The extractor of a model with fusion calls one clip of a batch longer, by chance; none is.
        is_longer = torch.zeros(len(features), 1, dtype=torch.bool, device=self.device)
        pooled = self.model.audio_model(input_features=features, is_longer=is_longer).pooler_output
        return functional.normalize(self.model.audio_projection(pooled).double(), dim=-1).cpu()

    @torch.inference_mode()
    def _read(self, text: str) -> torch.Tensor:
        # One by one: padded beside a longer one, a text's last digits would depend on its neighbours.
        tokens = self.tokenizer([text], truncation=True, max_length=self._max_tokens, return_tensors="pt")
        tokens = {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask")}
        pooled = self.model.text_model(**tokens).pooler_output
        return functional.normalize(self.model.text_projection(pooled).double(), dim=-1)[0].cpu()


def _facts(config: Any, extractor: Any, tokenizer: Any) -> dict[str, Any]:
    vocabulary = repr(sorted(tokenizer.get_vocab().items())).encode()
    return {
        "audio": [getattr(config.audio_config, key, None) for key in _AUDIO_FACTS],
        "text": [getattr(config.text_config, key, None) for key in _TEXT_FACTS],
        "extractor": [getattr(extractor, key, None) for key in _EXTRACTOR_FACTS],
        "vocabulary": hashlib.sha256(vocabulary).hexdigest(),
    }


@contextlib.contextmanager
def _numpy_random_state_kept() -> Iterator[None]:
    """Undoes the draws of an extractor that uses numpy's global generator."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
