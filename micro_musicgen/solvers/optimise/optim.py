"""Optimisers, with weight decay kept off everything that is not the matrix of a linear map.

Every group of parameters carries its own peak rate as `initial_lr`, the name that torch's own schedulers use: a
schedule's factor multiplies that, whatever the group's rate was before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from micro_musicgen.errors import MicroMusicGenError


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Gives two groups: matrices, which decay, and norms, biases and embedding tables, which do not.

    Output heads are matrices of linear maps, each of their rows is reached by every step's gradient, and so they decay.
    A table's row is reached only when its code occurs: decay would shrink the rare ones. Tables with a rate of their
    own (`transformer_lm.emb_lr`) follow in groups of theirs.
    """
    tables = {
        id(parameter): getattr(module, "lr", None)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    own_rate: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        rate = tables.get(id(parameter))
        if rate is not None:
            own_rate.setdefault(float(rate), []).append(parameter)
        else:
            (kept if parameter.ndim < 2 or id(parameter) in tables else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return groups + [{"params": found, "weight_decay": 0.0, "lr": rate} for rate, found in own_rate.items()]


def adam_options(config: Any) -> dict[str, Any]:
    """Gives what the section `optim` says to Adam and AdamW, in their fused form."""
    return {"lr": config.lr, "betas": tuple(config.adam.betas), "eps": config.adam.eps, "fused": True}


def _adam(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameter_groups(model, config.adam.weight_decay), **adam_options(config))


def _adamw(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, config.adam.weight_decay), **adam_options(config))


def _muon(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    from micro_musicgen.solvers.optimise.muon import build_muon

    return build_muon(model, config)


_OPTIMIZERS: dict[str, Callable[[nn.Module, Any], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "muon": _muon,
}


def build_optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    """Gives the optimiser that the section `optim` names, over `model`'s parameters; each group has an `initial_lr`.

    Raises:
        MicroMusicGenError: an unknown optimiser, or one that this model or this torch cannot have.
    """
    if config.optimizer not in _OPTIMIZERS:
        known = ", ".join(sorted(_OPTIMIZERS))
        raise MicroMusicGenError(f"unknown optim.optimizer {config.optimizer!r}; known: {known}")
    optimizer = _OPTIMIZERS[config.optimizer](model, config)
    peaks = [group["lr"] for group in optimizer.param_groups]

    def note_peaks(optimizer: torch.optim.Optimizer) -> None:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["initial_lr"] = peak

    note_peaks(optimizer)
    # Loading replaces the groups by the saved ones, and those of older checkpoints have no peak.
    optimizer.register_load_state_dict_post_hook(note_peaks)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group's learning rate to `factor` times the group's own peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
