"""The shape of a llama-style language model: read from a config, checked, counted. Nothing heavy is imported.

The numbers are in the section `transformer_lm`, as of every backbone: whatever asks a config for its width, its card
or its codebooks finds them there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from micro_musicgen.contracts import Conditioning, LMSpec
from micro_musicgen.errors import MicroMusicGenError

BACKBONE = "llama"
FFN_STEP = 8
"""Widths of feed-forward parts that nobody has chosen are multiples of it."""
_NAMES = {"num_codebooks": "n_q"}
"""What a field is called in a config, where that is not its own name."""


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """A decoder of causal self-attention and gated feed-forward parts, bias-free, normalised before each part.

    num_kv_heads: heads of keys and values; query head i hears number i // (num_heads / num_kv_heads). ffn_dim: width
    between the two products of a feed-forward part. max_period: of the slowest rotation, in 2 pi steps. dropout,
    attention_dropout: while training. emb_lr: rate of the embedding tables; None for that of all else.
    """

    dim: int
    num_heads: int
    num_layers: int
    card: int
    num_codebooks: int
    num_kv_heads: int
    ffn_dim: int
    qk_norm: bool = False
    max_period: float = 10_000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    emb_lr: float | None = None

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.num_heads

    @property
    def num_packed_heads(self) -> int:
        """Heads of queries, keys and values together: what one product gives side by side."""
        return self.num_heads + 2 * self.num_kv_heads


def swiglu_width(dim: int, num_heads: int, num_kv_heads: int) -> int:
    """Gives the width of a feed-forward part with which a layer weighs as much as audiocraft's of this width.

    That is 8/3 of `dim` where every query head has keys of its own. What shared keys save goes into the width.
    """
    attention = 2 * dim * (dim // num_heads) * (num_heads + num_kv_heads)
    exact = (12 * dim * dim - attention) / (3 * dim)
    return max(FFN_STEP, FFN_STEP * round(exact / FFN_STEP))


def read_llama_shape(config: Mapping[str, Any]) -> LlamaShape:
    """Gives the shape that an LM config (as `lm.builder.lm_config` gives it) describes.

    Raises:
        MicroMusicGenError: an unknown key, one that is missing, or a number that can't be; all of them at once.
    """
    section = dict(config["transformer_lm"])
    known = {_NAMES.get(field.name, field.name): field.name for field in fields(LlamaShape)}
    faults = [f"unknown key {key!r}" for key in section if key not in known]
    needed = ("dim", "num_heads", "num_layers", "card", "n_q")
    faults += [f"missing key {key!r}" for key in needed if section.get(key) is None]
    faults += faults and [f"known: {', '.join(sorted(known))}"] or _faults(section)
    faults += _fuser_faults(config.get("fuser") or {})
    if faults:
        raise MicroMusicGenError(f"cannot make this llama of transformer_lm: {'; '.join(faults)}")
    if section.get("num_kv_heads") is None:
        section["num_kv_heads"] = section["num_heads"]
    if section.get("ffn_dim") is None:
        section["ffn_dim"] = swiglu_width(section["dim"], section["num_heads"], section["num_kv_heads"])
    if section.get("attention_dropout") is None:
        section["attention_dropout"] = section.get("dropout", 0.0)
    return LlamaShape(**{known[key]: value for key, value in section.items()})


def _faults(section: Mapping[str, Any]) -> list[str]:
    """Says what is wrong with the values of a section that has all keys."""
    counts = ("dim", "num_heads", "num_layers", "card", "n_q", "num_kv_heads", "ffn_dim")
    given = {key: section[key] for key in counts if section.get(key) is not None}
    wrong = [key for key, value in given.items() if isinstance(value, bool) or not isinstance(value, int) or value < 1]
    if wrong:
        return [f"{key}={given[key]} is no number from 1 on" for key in wrong]
    faults = []
    dim, heads = given["dim"], given["num_heads"]
    kv_heads = given.get("num_kv_heads", heads)
    if dim % heads or heads % kv_heads:
        faults.append(f"dim {dim}, num_heads {heads} and num_kv_heads {kv_heads} don't divide each other")
    elif (dim // heads) % 2:
        faults.append(f"heads of dim / num_heads = {dim // heads} can't be rotated in pairs; an even width can")
    for key in ("dropout", "attention_dropout"):
        value = section.get(key)
        if value is not None and not 0 <= value < 1:
            faults.append(f"{key}={value} is not in [0, 1)")
    for key in ("max_period", "norm_eps"):
        if not section.get(key, 1) > 0:
            faults.append(f"{key}={section[key]} is not above 0")
    return faults


def _fuser_faults(fuser: Mapping[str, Any]) -> list[str]:
    stretched = list(fuser.get("input_interpolate") or ())
    return [f"conditions {stretched} enter by input_interpolate, which it does not take"] if stretched else []


def llama_spec(config: Mapping[str, Any]) -> LMSpec:
    """Gives the shape of a llama's config as every backbone's is given.

    Raises:
        MicroMusicGenError: as `read_llama_shape`.
    """
    shape = read_llama_shape(config)
    fuser = config.get("fuser") or {}
    conditioning: Conditioning = "cross" if fuser.get("cross") else "prefix" if fuser.get("prepend") else "none"
    return LMSpec(
        backbone=BACKBONE,
        dim=shape.dim,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        num_layers=shape.num_layers,
        ffn_dim=shape.ffn_dim,
        card=shape.card,
        num_codebooks=shape.num_codebooks,
        qk_norm=shape.qk_norm,
        pattern=config["codebooks_pattern"]["modeling"],
        conditioning=conditioning,
    )
