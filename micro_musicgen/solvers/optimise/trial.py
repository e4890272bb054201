"""Training steps on made-up crops of the right shape: what speed and memory are measured on before a run starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import nn

from micro_musicgen.codec.builder import build_codec_model, codec_config
from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.conditioners.fusing import fuse, read_fuser
from micro_musicgen.conditioners.provider import ConditionProvider
from micro_musicgen.diffusion.builder import build_diffusion, diffusion_config
from micro_musicgen.diffusion.denoiser import Told
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import build_lm, lm_config
from micro_musicgen.lm.losses import code_losses
from micro_musicgen.solvers.optimise.optim import build_optimizer

FRAME_RATE = 50
"""Codec steps per second, which most codecs have."""
USUAL_LATENTS = 128


@dataclass(frozen=True)
class Trial:
    """A model that can be trained for a step on any number of crops. Its weights are nobody's.

    loss: of a batch of so many crops. tokens_per_crop: codes, or for a codec samples.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[int], torch.Tensor]
    tokens_per_crop: int
    device: torch.device

    def step(self, batch_size: int, accumulate: int = 1) -> None:
        """Does a whole optimiser step of `accumulate` batches, and waits for the device."""
        try:
            for _ in range(accumulate):
                torch.autograd.backward(self.loss(batch_size))
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def activation_bytes(self, batch_size: int) -> int:
        """Gives about the bytes that a batch takes beside weights, gradients and the optimiser's state.

        All that the forward pass keeps for the backward pass, and the largest of it, the logits, twice: their gradient
        is made while everything is still there. Within a fifth of what `nano` and `tiny` grew by at 1 to 16 crops.
        """
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self.loss(batch_size)
        del loss
        return sum(kept.values()) + max(kept.values(), default=0)


def build_trial(cfg: DictConfig) -> Trial:
    """Gives the trial of the solver that a settled config names.

    Raises:
        MicroMusicGenError: a solver whose steps cannot be tried, upstream's.
    """
    if cfg.solver not in _TRIALS:
        raise MicroMusicGenError(
            f"dataset.batch_size=auto is not for solver={cfg.solver}; give a number, as in dataset.batch_size=8"
        )
    return _TRIALS[cfg.solver](cfg)


def _autocast(cfg: DictConfig) -> torch.autocast:
    return torch.autocast(cfg.device.split(":")[0], dtype=getattr(torch, cfg.autocast_dtype), enabled=cfg.autocast)


def _lm_trial(cfg: DictConfig) -> Trial:
    window_s = float(cfg.dataset.segment_duration)
    model = build_lm(lm_config(cfg), window_s=window_s, device=cfg.device).train()
    num_codebooks, num_frames = cfg.transformer_lm.n_q, max(1, round(_frame_rate(cfg) * window_s))
    spec, provider = read_fuser(lm_config(cfg)), model.condition_provider
    is_told = isinstance(provider, ConditionProvider) and bool(provider.names())

    def loss(batch_size: int) -> torch.Tensor:
        codes = torch.randint(cfg.transformer_lm.card, (batch_size, num_codebooks, num_frames), device=cfg.device)
        with _autocast(cfg):
            # Nothing said takes the room and the time of anything said: as many positions.
            null = provider.null(batch_size) if is_told else {}
            told = fuse(spec, null, device=codes.device, dtype=torch.float32) if is_told else None
            return code_losses(model, codes, told).mean()

    optimizer = build_optimizer(model, cfg.optim)
    return Trial(model, optimizer, loss, num_codebooks * num_frames, torch.device(cfg.device))


def _frame_rate(cfg: DictConfig) -> float:
    """Gives the frames a second of a codec that was trained here, which may be as few as one a beat; else the usual
    number: a trial downloads nothing.
    """
    reference = str(cfg.get("compression_model_checkpoint") or "")
    return load_codec(reference).frame_rate if reference.startswith("//sig/") else FRAME_RATE


def _codec_trial(cfg: DictConfig) -> Trial:
    model = build_codec_model(codec_config(cfg), device=cfg.device).train()
    num_samples = round(cfg.dataset.segment_duration * cfg.sample_rate)

    def loss(batch_size: int) -> torch.Tensor:
        wav = 0.1 * torch.randn(batch_size, cfg.channels, num_samples, device=cfg.device)
        with _autocast(cfg):
            error = model.decoder(model.encoder(wav))[..., :num_samples].float() - wav
        # Three spectra of the output stand for the losses, which cost about that.
        spectra = [torch.stft(error[:, 0], n, n // 4, return_complex=True).abs().mean() for n in (512, 1024, 2048)]
        total: torch.Tensor = error.abs().mean() + torch.stack(spectra).sum()
        return total

    return Trial(model, build_optimizer(model, cfg.optim), loss, num_samples, torch.device(cfg.device))


def _diffusion_trial(cfg: DictConfig) -> Trial:
    """Of frames as wide as most codecs' latents, where the run has not settled what they are."""
    config = diffusion_config(cfg)
    section = config["diffusion"]
    section["channels"] = section["channels"] or USUAL_LATENTS
    if section["condition_channels"] is None:
        section["condition_channels"] = section["channels"]
    model = build_diffusion(config).to(cfg.device).train()
    num_frames = round(FRAME_RATE * float(cfg.dataset.segment_duration or 1))
    num_frames += -num_frames % model.denoiser.stride

    def crops(batch_size: int, channels: int) -> torch.Tensor:
        return torch.randn(batch_size, channels, num_frames, device=cfg.device)

    model.normaliser.fit([crops(1, model.channels)])
    if model.condition_normaliser is not None:
        model.condition_normaliser.fit([crops(1, model.condition_channels)])

    def loss(batch_size: int) -> torch.Tensor:
        told = Told(crops(batch_size, model.condition_channels) if model.condition_channels else None)
        return model.loss(crops(batch_size, model.channels), told, autocast=lambda: _autocast(cfg)).loss.mean()

    return Trial(model, build_optimizer(model, cfg.optim), loss, num_frames, torch.device(cfg.device))


_TRIALS: dict[str, Callable[[DictConfig], Trial]] = {
    "musicgen": _lm_trial,
    "compression": _codec_trial,
    "diffusion_decoder": _diffusion_trial,
}
