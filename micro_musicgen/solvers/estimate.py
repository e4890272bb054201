"""What a run will cost on this machine, from a few trial steps on made-up batches of the right shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from micro_musicgen.codec.builder import build_codec_model, codec_config
from micro_musicgen.lm.builder import build_lm, lm_config
from micro_musicgen.solvers.base import OVERHEAD_SHARE
from micro_musicgen.solvers.machine import settle
from micro_musicgen.solvers.optim import build_optimizer

TRIAL_STEPS = 3
FLOAT_BYTES = 4
STATE_COPIES = 4
"""Weights, both moments of Adam and the moving average: what a checkpoint holds, besides the best weights."""


def _seconds_per_step(step: Callable[[], torch.Tensor], model: nn.Module, cfg: DictConfig) -> float:
    optimizer = build_optimizer(model, cfg.optim)
    began = time.monotonic()
    for trial in range(TRIAL_STEPS + 1):
        if trial == 1:  # the first one allocates
            began = time.monotonic()
        optimizer.zero_grad(set_to_none=True)
        loss = step()
        torch.autograd.backward(loss)
        optimizer.step()
        if cfg.device.startswith("cuda"):
            torch.cuda.synchronize()
    return (time.monotonic() - began) / TRIAL_STEPS


def _report(model: nn.Module, seconds: float, cfg: DictConfig, minutes: float | None) -> dict[str, Any]:
    num_parameters = sum(p.numel() for p in model.parameters())
    updates = cfg.optim.epochs * cfg.optim.updates_per_epoch
    if minutes is not None:
        updates = int(60 * minutes * OVERHEAD_SHARE / seconds)
    weights_mb = num_parameters * FLOAT_BYTES / 1e6
    memory_mb = (STATE_COPIES + 2) * weights_mb
    if cfg.device.startswith("cuda"):
        memory_mb = torch.cuda.max_memory_allocated() / 1e6
    return {
        "device": cfg.device,
        "num_parameters": num_parameters,
        "steps": updates,
        "steps_per_s": round(1 / seconds, 2),
        "minutes": round(updates * seconds / OVERHEAD_SHARE / 60, 1),
        "memory_mb": round(memory_mb),
        "disk_mb": round((STATE_COPIES + 1) * weights_mb),
    }


def estimate_lm(cfg: DictConfig, minutes: float | None) -> dict[str, Any]:
    """Gives steps, speed, minutes, memory and disk of an LM run. On a CPU, activations come on top of the memory."""
    from micro_musicgen.solvers.lm import code_losses

    settle(cfg)
    torch.set_num_threads(cfg.num_threads)
    window_s = float(cfg.dataset.segment_duration)
    model = build_lm(lm_config(cfg), window_s=window_s, device=cfg.device).train()
    shape = (cfg.dataset.batch_size, cfg.transformer_lm.n_q, round(50 * window_s))
    codes = torch.randint(cfg.transformer_lm.card, shape, device=cfg.device)

    def step() -> torch.Tensor:
        with torch.autocast(cfg.device.split(":")[0], dtype=getattr(torch, cfg.autocast_dtype), enabled=cfg.autocast):
            return code_losses(model, codes).mean()

    return _report(model, _seconds_per_step(step, model, cfg), cfg, minutes)


def estimate_codec(cfg: DictConfig, minutes: float | None) -> dict[str, Any]:
    """Gives steps, speed, minutes, memory and disk of a codec run. On a CPU, activations come on top of the memory."""
    settle(cfg)
    torch.set_num_threads(cfg.num_threads)
    model = build_codec_model(codec_config(cfg), device=cfg.device).train()
    num_samples = round(cfg.dataset.segment_duration * cfg.sample_rate)
    wav = 0.1 * torch.randn(cfg.dataset.batch_size, cfg.channels, num_samples, device=cfg.device)

    def step() -> torch.Tensor:
        latents = model.encoder(wav)
        error = model.decoder(latents)[..., :num_samples] - wav
        # Three spectra of the output stand for the losses, which cost about that.
        spectra = [torch.stft(error[:, 0], n, n // 4, return_complex=True).abs().mean() for n in (512, 1024, 2048)]
        loss: torch.Tensor = error.abs().mean() + torch.stack(spectra).sum()
        return loss

    return _report(model, _seconds_per_step(step, model, cfg), cfg, minutes)
