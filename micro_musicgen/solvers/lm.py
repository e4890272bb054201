"""Trains a language model on the codes of a frozen codec.

The codes come from a token store that is made once per (data set, codec), unless `tokens.store` is off. Loss is the
cross-entropy averaged over codebooks, each codebook's own value is reported beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from micro_musicgen.codec.resolve import build_codec, load_codec
from micro_musicgen.conditioners.provider import ConditionProvider
from micro_musicgen.contracts import Codec
from micro_musicgen.data.crop_batch import Crops
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import build_lm, lm_config, lm_spec
from micro_musicgen.lm.fit import differences
from micro_musicgen.lm.losses import code_losses
from micro_musicgen.lm.training import compile_training
from micro_musicgen.release.source import read_parts
from micro_musicgen.solvers.base import Solver
from micro_musicgen.solvers.beat_run import RunTime, codec_warning, run_tracks
from micro_musicgen.solvers.lm_clips import make_codes, make_player, play, samples
from micro_musicgen.solvers.lm_codes import code_source
from micro_musicgen.solvers.lm_conditions import RunConditions
from micro_musicgen.solvers.registry import solvers
from micro_musicgen.solvers.running import distributed
from micro_musicgen.solvers.running.overview import dataset_name


@solvers.register("musicgen")
class LMSolver(Solver):
    """The LM experiment; `cfg` is the tree under config/solver/musicgen."""

    name = "musicgen"
    best_metric = "ce"
    plotted = ("ce", "ce_q1")
    distributes = True

    def build_model(self) -> Any:
        """Gives the LM, after making sure that it fits its codec and that the codes are there."""
        cfg = self.cfg
        if not cfg.compression_model_checkpoint:
            raise MicroMusicGenError("no codec given; add compression_model_checkpoint=//sig/SIGNATURE (or a path)")
        if cfg.compression_model_n_q is not None:
            raise MicroMusicGenError(
                f"compression_model_n_q={cfg.compression_model_n_q} is not supported here; leave it null, or use "
                "solver=musicgen/upstream_32khz"
            )
        self.codec: Codec = load_codec(cfg.compression_model_checkpoint, device=self.device)
        config = lm_config(cfg)
        self.spec = lm_spec(config)
        self._check_codec()
        self.segment_frames = round(cfg.dataset.segment_duration * self.codec.frame_rate)
        name = dataset_name(self.xp.argv, cfg)
        with distributed.main_first():
            tracks = {split: run_tracks(cfg, split, self.reporter) for split in ("train", "valid")}
            self.time = RunTime.of(cfg)
            if self.time is not None:
                cfg.dset.codec_frames = self.time.grid.frames_of(self.codec.hop_samples)
            if (line := codec_warning(self.codec, self.time, tracks["valid"])) is not None:
                self.reporter.message(line)
            self.crops = {
                split: code_source(cfg, self.codec, split, name, self.reporter, tracks[split])
                for split in ("train", "valid")
            }
        torch.manual_seed(cfg.seed)
        model = build_lm(
            config,
            window_s=cfg.dataset.segment_duration,
            device=self.device,
            frame_rate=self.codec.frame_rate,
        )
        self.conditions = self._conditions(config, model)
        if cfg.compile:
            compile_training(model)
        return model

    def _conditions(self, config: Mapping[str, Any], model: Any) -> RunConditions | None:
        """Gives what the crops are told; None for models without conditions."""
        if not config["conditioners"]:
            return None
        if not isinstance(model.condition_provider, ConditionProvider):
            raise MicroMusicGenError(
                f"the conditioners {', '.join(config['conditioners'])} are audiocraft's, which this solver does not "
                "train; choose one of conditioner=text_cross, text_prefix, audio_prompt, text_audio"
            )

        def report(done: int, total: int) -> None:
            self.reporter.stage(f"reading texts {done}/{total}")

        with distributed.main_first():
            found = RunConditions(self.cfg, config, model.condition_provider, report)
        for line in found.lines():
            self.reporter.message(line)
        return found

    def _check_codec(self) -> None:
        found = differences(self.codec, self.spec, self.cfg.sample_rate)
        if found:
            faults = "; ".join(f"{d.what}: codec {d.codec}, LM {d.lm} ({d.key}={d.codec})" for d in found)
            name = self.cfg.compression_model_checkpoint
            raise MicroMusicGenError(f"the codec {name} does not fit this LM: {faults}")

    def losses(self, crops: Crops, split: str) -> torch.Tensor:
        """Gives the cross-entropy per codebook, [K], of a batch of crops under what they are told."""
        said = None if self.conditions is None else self.conditions.said(crops, split)
        return self._losses(crops.codes, said)

    def _losses(self, codes: torch.Tensor, said: Mapping[str, Any] | None) -> torch.Tensor:
        # In full precision: what an encoder says must not depend on how the rest is computed, nor differ when played.
        fused = None if self.conditions is None or said is None else self.conditions.fused(said, self.device)
        with self.autocast():
            return code_losses(self.model, codes.to(self.device), fused)

    @property
    def prompt_frames(self) -> int:
        """Frames of sound that every crop is told beside its text; 0 for models that listen to none."""
        return 0 if self.conditions is None else self.conditions.prompt_frames

    def train_step(self, step: int) -> Mapping[str, Any]:
        """See `Solver.train_step`. A step is `accumulate` batches of `batch_size` crops over all ranks."""
        total = torch.zeros((), device=self.device)
        for part in range(self.accumulate):
            crops = self.crops["train"].crops(
                step * self.accumulate + part,
                self.batch_size,
                rank=self.rank,
                world_size=self.world_size,
                prompt_frames=self.prompt_frames,
            )
            losses = self.losses(crops, "train")
            self.descent.backward(losses.mean(), self.accumulate)
            total = total + losses.detach() / self.accumulate
        norm = self.descent.step()
        return {"ce": total.mean(), **_by_codebook(total), "grad_norm": norm}

    @property
    def tokens_per_update(self) -> int:
        """See `Solver.tokens_per_update`: frames times codebooks."""
        return int(self.accumulate * self.batch_size * self.segment_frames * self.spec.num_codebooks)

    def valid(self) -> dict[str, float]:
        """See `Solver.valid`. Each rank takes every world_size-th batch."""
        return self._valid(self.rank, self.world_size)

    def _valid(self, rank: int, world_size: int, *, told: bool = True) -> dict[str, float]:
        """Gives the metrics of every world_size-th validation batch; told: with its conditions, else with none."""
        total, count = torch.zeros(self.spec.num_codebooks, dtype=torch.float64), 0
        for index, crops in enumerate(self._valid_crops(self.cfg.dataset.valid.num_samples)):
            if index % world_size == rank:
                losses = self.losses(crops, "valid") if told else self._losses(crops.codes, self._nothing(crops))
                total += losses.cpu() * len(crops.codes)
                count += len(crops.codes)
        sums = torch.cat([total, torch.tensor([float(count)])])
        if world_size > 1:
            sums = distributed.summed(sums.to(self.device)).cpu()
        losses = sums[:-1] / sums[-1]
        return {"ce": float(losses.mean()), **{k: float(v) for k, v in _by_codebook(losses).items()}}

    def _valid_crops(self, num_crops: int) -> Iterator[Crops]:
        return self.crops["valid"].valid_crops(self.batch_size, num_crops, prompt_frames=self.prompt_frames)

    def _nothing(self, crops: Crops) -> dict[str, list[None]] | None:
        if self.conditions is None:
            return None
        return {name: [None] * len(crops.codes) for name in self.conditions.provider.names()}

    def starting_weights(self, reference: str) -> Mapping[str, torch.Tensor]:
        """See `Solver.starting_weights`: of a run, a release of either form or the Hub, over the same codec's codes."""
        found = read_parts(reference)
        theirs = build_codec(found.codec()).content_hash
        if theirs != self.codec.content_hash:
            raise MicroMusicGenError(
                f"continue_from={reference} speaks the codes of codec {theirs[:12]}, this run those of "
                f"{self.codec.content_hash[:12]}; add compression_model_checkpoint={reference}"
            )
        return found.read_lm()

    def evaluate(self) -> dict[str, float]:
        """Gives the validation metrics, and how far the latents of generated codes are from those of held-out ones.

        The clips are told what the held-out crops are told. `ce_untold` is the loss without conditions: how much they
        say. The Frechet distance is between equally many frames of each; a few dozen clips are needed for it to mean
        much.
        """
        from micro_musicgen.metrics.frechet import code_embeddings, frechet_distance

        batches = list(self._valid_crops(self.cfg.dataset.evaluate.num_samples))
        held_out = torch.cat([crops.codes for crops in batches])
        frames = held_out.shape[-1] / self.codec.frame_rate
        player = make_player(self, min(frames, float(self.cfg.dataset.segment_duration)))
        told: list[tuple[str | None, torch.Tensor | None]] = [(None, None)] * len(held_out)
        if self.conditions is not None:
            texts = self.conditions.descriptions["valid"]
            hears_text = bool(self.conditions.provider.names("text"))
            told = [
                (texts.text(track, -1) if hears_text else None, sound)
                for crops in batches
                for track, sound in zip(crops.tracks, crops.prompts, strict=True)
            ]
        codes = make_codes(player, told)
        sets = (code_embeddings(self.codec, found.to(self.device)) for found in (codes, held_out))
        found = {**self._valid(0, 1), "frechet": frechet_distance(*sets)}
        if self.conditions is not None:
            found["ce_untold"] = self._valid(0, 1, told=False)["ce"]
        return found

    def generate(self) -> None:
        """Writes the clips of `lm_clips.samples` as `samples/EPOCH_LABEL.wav`, with one seed for the whole run."""
        from micro_musicgen.audio.io import write_wav

        section = self.cfg.generate
        player = make_player(self, section.lm.gen_duration or float(self.cfg.dataset.segment_duration))
        epoch, wanted = len(self.history), samples(self)
        for sample, wav in zip(wanted, play(player, wanted).cpu().numpy(), strict=True):
            write_wav(self.folder / section.path / f"{epoch:04d}_{sample.label}.wav", wav, self.codec.sample_rate)
        self.reporter.message(f"{len(wanted)} clips in {self.folder / section.path}")

    def summary(self) -> dict[str, Any]:
        """Gives the codec, the sizes and the entropy that a model knowing only code frequencies would reach."""
        from micro_musicgen.metrics.codes import unigram_entropy

        batches = self.crops["valid"].valid_batches(64, self.cfg.dataset.valid.num_samples)
        told = {} if self.conditions is None else {"conditions": self.conditions.summary()}
        entropy = unigram_entropy(torch.cat(list(batches)), self.spec.card)
        return {
            "codec": str(self.cfg.compression_model_checkpoint),
            "codec_hash": self.codec.content_hash,
            "num_embedding_parameters": self.spec.num_embedding_parameters,
            "unigram_entropy_valid": entropy.tolist(),
            **({} if self.time is None else {"beat_time": asdict(self.time.beat_time(self.codec.hop_samples))}),
            **told,
        }


def _by_codebook(losses: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"ce_q{index + 1}": value for index, value in enumerate(losses.detach())}
