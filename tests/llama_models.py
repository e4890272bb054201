"""Tiny llamas with random weights, and what they give without a cache."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import fixtures_models as models
import torch

from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.lm.training import NO_CONDITIONS

CONFIGS: dict[str, dict[str, Any]] = {
    "a key for every head": {},
    "grouped keys": {"num_kv_heads": 2},
    "one key for all": {"num_kv_heads": 1},
    "normed queries": {"qk_norm": True},
    "grouped and normed": {"num_kv_heads": 2, "qk_norm": True, "ffn_dim": 40},
    "fast rotation": {"max_period": 20.0, "norm_eps": 1e-3},
}
PATTERNS: dict[str, dict[str, Any]] = {
    "delay": {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3], "flatten_first": 0, "empty_initial": 0}},
    "flat start": {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3], "flatten_first": 2, "empty_initial": 1}},
    "parallel": {"modeling": "parallel"},
    "unroll": {"modeling": "unroll", "unroll": {"flattening": [0, 1, 2, 3], "delays": [0, 0, 0, 0]}},
    "coarse first": {"modeling": "coarse_first", "coarse_first": {"delays": [0, 1, 1]}},
    "musiclm": {"modeling": "musiclm", "musiclm": {"group_by": 2}},
}
WAYS: dict[str, dict[str, list[str]]] = {
    "prepend": {"prepend": ["a", "b"]},
    "cross": {"cross": ["a", "b"]},
    "sum": {"sum": ["a", "b"]},
    "all": {"sum": ["a"], "prepend": ["b"], "cross": ["c"]},
}


def config(
    changes: dict[str, Any] | None = None,
    pattern: str = "delay",
    *,
    way: str | None = None,
    mask_padding: bool = True,
    **shape: Any,
) -> dict[str, Any]:
    """Facts of a llama's config. way: in which conditions of width 32 enter; None for none."""
    made = deepcopy(models.lm_config())
    section = {"dim": 32, "num_heads": 4, "num_layers": 2, "n_q": 4, "card": models.CARD}
    made |= {"lm_model": "llama", "codebooks_pattern": PATTERNS[pattern]}
    made["transformer_lm"] = {**section, **shape, **(changes or {})}
    if way is not None:
        made["fuser"] = {**made["fuser"], **WAYS[way], "cross_attention_pos_emb": False,
                         "cross_attention_pos_emb_scale": 1.0, "mask_padding": mask_padding}  # fmt: skip
        lut = {"n_bins": 4, "dim": 4, "tokenizer": "noop", "pad_idx": 0}
        names = [name for each in WAYS[way].values() for name in each]
        made["conditioners"] = {name: {"model": "lut", "lut": lut} for name in names}
    return made


def lively(settings: dict[str, Any], seed: int = 0) -> Any:
    """A model whose weights are far from their start, so that every part of it matters."""
    lm = models.make_lm(settings, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.add_((0.3 if weight.ndim == 1 else 0.05) * torch.randn(weight.shape, generator=generator))
    return lm


def reference_logits(lm: Any, codes: torch.Tensor, conditions: Fused = NO_CONDITIONS) -> torch.Tensor:
    """Logits [B, K, T, card] of codes [B, K, T] by the training module over the whole sequence."""
    pattern = lm.pattern_provider.get_pattern(codes.shape[-1])
    sequence, _, _ = pattern.build_pattern_sequence(codes, lm.special_token_id, keep_only_valid_steps=False)
    with torch.no_grad():
        logits = lm(sequence, conditions).permute(0, 3, 1, 2)
    found, _, _ = pattern.revert_pattern_logits(logits, float("nan"), keep_only_valid_steps=False)
    reverted: torch.Tensor = found.permute(0, 2, 3, 1)
    return reverted
