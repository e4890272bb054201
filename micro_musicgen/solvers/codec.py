"""Training an EnCodec from scratch: a short way to codes that are all in use and a decoder that knows them.

A run has three phases, shares of its steps (`quantiser.warmup`, `quantiser.refit`):
    warmup     the autoencoder alone. Codebooks fitted to untrained latents would only be in the way.
    quantised  codebooks filled by k-means over many batches, then moved by moving averages while the codec trains;
               codes that fall out of use are put back where latents are badly served (`codec.quantiser`).
    refit      the encoder stops; the codebooks are fitted once more, to the latents of the whole data; the decoder
               learns these final codes, which are the ones that a language model will be trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from micro_musicgen.audio.mel import at_rate
from micro_musicgen.codec.builder import build_codec_model, codec_config
from micro_musicgen.codec.initialise import level_layers
from micro_musicgen.codec.losses import LossConfig, ReconstructionLoss
from micro_musicgen.codec.quantiser import CodebookKeeper, QuantiserConfig
from micro_musicgen.codec.resolve import read_codec
from micro_musicgen.data.crops import AudioCrops
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.codes import count_codes, entropy, usage
from micro_musicgen.metrics.spectral import MEL, log_mel_distance, si_sdr
from micro_musicgen.solvers.base import Solver
from micro_musicgen.solvers.beat_run import RunTime, codec_steps, run_tracks
from micro_musicgen.solvers.registry import solvers
from micro_musicgen.upstream import audiocraft_module

WARMUP, QUANTISED, REFIT = "warmup", "quantised", "refit"

LEVEL_CROPS = 16
"""Crops on which the initial weights are scaled."""


@solvers.register("compression")
class CodecSolver(Solver):
    """The codec experiment; `cfg` is the tree under config/solver/compression.

    The last model is the one to play (`best_metric` is None): only after the refit do codes and decoder agree.
    """

    name = "compression"
    best_metric = None
    plotted = ("mel", "msspec", "entropy_min")

    def build_model(self) -> nn.Module:
        """Gives the codec, and prepares the data, the losses and the keeper of the codebooks."""
        cfg = self.cfg
        loss_config = LossConfig.parse(_plain(cfg.losses), _plain(cfg.spectral))
        self.quantiser = QuantiserConfig.parse(_plain(cfg.quantiser))
        if loss_config.adv + loss_config.feat > 0 and not cfg.adversarial.adversaries:
            raise MicroMusicGenError(
                "losses.adv and losses.feat need an adversary; add adversarial.adversaries=[msstftd] or set them to 0"
            )
        self.tracks = {split: run_tracks(cfg, split, self.reporter) for split in ("train", "valid")}
        self.time = RunTime.of(cfg)
        for line in () if self.time is None else self.time.lines():
            self.reporter.message(line)
        self.crops = {
            "train": self._crops("train", cfg.dataset.segment_duration, ram_gb=cfg.dataset.ram_gb),
            "valid": self._crops("valid", cfg.dataset.valid.segment_duration, ram_gb=cfg.dataset.ram_gb),
        }
        torch.manual_seed(cfg.seed)
        model: Any = build_codec_model(codec_config(cfg), device=self.device)
        level_layers(model, self.crops["train"].batch(0, max(LEVEL_CROPS, cfg.dataset.batch_size)).to(self.device))
        self.keeper = CodebookKeeper(model.quantizer, self.quantiser, seed=cfg.seed)
        if self.time is not None:
            loss_config = loss_config.at_rate(self.heard_rate, cfg.sample_rate, cfg.datasource.max_sample_rate / 2)
        self.criterion = ReconstructionLoss(loss_config, self.heard_rate).to(self.device)
        self.adversaries = audiocraft_module("solvers.builders").get_adversarial_losses(cfg)
        self.phase = WARMUP
        found: nn.Module = model
        return found

    @property
    def heard_rate(self) -> float:
        """The sample rate in Hz of what the codec hears; in beat time that at the median tempo."""
        return float(self.cfg.sample_rate) if self.time is None else self.time.heard_rate

    def _crops(self, split: str, segment_s: float, *, ram_gb: float) -> AudioCrops:
        cfg = self.cfg
        return AudioCrops(
            self.tracks[split],
            sample_rate=cfg.sample_rate,
            segment_s=segment_s,
            seed=cfg.seed,
            ram_gb=ram_gb,
            beats=codec_steps(cfg),
        )

    # Phases.

    def _phase_at(self, step: int) -> str:
        """Gives the phase of a step. A run that is extended goes on quantised, and is refitted again at its new end."""
        start, length = self.plan.segment(step)
        share = (step - start) / length
        if share >= 1 - self.quantiser.refit:
            return REFIT
        return WARMUP if start == 0 and share < self.quantiser.warmup else QUANTISED

    def _enter(self, phase: str) -> None:
        """Fits the codebooks when a phase begins that needs new ones."""
        if phase == self.phase:
            return
        if phase == REFIT and self.ema is not None:
            # What stands still from here on has to be what will be played: the averaged encoder.
            self.model.load_state_dict(self.ema.average)
        if phase == REFIT or self.phase == WARMUP:
            unexplained = self.keeper.fit(self._bank())
            self.reporter.message(f"codebooks fitted: {unexplained:.1%} of the latents' variance is left unexplained")
        if self.ema is not None:
            # An average of codebooks from before and after a fit would be neither.
            for name, value in self.model.quantizer.state_dict(prefix="quantizer.").items():
                self.ema.average[name].copy_(value)
        self.phase = phase

    @torch.no_grad()
    def _bank(self) -> torch.Tensor:
        """Gives latents [N, D] of clips spread over all training data, long ones: their edges are seldom heard."""
        segment_s = self.quantiser.bank_segment_s
        if self.time is not None:
            segment_s = self.time.grid.whole_bars(segment_s, self.cfg.sample_rate)
        crops = self._crops("train", segment_s, ram_gb=0.0)
        wanted = self.quantiser.bank_vectors_per_code * self.model.cardinality
        num_clips = math.ceil(wanted / (segment_s * self.model.frame_rate))
        latents: list[torch.Tensor] = []
        for shift in (0, *self.quantiser.bank_shifts):
            if sum(map(len, latents)) < wanted:
                latents += [
                    self.model.encoder(wav.roll(shift, dims=-1).to(self.device)).transpose(1, 2).flatten(0, 1)
                    for wav in crops.valid_batches(self.cfg.dataset.batch_size, num_clips)
                ]
        return torch.cat(latents)

    # Stages.

    def train_step(self, step: int) -> Mapping[str, Any]:
        """See `Solver.train_step`."""
        self._enter(self._phase_at(step))
        sums: dict[str, Any] = {}
        for part in range(self.accumulate):
            wav = self.crops["train"].batch(step * self.accumulate + part, self.batch_size).to(self.device)
            with self.autocast():
                decoded, metrics, penalty = self._reconstruct(wav)
            losses = self.criterion(decoded, wav)
            if self.phase != WARMUP:
                losses |= self._adversarial(decoded.float(), wav, step)
            total = self.criterion.weighted(losses) + self.quantiser.commit * penalty
            self.descent.backward(total, self.accumulate)
            for key, value in {"loss": total, **losses, **metrics}.items():
                value = value.detach() if isinstance(value, torch.Tensor) else value
                sums[key] = sums.get(key, 0.0) + value / self.accumulate
        return {**sums, "grad_norm": self.descent.step()}

    def _reconstruct(self, wav: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
        """Gives `wav` [B, 1, L] after its way through the codec as the phase has it, metrics, and the commitment."""
        model, nothing = self.model, torch.zeros((), device=wav.device)
        if self.phase == REFIT:
            with torch.no_grad():
                latents = self._final_latents(model.encoder(wav))
            return model.decoder(latents)[..., : wav.shape[-1]], {}, nothing
        latents = model.encoder(wav)
        # What is no number must not reach the codebooks, which move before the loss is known.
        if self.phase == WARMUP or not bool(torch.isfinite(latents.detach()).all()):
            return model.decoder(latents)[..., : wav.shape[-1]], {}, nothing
        # In fp32: the codebooks are moved by sums over many latents.
        with torch.autocast(wav.device.type, enabled=False):
            quantised = model.quantizer(latents.float(), model.frame_rate)
        restarted = self.keeper.observe(latents)
        penalty = quantised.penalty * model.num_codebooks / latents.detach().float().var().clamp(min=1e-8)
        metrics = {"commit": penalty.detach(), "restarted": float(restarted)}
        return model.decoder(quantised.x)[..., : wav.shape[-1]], metrics, penalty

    def _final_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives what the decoder will be played, [B, D, T], of the encoder's latents [B, D, T].

        With `rvq.q_dropout` every clip keeps its first codebooks only, one to all of them, or its latents as they are:
        the decoder then also knows what it gets from a language model of fewer codebooks, and from a diffusion decoder.
        """
        quantizer = self.model.quantizer
        codes = quantizer.encode(latents)
        if not self.cfg.rvq.q_dropout:
            quantised: torch.Tensor = quantizer.decode(codes)
            return quantised
        most = codes.shape[1]
        kept = torch.randint(1, most + 2, (len(codes),)).tolist()
        clips = [
            quantizer.decode(codes[clip : clip + 1, :number]) if number <= most else latents[clip : clip + 1]
            for clip, number in enumerate(kept)
        ]
        return torch.cat(clips)

    def _adversarial(self, decoded: torch.Tensor, wav: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """Gives the losses that the adversaries add, after training them where `adversarial.every` says so."""
        if not len(self.adversaries):
            return {}
        if step % self.cfg.adversarial.every == 0:
            for adversary in self.adversaries.values():
                adversary.train_adv(decoded, wav)
        verdicts = [adversary(decoded, wav) for adversary in self.adversaries.values()]
        return {"adv": torch.stack([v[0] for v in verdicts]).sum(), "feat": torch.stack([v[1] for v in verdicts]).sum()}

    def valid(self) -> dict[str, float]:
        """Gives mel distance and SI-SDR of held-out clips, and per level usage and entropy as shares of the most."""
        if self.phase == WARMUP:
            self.keeper.fit(self._bank())  # so that the checkpoint of an interrupted run can be played
        model, cfg = self.model, self.cfg
        counts = torch.zeros(model.num_codebooks, model.cardinality, dtype=torch.long, device=self.device)
        distance, ratio, num_clips = 0.0, 0.0, 0
        scale = MEL if self.time is None else at_rate(MEL, self.heard_rate, cfg.sample_rate)
        for batch in self.crops["valid"].valid_batches(cfg.dataset.batch_size, cfg.dataset.valid.num_samples):
            wav = batch.to(self.device)
            codes = model.quantizer.encode(model.encoder(wav))
            decoded = model.decoder(model.quantizer.decode(codes))[..., : wav.shape[-1]]
            counts += count_codes(codes, model.cardinality)
            distance += log_mel_distance(decoded, wav, self.heard_rate, scale=scale) * len(wav)
            ratio += si_sdr(decoded, wav) * len(wav)
            num_clips += len(wav)
        reached = (entropy(counts) / math.log(model.cardinality)).tolist()
        return {
            "mel": distance / num_clips,
            "si_sdr": ratio / num_clips,
            "entropy_min": min(reached),
            **{f"entropy_q{k + 1}": value for k, value in enumerate(reached)},
            **{f"usage_q{k + 1}": value for k, value in enumerate(usage(counts).tolist())},
        }

    def evaluate(self) -> dict[str, float]:
        """Gives the validation metrics again, under another name, for `evaluate.metrics.base`."""
        return self.valid()

    def generate(self) -> None:
        """Writes held-out clips after their way through the codec as `samples/EPOCH_N.wav`, originals as `N.wav`."""
        from micro_musicgen.audio.io import write_wav

        folder, epoch = self.folder / self.cfg.generate.path, len(self.history)
        clips = self.crops["valid"].valid_batches(1, self.cfg.generate.num_samples)
        for index, wav in enumerate(clips):
            codes = self.model.quantizer.encode(self.model.encoder(wav.to(self.device)))
            decoded = self.model.decoder(self.model.quantizer.decode(codes))[..., : wav.shape[-1]]
            for name, sound in ((f"{epoch:04d}_{index}", decoded[0]), (f"original_{index}", wav[0])):
                write_wav(folder / f"{name}.wav", self._in_clock_time(sound), self.cfg.sample_rate)

    def _in_clock_time(self, wav: torch.Tensor) -> np.ndarray:
        if self.time is None:
            return wav.cpu().numpy()
        return self.time.rendered(wav, self.cfg.sample_rate)

    # State.

    def starting_weights(self, reference: str) -> Mapping[str, torch.Tensor]:
        """See `Solver.starting_weights`."""
        found = read_codec(reference)
        if found.pretrained is not None:
            raise MicroMusicGenError(f"continue_from={reference} is a pretrained codec; name a run or a release of one")
        return found.state

    def extra_state(self) -> dict[str, Any]:
        """See `Solver.extra_state`."""
        return {
            "phase": self.phase,
            "keeper": self.keeper.state_dict(),
            "adversaries": dict(self.adversaries.state_dict()),
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See `Solver.load_extra_state`."""
        self.phase = state["phase"]
        self.keeper.load_state_dict(state["keeper"])
        self.adversaries.load_state_dict(state["adversaries"])

    def summary(self) -> dict[str, Any]:
        """Gives what kind of codes this codec makes."""
        model = self.model
        return {
            "num_codebooks": model.num_codebooks,
            "cardinality": model.cardinality,
            "frame_rate": float(model.frame_rate),
            **({} if self.time is None else {"beat_time": asdict(self.time)}),
        }


def _plain(section: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(section, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
