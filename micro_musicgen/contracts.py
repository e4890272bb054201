"""The types that cross seams. Frozen, checked where they are made, trusted everywhere else.

Axes: B batch, C audio channel, L samples, K codebook, T frame, D feature.
Nothing heavy is imported here: torch appears in annotations only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    import torch

MAX_DURATION_S = 600.0
"""Longest clip a single call gives. Longer pieces are made by continuing a clip."""
MAX_BARS = 1024
"""The same of clips that are counted in bars."""
MAX_FRAMES_PER_BEAT = 512
PLAYED_BPM = (20.0, 400.0)
"""Tempos that clips can be played at, beats a minute."""


@runtime_checkable
class Codec(Protocol):
    """Audio to discrete codes and back. Every codec, ours or a stranger's, is used through this.

    Invariant: `decode(encode(wav))` has the length of `wav` rounded up to a whole number of frames.
    """

    sample_rate: int
    channels: int
    frame_rate: float
    hop_samples: int
    num_codebooks: int
    cardinality: int
    latent_dim: int
    content_hash: str

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives int64 codes [B, K, T] of audio [B, C, L]; values in [0, cardinality)."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L] of codes [B, K, T], L = T * hop_samples."""

    def encode_latents(self, wav: torch.Tensor) -> torch.Tensor:
        """Gives the encoder's continuous latents [B, D, T] of audio [B, C, L], before any quantising."""

    def codes_to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the quantised latents [B, D, T] that codes [B, K, T] stand for."""

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L] of latents [B, D, T]."""


@dataclass(frozen=True, kw_only=True)
class BeatTime:
    """How a model counts that was trained in beat time: a beat is a whole number of codec frames at any tempo.

    bpm: the median tempo of what it was trained on, at which it plays when nobody says otherwise. bpm_range: the
    slowest and the fastest of it.
    """

    frames_per_beat: int
    beats_per_bar: int = 4
    bpm: float = 120.0
    bpm_range: tuple[float, float] = (120.0, 120.0)

    def __post_init__(self) -> None:
        if not 1 <= self.frames_per_beat <= MAX_FRAMES_PER_BEAT:
            raise MicroMusicGenError(f"frames_per_beat {self.frames_per_beat} must lie in 1..{MAX_FRAMES_PER_BEAT}")
        if not 1 <= self.beats_per_bar <= 32:
            raise MicroMusicGenError(f"beats_per_bar {self.beats_per_bar} must lie in 1..32")
        object.__setattr__(self, "bpm_range", tuple(self.bpm_range))
        low, high = PLAYED_BPM
        if not all(low <= bpm <= high for bpm in (self.bpm, *self.bpm_range)):  # also refuses NaN
            raise MicroMusicGenError(
                f"tempo {self.bpm:g} of {self.bpm_range} BPM is out of range; expected {low:g} to {high:g}"
            )

    @property
    def frames_per_bar(self) -> int:
        """Codec frames of a bar."""
        return self.frames_per_beat * self.beats_per_bar


Conditioning = Literal["none", "prefix", "cross"]


@dataclass(frozen=True, kw_only=True)
class LMSpec:
    """The shape of a language model over codes: enough to build it, to count it and to check a codec against it.

    num_kv_heads: heads of keys and values, None for as many as of queries. qk_norm: of a llama, gains of queries and
    keys.
    """

    backbone: str = "transformer_lm"
    dim: int
    num_heads: int
    num_layers: int
    card: int
    num_codebooks: int
    ffn_dim: int
    num_kv_heads: int | None = None
    qk_norm: bool = False
    pattern: str = "delay"
    conditioning: Conditioning = "none"

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise MicroMusicGenError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise MicroMusicGenError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )

    @property
    def num_parameters(self) -> int:
        """Trainable weights of a bias-free model, conditioners apart.

        Transformer: K*d*(2*card+1) + layers*(4d^2 + 2*d*ffn + 4d) + 2d. With the usual ffn = 4d this is DESIGN's
        formula; cross-attention adds layers*(4d^2 + 2d).
        Llama: K*d*(2*card+1) + layers*(2*d*hd*(Hq + Hkv) + 3*d*ffn + 2d) + d; cross-attention adds layers*(4d^2 + d),
        `qk_norm` 2*hd to each attention.
        """
        d = self.dim
        if self.backbone == "llama":
            return self.num_embedding_parameters + self.num_layers * self._llama_layer() + d
        block = 4 * d * d + 2 * d * self.ffn_dim + 4 * d
        if self.conditioning == "cross":
            block += 4 * d * d + 2 * d
        return self.num_embedding_parameters + self.num_layers * block + 2 * d

    def _llama_layer(self) -> int:
        d, head_dim = self.dim, self.dim // self.num_heads
        gains = 2 * head_dim if self.qk_norm else 0
        heads = self.num_heads + (self.num_kv_heads or self.num_heads)
        weights = 2 * d * head_dim * heads + gains + 3 * d * self.ffn_dim + 2 * d
        return weights + (4 * d * d + d + gains if self.conditioning == "cross" else 0)

    @property
    def num_embedding_parameters(self) -> int:
        """Weights of the K embedding tables (card + 1 rows) and the K output heads together."""
        return self.num_codebooks * self.dim * (2 * self.card + 1)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition of a batch, embedded. Invariant: a masked position never influences the model.

    embeddings: float [B, S, D]; mask: bool [B, S], True where valid.
    """

    embeddings: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """How to sample. Replaced whole, never edited: `params.updated(temperature=0.9)`.

    duration_s: seconds a clip, in (0, 600]. temperature > 0, 1 is the model's own distribution. top_k: sample among
    the k likeliest codes, 0 for all. top_p: nucleus mass in [0, 1], 0 for off, wins over top_k. greedy: argmax.
    cfg_coef: guidance; 1 is none, 0 ignores the conditions. cfg_coef_audio: that of sounds, where text and sound are
    guided apart; None for one coefficient of all. seed: None draws a fresh one. extend_stride_s: seconds that each
    window moves on when a clip is longer than the trained window.

    For models in beat time: bars: length of a clip instead of duration_s. bpm: the tempo it is played at, None for
    what the model was trained on. loop: its end flows into its start; loop_tries: how often its last bar is made again,
    to find one that leads into the first. keep_pitch: a tempo other than the trained one stretches the sound instead
    of moving its pitch.
    """

    duration_s: float = 8.0
    bars: int | None = None
    bpm: float | None = None
    loop: bool = False
    loop_tries: int = 3
    keep_pitch: bool = False
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0
    greedy: bool = False
    cfg_coef: float = 1.0
    cfg_coef_audio: float | None = None
    seed: int | None = None
    extend_stride_s: float | None = None

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise MicroMusicGenError("; ".join(faults))

    def _faults(self) -> list[str]:
        faults = []
        if not 0 < self.duration_s <= MAX_DURATION_S:  # also refuses NaN
            faults.append(f"duration {self.duration_s:g} s is out of range; give more than 0 and at most 600 seconds")
        if not self.temperature > 0 or math.isinf(self.temperature):
            faults.append(f"temperature {self.temperature:g} must be above 0; use greedy for the likeliest code")
        if self.top_k < 0:
            faults.append(f"top_k {self.top_k} must be 0 (all codes) or more")
        if not 0 <= self.top_p <= 1:
            faults.append(f"top_p {self.top_p:g} must lie in [0, 1]")
        for name, coef in (("cfg_coef", self.cfg_coef), ("cfg_coef_audio", self.cfg_coef_audio)):
            if coef is not None and not math.isfinite(coef):
                faults.append(f"{name} {coef:g} must be a finite number; 1 is no guidance, 3 is usual")
        if self.extend_stride_s is not None and not self.extend_stride_s > 0:
            faults.append(f"extend_stride {self.extend_stride_s:g} s must be above 0")
        if self.bars is not None and not 1 <= self.bars <= MAX_BARS:
            faults.append(f"bars {self.bars} must lie in 1..{MAX_BARS}")
        if not 0 <= self.loop_tries <= 64:
            faults.append(f"loop_tries {self.loop_tries} must lie in 0..64")
        if self.bpm is not None and not PLAYED_BPM[0] <= self.bpm <= PLAYED_BPM[1]:
            faults.append(f"bpm {self.bpm:g} is no tempo to play at; give {PLAYED_BPM[0]:g} to {PLAYED_BPM[1]:g}")
        return faults

    def updated(self, **changes: Any) -> GenerationParams:
        """Gives a copy with `changes`, checked like a new one.

        Raises:
            MicroMusicGenError: an unknown name or a value out of range.
        """
        known = {f.name for f in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise MicroMusicGenError(f"unknown generation parameter {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return replace(self, **changes)


RELEASE_FORMAT = "micro_musicgen"
RELEASE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """What `config.json` of a release folder says. Everything needed to build the model without the run it came from.

    lm, codec: builder configs (plain data). codec_reference: set instead of shipping codec.safetensors.
    window_s: seconds of audio the LM was trained on at once. hashes: sha256 of each weight file. provenance: where
    it came from (git sha, versions, data-set hash, seed, run signature). frames_per_beat, tempo: set for models in
    beat time (see `BeatTime`), whose seconds are those of the codec's nominal rate; left out of clock time's.
    """

    lm: Mapping[str, Any]
    codec: Mapping[str, Any]
    sample_rate: int
    window_s: float
    codec_reference: str | None = None
    conditioners: Mapping[str, Any] = field(default_factory=dict)
    decoder: Mapping[str, Any] | None = None
    frames_per_beat: int | None = None
    tempo: Mapping[str, Any] | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    name: str = "untitled"
    format: str = RELEASE_FORMAT
    version: int = RELEASE_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Gives plain data for `config.json`."""
        plain = asdict(self)
        if self.tempo is None:
            del plain["tempo"]  # version 1 as it was before there was beat time
        return plain

    @property
    def beat_time(self) -> BeatTime | None:
        """How the model counts; None in clock time.

        Raises:
            MicroMusicGenError: frames_per_beat or tempo is none.
        """
        if self.frames_per_beat is None:
            return None
        try:
            return BeatTime(frames_per_beat=self.frames_per_beat, **(self.tempo or {}))
        except TypeError as error:
            raise MicroMusicGenError(f"config.json has no usable tempo ({error}); export the run again") from error

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ReleaseConfig:
        """Gives the config that `plain` describes.

        Raises:
            MicroMusicGenError: another format, a version from the future, a missing or an unknown key.
        """
        if plain.get("format") != RELEASE_FORMAT:
            raise MicroMusicGenError(f"config.json says format {plain.get('format')!r}, expected {RELEASE_FORMAT!r}")
        version = plain.get("version")
        if not isinstance(version, int) or not 1 <= version <= RELEASE_VERSION:
            raise MicroMusicGenError(f"release version {version!r} is not readable here; upgrade micro-musicgen")
        known = {f.name for f in fields(cls)}
        required = {"lm", "codec", "sample_rate", "window_s"}
        faults = [f"unknown key {key!r}" for key in sorted(set(plain) - known)]
        faults += [f"missing key {key!r}" for key in sorted(required - set(plain))]
        if faults:
            raise MicroMusicGenError(f"config.json is not a release: {'; '.join(faults)}")
        return cls(**plain)
