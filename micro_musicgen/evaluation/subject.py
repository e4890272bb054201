"""What is being measured, with everything that several measures need made once, on first use."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from micro_musicgen.contracts import Codec
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.evaluation.clips import MadeClips, Progress
from micro_musicgen.evaluation.findings import NotMeasured
from micro_musicgen.evaluation.request import EvaluationRequest
from micro_musicgen.evaluation.sounds import RealClips, SoundSet, cut_clips, track_codes, track_labels
from micro_musicgen.metrics.bootstrap import Array, Estimate, Statistic, bootstrap, mean
from micro_musicgen.metrics.embedders import Embedder
from micro_musicgen.metrics.statistics import Statistics

if TYPE_CHECKING:
    import numpy.typing as npt

    from micro_musicgen.metrics.clap import Clap

AT_ONCE = 8


@dataclass(frozen=True)
class NamedEmbedder:
    """An embedder and what a person calls it: log_mel, codec, clap."""

    kind: str
    embedder: Embedder


class Subject:
    """A model's clips and the real sounds beside them. Invariant: what it gives is the same on every call.

    reference, training, statistics: None where none was named. progress: hears what a measure works through.
    """

    def __init__(
        self,
        request: EvaluationRequest,
        model: MicroMusicGen,
        made: MadeClips,
        *,
        embedders: Sequence[NamedEmbedder],
        reference: SoundSet | None = None,
        training: SoundSet | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self.request, self.model, self.made = request, model, made
        self.embedders = tuple(embedders)
        self.statistics = statistics
        self.progress: Progress | None = None
        self._reference, self._training = reference, training

    @property
    def codec(self) -> Codec:
        """The model's."""
        return self.model.codec

    @property
    def sample_rate(self) -> int:
        """Of all clips, generated and real, in Hz."""
        return self.model.sample_rate

    @property
    def clap(self) -> Clap | None:
        """The CLAP model among the embedders."""
        from micro_musicgen.metrics.clap import Clap

        return next((each.embedder for each in self.embedders if isinstance(each.embedder, Clap)), None)

    @property
    def has_reference(self) -> bool:
        """Says whether there are held-out sounds."""
        return self._reference is not None

    @property
    def reference(self) -> SoundSet:
        """The held-out sounds.

        Raises:
            NotMeasured: none were named, or only their statistics.
        """
        if self._reference is None and self.statistics is not None:
            raise NotMeasured("the reference is a statistics file, which holds no sound; give a data set or a folder")
        if self._reference is None:
            raise NotMeasured("no reference sounds; give --reference a data set or a folder")
        return self._reference

    @property
    def training(self) -> SoundSet:
        """The sounds that the model learned from.

        Raises:
            NotMeasured: none were named.
        """
        if self._training is None:
            raise NotMeasured("the training sounds are not known; give --training a data set or a folder")
        return self._training

    @functools.cached_property
    def reference_clips(self) -> RealClips:
        """Clips of the reference, as long as the generated ones."""
        return cut_clips(self.reference, self.sample_rate, self.clip_s)

    @functools.cached_property
    def training_clips(self) -> RealClips:
        """Clips of the training sounds, as long as the generated ones."""
        return cut_clips(self.training, self.sample_rate, self.clip_s)

    @functools.cached_property
    def reference_codes(self) -> tuple[torch.Tensor, ...]:
        """Codes int64 [K, T] of each reference track, as the model's own codec gives them."""
        return self._codes(self.reference)

    @functools.cached_property
    def training_codes(self) -> tuple[torch.Tensor, ...]:
        """Codes int64 [K, T] of each training track."""
        return self._codes(self.training)

    def _codes(self, sounds: SoundSet) -> tuple[torch.Tensor, ...]:
        found = []
        for codes in track_codes(sounds, self.codec, self.model.window_s, self.model.beat_time):
            found.append(codes)
            self.report(len(found), len(sounds.tracks))
        return tuple(found)

    @property
    def clip_s(self) -> float:
        """Seconds of every clip, generated and real."""
        return self.made.wavs.shape[-1] / self.sample_rate

    @functools.cached_property
    def rows(self) -> dict[tuple[str, str], Array]:
        """Embeddings made so far, by `embedded`'s arguments."""
        return {}

    def embedded(self, named: NamedEmbedder, which: str) -> Array:
        """Gives embeddings float64 [N, R, D] of the clips of `which`: made, reference or training; R rows a clip."""
        key = (named.embedder.name, which)
        if key not in self.rows:
            wavs = self._wavs(which)
            pieces = []
            for at in range(0, len(wavs), AT_ONCE):
                some = wavs[at : at + AT_ONCE]
                pieces.append(named.embedder.embed(some, self.sample_rate).reshape(len(some), -1, named.embedder.width))
                self.report(min(at + AT_ONCE, len(wavs)), len(wavs))
            self.rows[key] = np.concatenate(pieces)
        return self.rows[key]

    def _wavs(self, which: str) -> torch.Tensor:
        if which == "made":
            return self.made.wavs
        assert which in ("reference", "training"), which
        return (self.reference_clips if which == "reference" else self.training_clips).wavs

    def labels(self, which: str) -> tuple[list[str | None], tuple[int, ...]]:
        """Gives label and track of each real clip of `which`: reference or training; no label where its track has none.

        Raises:
            NotMeasured: there are no such sounds.
        """
        is_reference = which == "reference"
        sounds = self.reference if is_reference else self.training
        owners = (self.reference_clips if is_reference else self.training_clips).tracks
        labels = track_labels(sounds, self.request.label, self.request.labels_file)
        return [labels[track] for track in owners], owners

    def estimate(self, values: npt.ArrayLike, statistic: Statistic = mean) -> Estimate:
        """Gives a mean over clips with its interval, under the evaluation's seed."""
        return bootstrap(values, statistic, seed=self.request.seed)

    def report(self, done: int, total: int) -> None:
        """Tells whoever watches how far a measure is."""
        if self.progress is not None:
            self.progress(done, total)
