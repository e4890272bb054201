"""What a run will cost on this machine, from a few trial steps on made-up batches of the right shape."""

from __future__ import annotations

import time
from typing import Any

import torch
from omegaconf import DictConfig

from micro_musicgen.solvers.machine import settle
from micro_musicgen.solvers.optimise.batch_size import fill_batch
from micro_musicgen.solvers.optimise.memory_probe import release_memory
from micro_musicgen.solvers.optimise.precision import precision_name
from micro_musicgen.solvers.optimise.trial import Trial, build_trial
from micro_musicgen.solvers.running.clockplan import OVERHEAD_SHARE
from micro_musicgen.solvers.running.memory import MB, peak_memory_mb

TRIAL_STEPS = 3
FLOAT_BYTES = 4
STATE_COPIES = 4
"""Weights, both moments of Adam and the moving average: what a checkpoint holds, besides the best weights."""


def estimate(cfg: DictConfig, minutes: float | None) -> dict[str, Any]:
    """Gives batch, precision, steps, speed, minutes, memory and disk of a run.

    memory_mb: the peak; activations_mb: the part of it that comes and goes with each step. CUDA: both are measured. On
    a CPU they are estimates: the size of weights and state, and `Trial.activation_bytes`.
    """
    settle(cfg)
    torch.set_num_threads(cfg.num_threads)
    batch_size, accumulate = fill_batch(cfg)
    trial = build_trial(cfg)
    is_cuda = trial.device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(trial.device)
    seconds = _seconds_per_step(trial, batch_size, accumulate)
    num_parameters = sum(p.numel() for p in trial.model.parameters())
    weights_mb = num_parameters * FLOAT_BYTES / MB
    if is_cuda:
        # The average joins what the trial had; the best weights lie in main memory.
        memory_mb = peak_memory_mb(trial.device) + weights_mb
        activations_mb = peak_memory_mb(trial.device) - torch.cuda.memory_allocated(trial.device) / MB
    else:
        activations_mb = trial.activation_bytes(batch_size) / MB
        memory_mb = (STATE_COPIES + 2) * weights_mb + activations_mb
    updates = cfg.optim.epochs * cfg.optim.updates_per_epoch
    if minutes is not None:
        updates = int(60 * minutes * OVERHEAD_SHARE / seconds)
    tokens = trial.tokens_per_crop * batch_size * accumulate
    del trial
    release_memory(torch.device(cfg.device))
    return {
        "device": cfg.device,
        "precision": precision_name(cfg),
        "batch_size": batch_size,
        "accumulate": accumulate,
        "num_parameters": num_parameters,
        "steps": updates,
        "steps_per_s": round(1 / seconds, 2),
        "tokens_per_s": round(tokens / seconds),
        "minutes": round(updates * seconds / OVERHEAD_SHARE / 60, 1),
        "memory_mb": round(memory_mb),
        "activations_mb": round(activations_mb),
        "memory_is": "measured" if is_cuda else "estimated",
        "disk_mb": round(_disk_copies(cfg) * weights_mb),
    }


estimate_lm = estimate_codec = estimate
"""By the names under which both are asked for; the config's solver decides what is tried."""


def _disk_copies(cfg: DictConfig) -> int:
    """Gives how often a run's folder holds its weights at most: two checkpoints, the best epochs, the snapshots."""
    policy = cfg.checkpoint
    states = 1 + bool(policy.keep_previous)
    return int(states * (STATE_COPIES + 1) + (policy.keep_best or 0) + len(policy.snapshots or ()))


def _seconds_per_step(trial: Trial, batch_size: int, accumulate: int) -> float:
    trial.step(batch_size)  # the first one allocates
    began = time.monotonic()
    for _ in range(TRIAL_STEPS):
        trial.step(batch_size, accumulate)
    return (time.monotonic() - began) / TRIAL_STEPS
