"""What a run's crops are told: descriptions of their tracks, sounds from elsewhere in them, where in a bar they start,
now and then nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig

from micro_musicgen import paths
from micro_musicgen.conditioners.bars import BarsConditioner
from micro_musicgen.conditioners.base import Conditioner
from micro_musicgen.conditioners.dropout import ConditionDropout
from micro_musicgen.conditioners.fusing import Fused, fuse, read_fuser
from micro_musicgen.conditioners.provider import ConditionProvider
from micro_musicgen.data.beat_grid import BeatGrid
from micro_musicgen.data.crop_batch import Crops
from micro_musicgen.data.descriptions import Descriptions
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.beat_run import known_tracks

Progress = Callable[[int, int], None]

SPLITS = ("train", "valid")

MAX_WARM_TEXTS = 8192
"""Texts that are encoded before a run: minutes of a CPU with t5-base."""


class RunConditions:
    """The conditions of one run's batches. Invariant: what a crop is told is a pure function of (seed, its place).

    So a batch is told the same on any number of ranks, and after a resume. Validation crops (places below 0) are told
    everything, and the same every time.
    """

    def __init__(
        self, cfg: DictConfig, config: Mapping[str, Any], provider: ConditionProvider, progress: Progress | None = None
    ) -> None:
        """Takes a run's config, its LM's (as `lm_config` gives it) and the conditioners in the model.

        Texts are encoded here, and kept beside the token stores for the next run; beyond the first thousands, when they
        first occur. progress(done, total) counts texts.

        Raises:
            MicroMusicGenError: the model listens to text and the data set says nothing, or impossible dropout.
        """
        self.provider = provider
        self.spec = read_fuser(config)
        self.seed = int(cfg.seed)
        self.dropout = ConditionDropout.parse(config)
        tracks = {split: known_tracks(cfg, split) for split in SPLITS}
        self.descriptions = {split: Descriptions(tracks[split], seed=self.seed) for split in SPLITS}
        self.num_described = {
            split: sum(self.descriptions[split].text(index, -1) is not None for index in range(len(tracks[split])))
            for split in SPLITS
        }
        self.num_tracks = {split: len(tracks[split]) for split in SPLITS}
        if provider.names("text") and not self.num_described["train"]:
            raise MicroMusicGenError(
                f"none of the {len(tracks['train'])} training files has a description, and this model listens to "
                "text; prepare the data set again with --metadata FILE or NAME.json beside the files, or add "
                "conditioner=none"
            )
        if provider.names("bars") and BeatGrid.parse(cfg) is None:
            raise MicroMusicGenError(
                "this model listens to bars, and clock time has none; add dset.time=beats, or conditioner=none"
            )
        self._warm(progress)

    def _warm(self, progress: Progress | None) -> None:
        full = [self.descriptions[split].text(index, -1) for split in SPLITS for index in range(self.num_tracks[split])]
        train = self.descriptions["train"]
        variants = [train.variant(i, n) for n in range(train.num_variants) for i in range(self.num_tracks["train"])]
        texts = [text for text in dict.fromkeys([*full, *variants]) if text is not None]
        said = dict.fromkeys(self.provider.names("text"), texts[:MAX_WARM_TEXTS])
        self.provider.warm(said, folder=paths.tokens_dir(), progress=progress)

    def _each(self, kind: str) -> list[Conditioner]:
        found = [self.provider.conditioners[name] for name in self.provider.names(kind)]
        return [each for each in found if isinstance(each, Conditioner)]

    @property
    def prompt_frames(self) -> int:
        """Frames of the longest sound that the model listens to; 0 when it listens to none."""
        return max((each.num_positions for each in self._each("audio")), default=0)

    def lines(self) -> list[str]:
        """Gives what to tell a person about them."""
        found = [f"the model listens to {', '.join(self.provider.names())}"]
        if self.provider.names("text"):
            found.append(
                "; ".join(f"{self.num_described[s]} of {self.num_tracks[s]} {s} files described" for s in SPLITS)
            )
        return found

    def summary(self) -> dict[str, Any]:
        """Gives what `summary.json` says about them."""
        return {"names": list(self.provider.names()), "described": self.num_described, "files": self.num_tracks}

    def said(self, crops: Crops, split: str) -> dict[str, list[Any]]:
        """Gives what the crops of a batch are told, by name; None where a condition is dropped or not there."""
        texts = [self.descriptions[split].text(t, place) for t, place in zip(crops.tracks, crops.places, strict=True)]
        found: dict[str, list[Any]] = {}
        bars = [None if bar is None else (bar.beat, bar.loop_bars) for bar in crops.bars or [None] * len(texts)]
        for kind, things in (("text", texts), ("audio", list(crops.prompts)), ("bars", bars)):
            for name in self.provider.names(kind):
                found[name] = [
                    thing if place < 0 or self.dropout.kept(name, seed=self.seed, place=place) else None
                    for thing, place in zip(things, crops.places, strict=True)
                ]
        for name in self.provider.names("bars"):
            pairs = zip(found[name], crops.places, strict=True)
            found[name] = [bar if bar is None else self._told(name, bar, place) for bar, place in pairs]
        return found

    def _told(self, name: str, bar: tuple[int, int], place: int) -> tuple[int, int]:
        """Gives what a crop is told of its bars: now and then, while training, not how long its loop is."""
        conditioner = self.provider.conditioners[name]
        share = conditioner.settings.loop_dropout if isinstance(conditioner, BarsConditioner) else 0.0
        draw = random.Random(f"{self.seed}/{place}/loop").random()
        return (bar[0], 0) if place >= 0 and draw < share else bar

    def fused(self, said: Mapping[str, list[Any]], device: torch.device) -> Fused:
        """Gives what is said as the network takes it, with gradients for the conditioners."""
        tensors = self.provider(self.provider.prepare(said))
        return fuse(self.spec, tensors, device=device, dtype=torch.float32)
