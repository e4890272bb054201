"""Small language models that listen in every way, and random conditions for them."""

from __future__ import annotations

from typing import Any

import torch
from fixtures_models import CARD, lm_config

from micro_musicgen.conditioners.fusing import Fused, fuse, read_fuser
from micro_musicgen.lm.builder import build_lm

Tensors = dict[str, tuple[torch.Tensor, torch.Tensor]]

BIASED = {"bias_ff": True, "bias_attn": True, "bias_proj": True, "zero_bias_init": False}
TORCHS = {"memory_efficient": False, "custom": False}
CUSTOM = {"memory_efficient": False, "custom": True}
FLAT = {"modeling": "unroll", "unroll": {"flattening": [0, 1, 2, 3], "delays": [0, 0, 0, 0]}}
WAYS: dict[str, dict[str, list[str]]] = {
    "sum": {"sum": ["a", "b"]},
    "prepend": {"prepend": ["a", "b"]},
    "cross": {"cross": ["a", "b"]},
    "all": {"sum": ["a"], "prepend": ["b"], "cross": ["c"]},
}
COVERED: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "flat pattern": {"pattern": FLAT},
    "rope": {"positional_embedding": "rope"},
    "sines and rope": {"positional_embedding": "sin_rope", "positional_scale": 0.5, "pattern": FLAT},
    "torch's attention": {**TORCHS, **BIASED},
    "audiocraft's attention": {**CUSTOM, **BIASED, "attention_as_float32": True, "layer_scale": 0.1},
    "normalised after": {"norm_first": False, **BIASED},
    "normalised queries and keys": {"qk_layer_norm": True, "qk_layer_norm_cross": True},
}


def config(way: str, *, pattern: dict[str, Any] | None = None, positions: float = 0.0, **changes: Any) -> Any:
    made = lm_config()
    made["transformer_lm"].update(changes, cross_attention=way in ("cross", "all"))
    made["codebooks_pattern"] = pattern or made["codebooks_pattern"]
    made["fuser"] = {**made["fuser"], **WAYS[way], "cross_attention_pos_emb": bool(positions),
                     "cross_attention_pos_emb_scale": positions, "mask_padding": True}  # fmt: skip
    lut = {"n_bins": 4, "dim": 4, "tokenizer": "noop", "pad_idx": 0}
    names = [name for each in WAYS[way].values() for name in each]
    made["conditioners"] = {name: {"model": "lut", "lut": lut} for name in names}
    return made


def make(settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = build_lm(settings, window_s=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim == 1 else 0.1  # so that attention is far from even
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def some_codes(batch: int = 3, num_frames: int = 11) -> torch.Tensor:
    return torch.randint(CARD, (batch, 4, num_frames), generator=torch.Generator().manual_seed(1))


def some_tensors(way: str, lengths: dict[str, list[int]] | None = None, batch: int = 3) -> Tensors:
    """Random embeddings, also where they are padding. lengths: valid positions of each clip; all, where not given."""
    generator = torch.Generator().manual_seed(2)
    found = {}
    for size, (kind, names) in zip((1, 6, 5), WAYS[way].items(), strict=False):
        for index, name in enumerate(names):
            positions = 1 if kind == "sum" else size + 4 - index
            x = torch.randn(batch, positions, 32, generator=generator).requires_grad_()
            valid = torch.tensor((lengths or {}).get(name, [positions] * batch))
            found[name] = (x, torch.arange(positions) < valid[:, None])
    return found


def fused(settings: dict[str, Any], tensors: Tensors) -> Fused:
    return fuse(read_fuser(settings), tensors, device=torch.device("cpu"), dtype=torch.float32)
