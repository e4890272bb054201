"""The loss of a language model over codes: cross-entropy of all codebooks at once, with no boolean indexing."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.head_loss import head_losses
from micro_musicgen.lm.training import (
    NO_CONDITIONS,
    Plan,
    attends_to_conditions,
    pattern_sequence,
    position_table,
    training_plan,
)

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


def code_losses(model: Any, codes: torch.Tensor, conditions: Fused | None = None) -> torch.Tensor:
    """Gives the cross-entropy of each codebook in nats, [K], of codes [B, K, T] under a language model.

    Of audiocraft's, what `LMModel.compute_predictions` followed by upstream's loss gives, but read off the pattern's
    own steps: step s predicts step s + 1, so that no logits need be mapped back to frames; and padded conditions are
    not heard, where upstream hears them. conditions: of B clips, `conditioners.fusing.fuse` gives them; None for
    nothing at all. A model that `lm.training` does not cover goes through `compute_predictions` itself.

    Raises:
        MicroMusicGenError: the model is not covered and there are conditions, or it attends to conditions and there
            are none, or the other way round, or they are for another number of clips.
    """
    plan = training_plan(model)
    conditions = conditions or NO_CONDITIONS
    _check(model, plan, conditions, len(codes))
    if plan.refusal:
        output = model.compute_predictions(codes, [], condition_tensors={})
        return cross_entropy(output.logits, codes, output.mask)
    sequence, mask = pattern_sequence(model, codes)
    given, wanted, counts = sequence[..., :-1], sequence[..., 1:], mask[:, 1:]
    assert plan.hidden is not None
    places = position_table(model, conditions.prefix_length + given.shape[-1], codes.device)
    hidden = plan.hidden(model, given, places, conditions)
    targets = wanted.masked_fill(~counts, IGNORED).transpose(0, 1).flatten(1)
    return head_losses(hidden, targets, model.linears)


def _check(model: Any, plan: Plan, conditions: Fused, batch: int) -> None:
    if conditions.rows not in (0, batch):
        raise MicroMusicGenError(f"conditions of {conditions.rows} clips for a batch of {batch}; give one a clip")
    if plan.refusal:
        if conditions.rows:
            raise MicroMusicGenError(
                f"a language model with {plan.refusal} is not trained with conditions; change that in transformer_lm, "
                "or train it without (conditioner=none)"
            )
        return
    attends = attends_to_conditions(model)
    if attends and conditions.cross is None:
        raise MicroMusicGenError(
            "this language model attends to conditions at every step and was given none; give the null condition"
        )
    if conditions.cross is not None and not attends:
        raise MicroMusicGenError(
            "this language model has no cross-attention; leave fuser.cross empty, or train it anew"
        )
