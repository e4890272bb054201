"""The loss of a language model over codes: cross-entropy of all codebooks at once, with no boolean indexing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from micro_musicgen.lm.head_loss import head_losses
from micro_musicgen.lm.training import pattern_sequence, position_table, training_plan

IGNORED = -100
"""The target of a position that the codebook pattern leaves without a prediction."""


def cross_entropy(logits: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Gives the mean cross-entropy of each codebook in nats, [K].

    logits [B, K, T, card], codes int64 [B, K, T], mask bool [B, K, T]: True where the prediction counts. Positions
    outside the mask may hold NaN. One pass over all codebooks, without boolean indexing, so the device never waits.
    """
    B, K, T, card = logits.shape
    targets = codes.masked_fill(~mask, IGNORED)
    losses = functional.cross_entropy(
        logits.reshape(-1, card).float(), targets.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    per_codebook = losses.view(B, K, T).sum(dim=(0, 2))
    return per_codebook / mask.sum(dim=(0, 2)).clamp(min=1)


def code_losses(model: Any, codes: torch.Tensor, conditions: Mapping[str, Any] | None = None) -> torch.Tensor:
    """Gives the cross-entropy of each codebook in nats, [K], of codes [B, K, T] under an audiocraft `LMModel`.

    What `LMModel.compute_predictions` followed by upstream's loss gives, but read off the pattern's own steps: step s
    predicts step s + 1, so that no logits need be mapped back to frames. conditions: audiocraft's condition tensors;
    with any, and for a model that `lm.training` does not cover, `compute_predictions` itself is taken.
    """
    plan = training_plan(model)
    if plan.refusal or conditions:
        output = model.compute_predictions(codes, [], condition_tensors=dict(conditions or {}))
        return cross_entropy(output.logits, codes, output.mask)
    sequence, mask = pattern_sequence(model, codes)
    given, wanted, counts = sequence[..., :-1], sequence[..., 1:], mask[:, 1:]
    assert plan.hidden is not None
    hidden = plan.hidden(model, given, position_table(model, given.shape[-1], codes.device))
    targets = wanted.masked_fill(~counts, IGNORED).transpose(0, 1).flatten(1)
    return head_losses(hidden, targets, model.linears)
