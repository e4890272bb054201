"""Trains a language model on the codes of a frozen codec.

The codes come from a token store that is made once per (data set, codec), unless `tokens.store` is off. Loss is the
cross-entropy averaged over codebooks, each codebook's own value is reported beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from micro_musicgen.codec.resolve import build_codec, load_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import build_lm, lm_config, lm_spec
from micro_musicgen.lm.fit import differences
from micro_musicgen.lm.losses import code_losses
from micro_musicgen.lm.training import compile_training
from micro_musicgen.release.source import read_parts
from micro_musicgen.solvers.base import Solver
from micro_musicgen.solvers.lm_codes import code_source
from micro_musicgen.solvers.registry import solvers
from micro_musicgen.solvers.running import distributed
from micro_musicgen.solvers.running.overview import dataset_name

if TYPE_CHECKING:
    from micro_musicgen.engine.engine import MicroMusicGen


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
            self.crops = {
                split: code_source(cfg, self.codec, split, name, self.reporter) for split in ("train", "valid")
            }
        torch.manual_seed(cfg.seed)
        model = build_lm(config, window_s=cfg.dataset.segment_duration, device=self.device)
        if cfg.compile:
            compile_training(model)
        return model

    def _check_codec(self) -> None:
        found = differences(self.codec, self.spec, self.cfg.sample_rate)
        if found:
            faults = "; ".join(f"{d.what}: codec {d.codec}, LM {d.lm} ({d.key}={d.codec})" for d in found)
            name = self.cfg.compression_model_checkpoint
            raise MicroMusicGenError(f"the codec {name} does not fit this LM: {faults}")

    def losses(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the cross-entropy per codebook, [K], of a batch of codes [B, K, T]."""
        with self.autocast():
            return code_losses(self.model, codes)

    def train_step(self, step: int) -> Mapping[str, Any]:
        """See `Solver.train_step`. A step is `accumulate` batches of `batch_size` crops over all ranks."""
        total = torch.zeros((), device=self.device)
        for part in range(self.accumulate):
            codes = self.crops["train"].batch(
                step * self.accumulate + part, self.batch_size, rank=self.rank, world_size=self.world_size
            )
            losses = self.losses(codes.to(self.device))
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

    def _valid(self, rank: int, world_size: int) -> dict[str, float]:
        total, count = torch.zeros(self.spec.num_codebooks, dtype=torch.float64), 0
        batches = self.crops["valid"].valid_batches(self.batch_size, self.cfg.dataset.valid.num_samples)
        for index, codes in enumerate(batches):
            if index % world_size == rank:
                total += self.losses(codes.to(self.device)).cpu() * len(codes)
                count += len(codes)
        sums = torch.cat([total, torch.tensor([float(count)])])
        if world_size > 1:
            sums = distributed.summed(sums.to(self.device)).cpu()
        losses = sums[:-1] / sums[-1]
        return {"ce": float(losses.mean()), **{k: float(v) for k, v in _by_codebook(losses).items()}}

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

        The Frechet distance is between equally many frames of each; a few dozen clips are needed for it to mean much.
        """
        from micro_musicgen.metrics.frechet import code_embeddings, frechet_distance

        size = self.cfg.dataset.evaluate.num_samples
        held_out = torch.cat(list(self.crops["valid"].valid_batches(self.batch_size, size)))
        frames = held_out.shape[-1] / self.codec.frame_rate
        player = self._player(duration=min(frames, float(self.cfg.dataset.segment_duration)))
        _, codes = player.generate_unconditional(len(held_out), return_tokens=True)
        sets = (code_embeddings(self.codec, found.to(self.device)) for found in (codes, held_out))
        frechet = frechet_distance(*sets)
        return {**self._valid(0, 1), "frechet": frechet}

    def _player(self, duration: float) -> MicroMusicGen:
        """Gives the engine around the weights in place, which samples as the section `generate` says."""
        from micro_musicgen.engine.codec import playing
        from micro_musicgen.engine.engine import MicroMusicGen

        sampling = self.cfg.generate.lm
        player = MicroMusicGen(
            lm_config(self.cfg),
            self.model.state_dict(),
            playing(self.codec),
            window_s=float(self.cfg.dataset.segment_duration),
            device=self.device,
        )
        player.set_generation_params(
            use_sampling=sampling.use_sampling,
            temperature=sampling.temp,
            top_k=min(sampling.top_k, self.spec.card),
            top_p=sampling.top_p,
            duration=duration,
            seed=self.cfg.seed,
        )
        return player

    def generate(self) -> None:
        """Writes `generate.num_samples` clips as `samples/EPOCH_N.wav`, with one seed for the whole run."""
        from micro_musicgen.audio.io import write_wav

        section = self.cfg.generate
        player = self._player(section.lm.gen_duration or float(self.cfg.dataset.segment_duration))
        epoch = len(self.history)
        for index, wav in enumerate(player.generate_unconditional(section.num_samples).cpu().numpy()):
            write_wav(self.folder / section.path / f"{epoch:04d}_{index}.wav", wav, self.codec.sample_rate)
        self.reporter.message(f"{section.num_samples} clips in {self.folder / section.path}")

    def summary(self) -> dict[str, Any]:
        """Gives the codec, the sizes and the entropy that a model knowing only code frequencies would reach."""
        from micro_musicgen.metrics.codes import unigram_entropy

        batches = self.crops["valid"].valid_batches(64, self.cfg.dataset.valid.num_samples)
        entropy = unigram_entropy(torch.cat(list(batches)), self.spec.card)
        return {
            "codec": str(self.cfg.compression_model_checkpoint),
            "codec_hash": self.codec.content_hash,
            "num_embedding_parameters": self.spec.num_embedding_parameters,
            "unigram_entropy_valid": entropy.tolist(),
        }


def _by_codebook(losses: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"ce_q{index + 1}": value for index, value in enumerate(losses.detach())}
