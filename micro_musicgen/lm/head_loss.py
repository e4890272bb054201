"""Output heads and cross-entropy in one operation, block of rows by block of rows.

Of one codebook: logits z = W h + b, loss = mean over valid rows of logsumexp(z) - z[target]. Its gradient by z is
softmax(z) - onehot(target), over the number of valid rows. Kept between the passes are log-probabilities, once, from
which the backward pass makes that gradient a block at a time; where they would take more than KEPT_BYTES, nothing is
kept and the backward pass multiplies again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

KEPT_BYTES = 2**31
"""Log-probabilities of all codebooks up to this size are kept for the backward pass."""
BLOCK_BYTES = {"cpu": 2**22}
"""A block of logits: on a CPU one that stays in a cache, else large enough to fill the device."""
LARGE_BLOCK_BYTES = 2**28


def head_losses(
    hidden: torch.Tensor, targets: torch.Tensor, heads: Sequence[nn.Linear] | nn.ModuleList
) -> torch.Tensor:
    """Gives the mean cross-entropy of each codebook in nats, fp32 [K].

    hidden [N, D], targets int64 [K, N]: below 0 where nothing is predicted. heads: one per codebook. Under autocast
    the products run in its dtype; softmax and sums are fp32.
    """
    parts = [part for head in heads for part in (head.weight, head.bias)]
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, parts = hidden.to(dtype), [None if part is None else part.to(dtype) for part in parts]
    with torch.autocast(device, enabled=False):
        losses: torch.Tensor = _HeadLosses.apply(hidden, targets, *parts)  # type: ignore[no-untyped-call]
    return losses


class _HeadLosses(torch.autograd.Function):
    """See the module. The gradient by the losses may differ between codebooks; there is no second derivative."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, *parts: torch.Tensor | None) -> torch.Tensor:
        num_codebooks, rows = targets.shape
        weights, biases = _split(parts)
        card = weights[0].shape[0]
        is_kept = any(ctx.needs_input_grad) and num_codebooks * rows * card * 4 <= KEPT_BYTES
        kept = hidden.new_empty((num_codebooks, rows, card), dtype=torch.float32) if is_kept else None
        valid = targets >= 0
        chosen = targets.clamp(min=0)
        scores = hidden.new_empty((num_codebooks, rows), dtype=torch.float32)
        for k, block in _blocks(num_codebooks, rows, card, hidden.device):
            out = None if kept is None else kept[k, block]
            log_p = _log_probabilities(hidden[block], weights[k], biases[k], out)
            torch.gather(log_p, 1, chosen[k, block, None], out=scores[k, block, None])
        counts = valid.sum(dim=1).clamp(min=1)
        ctx.save_for_backward(hidden, chosen, valid / counts[:, None], kept, *parts)
        return -scores.masked_fill_(~valid, 0.0).sum(dim=1) / counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_losses: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, chosen, shares, kept, *parts = ctx.saved_tensors
        weights, biases = _split(parts)
        num_codebooks, rows = chosen.shape
        card = weights[0].shape[0]
        shares = shares * by_losses[:, None]
        by_hidden = torch.zeros_like(hidden)
        by_weights = [torch.zeros_like(weight) for weight in weights]
        by_biases = [None if bias is None else torch.zeros_like(bias) for bias in biases]
        for k, block in _blocks(num_codebooks, rows, card, hidden.device):
            log_p = _log_probabilities(hidden[block], weights[k], biases[k]) if kept is None else kept[k, block]
            by_logits = log_p.exp()
            by_logits.scatter_add_(1, chosen[k, block, None], by_logits.new_full((1, 1), -1.0).expand(len(log_p), 1))
            by_logits = by_logits.mul_(shares[k, block, None]).to(hidden.dtype)
            by_hidden[block].addmm_(by_logits, weights[k])
            by_weights[k].addmm_(by_logits.t(), hidden[block])
            by_bias = by_biases[k]
            if by_bias is not None:
                by_bias += by_logits.sum(dim=0)
        return by_hidden, None, *(part for pair in zip(by_weights, by_biases, strict=True) for part in pair)


def _log_probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Gives fp32 [n, card] for rows [n, D], in `out` where there is one."""
    logits = nn.functional.linear(hidden, weight, bias).float()
    return torch.log_softmax(logits, dim=1, out=out) if out is not None else torch.log_softmax(logits, dim=1)


def _blocks(num_codebooks: int, rows: int, card: int, device: torch.device) -> Iterator[tuple[int, slice]]:
    """Gives the codebook and the rows of each block, codebook by codebook."""
    size = max(1, BLOCK_BYTES.get(device.type, LARGE_BLOCK_BYTES) // (4 * card))
    for k in range(num_codebooks):
        for start in range(0, rows, size):
            yield k, slice(start, min(start + size, rows))


def _split(parts: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    return list(parts[0::2]), list(parts[1::2])
