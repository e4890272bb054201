"""Optimisers, with weight decay kept off everything that is not a matrix of a linear map."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from micro_musicgen.errors import MicroMusicGenError

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Gives two groups: matrices, which decay, and norms, biases and embeddings, which do not."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (kept if parameter.ndim < 2 or id(parameter) in embeddings else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    """Gives the optimiser that the Hydra group `optim` names, in its fused form, over `model`'s parameters.

    Raises:
        MicroMusicGenError: an unknown optimiser.
    """
    if config.optimizer not in _OPTIMIZERS:
        known = ", ".join(sorted(_OPTIMIZERS))
        raise MicroMusicGenError(f"unknown optim.optimizer {config.optimizer!r}; known: {known}")
    options = {"lr": config.lr, "betas": tuple(config.adam.betas), "eps": config.adam.eps, "fused": True}
    return _OPTIMIZERS[config.optimizer](parameter_groups(model, config.adam.weight_decay), **options)
