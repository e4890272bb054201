"""Trains a diffusion model over frames: the latents of a codec, mel spectra, or frames that others encoded.

The decoder job is its first: told the latents that codes stand for, of all codebooks or of the first few, it gives the
ones that the codec's encoder would have given, and the codec's decoder makes sound of them. With
`diffusion.objective=regression` the same network guesses them at once: the twin that it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from micro_musicgen.codec import codebooks
from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.data.frame_crops import FrameBatch
from micro_musicgen.diffusion.builder import build_diffusion, diffusion_config
from micro_musicgen.diffusion.code_condition import code_condition, condition_width
from micro_musicgen.diffusion.denoiser import Told
from micro_musicgen.diffusion.model import LatentDiffusion, Loss
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.base import Solver
from micro_musicgen.solvers.diffusion_clips import compare_decoders, write_samples
from micro_musicgen.solvers.diffusion_plots import Diagnostics
from micro_musicgen.solvers.frames_source import (
    CODES,
    FILES,
    NONE,
    check_pair,
    check_segment,
    frame_sources,
    open_representation,
)
from micro_musicgen.solvers.registry import solvers
from micro_musicgen.solvers.running import distributed

FIT_CROPS = 512
"""Crops that the normalisers are fitted to, at most."""
VALID_STEPS = 4
"""Noise levels at which every held-out crop is looked at."""
_VALID_SEED = 20211


@solvers.register("diffusion_decoder")
class DiffusionDecoderSolver(Solver):
    """The diffusion experiment; `cfg` is the tree under config/solver/diffusion_decoder."""

    name = "diffusion_decoder"
    best_metric = "loss"
    plotted = ("loss", "mse")
    distributes = True

    def build_model(self) -> nn.Module:
        """Gives the model with fitted normalisers, after making sure that the frames are there."""
        cfg = self.cfg
        check_pair(cfg.frames.target, cfg.frames.condition)
        self.codec = self._load_codec()
        self.target = None if cfg.frames.target == FILES else open_representation(cfg.frames.target, self.codec)
        with distributed.main_first():
            self.crops = frame_sources(cfg, self.codec, self.target, self.xp.argv, self.reporter)
        self.segment_frames = self.crops["train"].segment_frames
        self.counts = self._codebook_counts()
        probe = self._batch_condition(self.crops["train"].batch(0, 1), [self.counts[0]])
        cfg.diffusion.channels = int(self.crops["train"].batch(0, 1).target.shape[1])
        cfg.diffusion.condition_channels = 0 if probe is None else int(probe.shape[1])
        if cfg.frames.condition == CODES:
            cfg.decoder.codebooks = self.counts
            assert self.codec is not None
            assert probe is not None and probe.shape[1] == condition_width(self.codec.latent_dim, self.counts)
        torch.manual_seed(cfg.seed)
        model = build_diffusion(diffusion_config(cfg))
        check_segment(self.segment_frames, model.denoiser.stride)
        self._fit_normalisers(model)
        if cfg.compile:
            model.denoiser.compile()
        self.diagnostics = Diagnostics(model.schedule)
        return model

    def _load_codec(self) -> Codec | None:
        cfg = self.cfg
        if not {"codec", CODES} & {cfg.frames.target, cfg.frames.condition}:
            return None
        if not cfg.compression_model_checkpoint:
            raise MicroMusicGenError("no codec given; add compression_model_checkpoint=//sig/SIGNATURE (or a path)")
        codec = load_codec(cfg.compression_model_checkpoint, device=self.device)
        if codec.sample_rate != cfg.sample_rate:
            raise MicroMusicGenError(
                f"the codec {cfg.compression_model_checkpoint} works at {codec.sample_rate} Hz; add "
                f"sample_rate={codec.sample_rate}"
            )
        return codec

    def _codebook_counts(self) -> list[int]:
        """Gives the numbers of codebooks that a clip may come with; [1] where there are no codes."""
        if self.cfg.frames.condition != CODES:
            return [1]
        assert self.codec is not None
        given, most = self.cfg.decoder.codebooks, self.codec.num_codebooks
        counts = list(range(1, most + 1)) if given is None else sorted({int(number) for number in given})
        if not counts or not 1 <= counts[0] <= counts[-1] <= most:
            raise MicroMusicGenError(f"decoder.codebooks={list(given)} must be numbers from 1 to {most}, the codec's")
        return counts

    @torch.no_grad()
    def _fit_normalisers(self, model: LatentDiffusion) -> None:
        """Fits them to crops spread over the training data; which ones depends on the seed alone."""
        crops, size = self.crops["train"], 16
        frames: list[torch.Tensor] = []
        conditions: list[torch.Tensor] = []
        for index in range(max(1, min(FIT_CROPS, crops.crops_per_pass) // size)):
            batch = crops.batch(index, size)
            told = self.told(batch, [self.counts[(index + place) % len(self.counts)] for place in range(size)])
            frames.append((batch.target.to(self.device) - model.known(told)).cpu())
            if told.aligned is not None:
                conditions.append(told.aligned.cpu())
        model.normaliser.fit(frames)
        if model.condition_normaliser is not None:
            model.condition_normaliser.fit(conditions)

    def _batch_condition(self, batch: FrameBatch, used: list[int]) -> torch.Tensor | None:
        """Gives what the crops are told, [B, Dc, T]. used: how many codebooks each comes with."""
        kind = self.cfg.frames.condition
        if kind == NONE:
            return None
        if kind == CODES:
            assert self.codec is not None and batch.codes is not None
            return code_condition(self.codec, batch.codes.to(self.device), used, self.counts).clone()
        assert batch.condition is not None
        return batch.condition.to(self.device)

    def told(self, batch: FrameBatch, used: list[int]) -> Told:
        """Gives what the network is told about the crops. used: how many codebooks each comes with."""
        return Told(self._batch_condition(batch, used))

    # Stages.

    def train_step(self, step: int) -> Mapping[str, Any]:
        """See `Solver.train_step`. Steps, noise, dropped conditions and numbers of codebooks follow the step's seed."""
        sums: dict[str, torch.Tensor] = {}
        for part in range(self.accumulate):
            batch = self.crops["train"].batch(
                step * self.accumulate + part, self.batch_size, rank=self.rank, world_size=self.world_size
            )
            size = len(batch.target)
            drawn = torch.randint(len(self.counts), (size,)).tolist()
            dropped = torch.rand(size) < float(self.cfg.diffusion.condition_dropout)
            loss = self._loss(batch, [self.counts[index] for index in drawn], dropped=dropped)
            self.descent.backward(loss.loss.mean(), self.accumulate)
            for key, value in {"loss": loss.loss, "mse": loss.mse}.items():
                sums[key] = sums.get(key, torch.zeros((), device=self.device)) + value.detach().mean() / self.accumulate
        return {**sums, "grad_norm": self.descent.step()}

    def _loss(
        self,
        batch: FrameBatch,
        used: list[int],
        *,
        dropped: torch.Tensor | None = None,
        t: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> Loss:
        model: LatentDiffusion = self.model
        clean = batch.target.to(self.device)
        if t is None:
            t = torch.randint(model.schedule.num_timesteps, (len(clean),))
        noise = torch.randn(clean.shape) if noise is None else noise
        return model.loss(
            clean,
            self.told(batch, used),
            dropped=None if dropped is None else dropped.to(self.device),
            t=t.to(self.device),
            noise=noise.to(self.device),
            autocast=self.autocast,
        )

    def valid(self) -> dict[str, float]:
        """See `Solver.valid`: held-out crops at the same noise and the same steps every time, nothing dropped.

        mse_k1, mse_k2, ...: the unweighted error by number of codebooks, where there are several.
        """
        steps = self.model.schedule.num_timesteps
        generator = torch.Generator().manual_seed(_VALID_SEED)
        found: dict[str, list[float]] = {"loss": [], "mse": []}
        self.diagnostics.begin()
        place = 0
        for batch in self._valid_batches(self.cfg.dataset.valid.num_samples):
            for number in self.counts:
                for _ in range(max(1, VALID_STEPS // len(self.counts))):
                    size = len(batch.target)
                    # A low-discrepancy sequence: every stretch of steps is looked at as often as any other.
                    share = (torch.arange(place, place + size) * 0.6180339887) % 1.0
                    place += size
                    noise = torch.randn(batch.target.shape, generator=generator)
                    loss = self._loss(batch, [number] * size, t=(share * steps).long(), noise=noise)
                    self.diagnostics.add(loss)
                    found["loss"] += loss.loss.tolist()
                    found["mse"] += loss.mse.tolist()
                    if len(self.counts) > 1:
                        found.setdefault(f"mse_k{number}", []).extend(loss.mse.tolist())
        return {key: sum(values) / len(values) for key, values in found.items()}

    def _valid_batches(self, num_crops: int) -> Iterator[FrameBatch]:
        return self.crops["valid"].valid_batches(self.batch_size, num_crops)

    def evaluate(self) -> dict[str, float]:
        """Gives the distance of held-out clips from their originals in mel spectra, through this and the plain decoder,
        by number of codebooks; the validation metrics for what is no decoder of codes.
        """
        if not self.decodes_codes:
            return self.valid()
        return compare_decoders(self)

    def generate(self) -> None:
        """Writes held-out clips as they are, through the plain decoder and through this one, and the run's plots."""
        write_samples(self)

    @property
    def decodes_codes(self) -> bool:
        """Whether this is the decoder job: codes to a codec's latents."""
        return bool(self.cfg.frames.target == "codec" and self.cfg.frames.condition == CODES)

    # State.

    def starting_weights(self, reference: str) -> Mapping[str, torch.Tensor]:
        """See `Solver.starting_weights`: of another diffusion run, or of a release with a decoder."""
        from micro_musicgen.release.decoder import read_decoder

        return read_decoder(reference).state

    def extra_state(self) -> dict[str, Any]:
        """See `Solver.extra_state`: what whoever plays this has to know, besides the config."""
        return {"decoder": {"codec_hashes": self.codec_hashes, "window_frames": self.segment_frames}}

    @property
    def codec_hashes(self) -> list[str]:
        """Of the codec with its first 1, 2, ... codebooks: language models may speak fewer than all."""
        if not hasattr(self, "_hashes"):
            self._hashes: list[str] = []
            if self.codec is not None:
                name = codebooks.split(str(self.cfg.compression_model_checkpoint))[0]
                fewer = range(1, self.codec.num_codebooks)
                self._hashes = [load_codec(f"{name}:{number}").content_hash for number in fewer]
                self._hashes.append(self.codec.content_hash)
        return self._hashes

    def summary(self) -> dict[str, Any]:
        """Gives what is denoised, told what, and how it is played."""
        cfg = self.cfg
        facts = {
            "target": cfg.frames.target,
            "condition": cfg.frames.condition,
            "objective": cfg.diffusion.objective,
            "segment_frames": self.segment_frames,
            "channels": cfg.diffusion.channels,
            "condition_channels": cfg.diffusion.condition_channels,
        }
        if self.codec is not None:
            facts |= {"codec": str(cfg.compression_model_checkpoint), "codec_hash": self.codec.content_hash}
        return facts | ({"codebooks": self.counts} if cfg.frames.condition == CODES else {})
