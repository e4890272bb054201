"""Muon for the matrices inside transformer blocks, fused AdamW for all else, as one optimiser.

Muon replaces a matrix's momentum by the nearest matrix whose singular values are all about one. That makes sense where
a matrix maps activations to activations. In tables and heads each row belongs to a code: they stay with AdamW.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.optimise.optim import adam_options, parameter_groups
from micro_musicgen.solvers.optimise.precision import has_bf16_units

MATCH_RMS = 0.2
"""Root mean square of AdamW's update, about, which `match_rms_adamw` gives Muon's too (arXiv 2502.16982, eq. 4)."""


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Gives the 2-D weights of the model's blocks, tables excepted.

    A block is an element of a `nn.ModuleList` that has parts of its own: a transformer's layer is one, while the tables
    and heads that lie in lists of one per codebook are not. No name is asked, so it holds for any backbone.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    blocks = [
        element
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        for element in module
        if next(element.children(), None) is not None
    ]
    inside = {id(p) for block in blocks for p in block.parameters()} - tables
    return [p for p in model.parameters() if id(p) in inside and p.ndim == 2 and p.requires_grad]


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and a fused AdamW behind one optimiser's interface, one state dict included.

    Invariant: the groups and the state of both parts are this object's own, so whatever changes here, changes there.
    """

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self._parts = (muon, adamw)
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self._parts:
            end = start + len(part.param_groups)
            part.param_groups = self.param_groups[start:end]
            part.state = self.state
            start = end

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What load_state_dict ends in: it puts new groups and a new state into this object.
        super().__setstate__(state)
        self._share()

    def step(self, closure: Any = None) -> Any:
        """Does one step of both parts; a gradient scaler's inverse has to be applied before (`unscale_`)."""
        if closure is not None:
            raise ValueError("MuonAdamW takes no closure: its two parts would call it twice")
        for part in self._parts:
            part.step()


def orthogonalised(
    matrix: torch.Tensor, *, num_rounds: int, coefficients: tuple[float, float, float], eps: float
) -> torch.Tensor:
    """Gives `matrix` [A, B] with its singular values moved to about one (0.5 to 1.3), in its own dtype.

    Each round applies a s + b s^3 + c s^5 to the singular values s by products alone, which is why the values must
    start at one or below: hence the division by the Frobenius norm.
    """
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(num_rounds):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def _rate_factor(adjust_lr_fn: str | None, num_rows: int, num_columns: int) -> float:
    if adjust_lr_fn == "match_rms_adamw":
        return MATCH_RMS * math.sqrt(max(num_rows, num_columns))
    return math.sqrt(max(1.0, num_rows / num_columns))


def _fp32_muon() -> type[torch.optim.Muon]:
    """Gives `torch.optim.Muon` with its rounds in fp32; settings and state are the same, so runs can change machine.

    torch's computes them in bf16. A CPU without units for that takes 0.88 s for the 16 matrices of `nano`, ten times as
    long as all the rest of its step. A function, because torch before 2.9 has nothing to derive from.
    """

    class Fp32Muon(torch.optim.Muon):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            assert closure is None
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._descend(parameter, group)

        def _descend(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
            gradient = parameter.grad
            assert gradient is not None
            state, momentum = self.state[parameter], group["momentum"]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
            update = orthogonalised(
                gradient.lerp(average, momentum) if group["nesterov"] else average,
                num_rounds=group["ns_steps"],
                coefficients=group["ns_coefficients"],
                eps=group["eps"],
            )
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * _rate_factor(group["adjust_lr_fn"], *parameter.shape))

    return Fp32Muon


def build_muon(model: nn.Module, config: Any) -> MuonAdamW:
    """Gives Muon for `hidden_matrices` and AdamW for everything else, from the section `optim`.

    Raises:
        MicroMusicGenError: torch has no Muon yet, the model has no blocks, or a setting is impossible.
    """
    if not hasattr(torch.optim, "Muon"):
        raise MicroMusicGenError(
            f"optim.optimizer=muon needs torch 2.9 or newer and this is {torch.__version__}; take optim.optimizer=adamw"
        )
    matrices = hidden_matrices(model)
    if not matrices:
        raise MicroMusicGenError(
            "optim.optimizer=muon is for the matrices of transformer blocks and this model has none; "
            "take optim.optimizer=adamw"
        )
    section, decay = config.muon, config.adam.weight_decay
    kind = torch.optim.Muon if has_bf16_units(matrices[0].device) else _fp32_muon()
    try:
        muon = kind(
            matrices,
            lr=config.lr if section.lr is None else section.lr,
            weight_decay=decay if section.weight_decay is None else section.weight_decay,
            momentum=section.momentum,
            nesterov=section.nesterov,
            ns_steps=section.ns_steps,
            adjust_lr_fn=section.adjust_lr_fn,
        )
    except ValueError as error:
        raise MicroMusicGenError(f"optim.muon cannot be used: {error}") from error
    taken = {id(p) for p in matrices}
    groups = parameter_groups(model, decay)
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in taken]
    return MuonAdamW(muon, torch.optim.AdamW(groups, **adam_options(config)))
