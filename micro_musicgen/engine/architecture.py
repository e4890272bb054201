"""The shape of a language model that the engine runs, read from its config and held against its weights.

Nothing is allocated here: a release is a stranger's file, so names and sizes are compared before memory is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.weights import Shapes

POSITIONS = ("sin", "rope", "sin_rope")
ACTIVATIONS = ("gelu", "relu")
OPTIONAL_BUFFERS = (".rope.frequencies", ".rope.xpos.decay_rates")
"""Endings of tensors that audiocraft's checkpoints hold and that follow from the config."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A transformer over codes as audiocraft builds it. Axes of weights: [out, in].

    num_kv_heads: key/value heads, num_heads / kv_repeat. past_context: steps that attention looks back besides the
    present one; None for all. sum_conditions, prefix_conditions, cross_conditions: names by the way they enter.
    mask_padding: padded positions of a condition are not attended to; audiocraft's models were trained with them
    attended, hence false for its checkpoints.
    """

    dim: int
    num_heads: int
    num_kv_heads: int
    num_layers: int
    ffn_dim: int
    card: int
    num_codebooks: int
    activation: str = "gelu"
    norm_first: bool = True
    bias_attn: bool = False
    bias_ff: bool = False
    bias_proj: bool = False
    layer_scale: bool = False
    qk_norm: bool = False
    qk_norm_cross: bool = False
    own_attention: bool = True
    positions: str = "sin"
    max_period: float = 10_000.0
    positional_scale: float = 1.0
    xpos: bool = False
    past_context: int | None = None
    prefix_conditions: tuple[str, ...] = ()
    cross_conditions: tuple[str, ...] = ()
    sum_conditions: tuple[str, ...] = ()
    cross_positional_scale: float = 0.0
    mask_padding: bool = False

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @property
    def has_cross_attention(self) -> bool:
        """Whether every layer also attends to the conditions."""
        return bool(self.cross_conditions)

    @property
    def uses_rope(self) -> bool:
        """Whether queries and keys are rotated by their position."""
        return self.positions in ("rope", "sin_rope")

    @property
    def is_shift_invariant(self) -> bool:
        """Whether only distances between steps matter, so that a cache can roll on without end."""
        return self.positions == "rope" and not self.xpos and self.positional_scale == 1.0

    def shapes(self) -> Shapes:
        """Gives name and shape of every weight, as audiocraft names them; buffers that follow from the config not."""
        d, f = self.dim, self.ffn_dim
        found: Shapes = {}
        for k in range(self.num_codebooks):
            found[f"emb.{k}.weight"] = (self.card + 1, d)
            found.update(_linear(f"linears.{k}", self.card, d, self.bias_proj))
        for index in range(self.num_layers):
            found.update(self._layer_shapes(f"transformer.layers.{index}", d, f))
        if self.norm_first:
            found.update(_norm("out_norm", d))
        return found

    def _layer_shapes(self, name: str, d: int, f: int) -> Shapes:
        kv_dim = self.num_kv_heads * self.head_dim
        found = self._attention_shapes(f"{name}.self_attn", d + 2 * kv_dim, self.qk_norm)
        found.update(_linear(f"{name}.linear1", f, d, self.bias_ff))
        found.update(_linear(f"{name}.linear2", d, f, self.bias_ff))
        norms = ["norm1", "norm2"]
        scales = ["layer_scale_1", "layer_scale_2"]
        if self.has_cross_attention:
            found.update(self._attention_shapes(f"{name}.cross_attention", 3 * d, self.qk_norm_cross))
            norms.append("norm_cross")
            scales.append("layer_scale_cross")
        for norm in norms:
            found.update(_norm(f"{name}.{norm}", d))
        if self.layer_scale:
            found.update({f"{name}.{scale}.scale": (d,) for scale in scales})
        return found

    def _attention_shapes(self, name: str, projected: int, qk_norm: bool) -> Shapes:
        inner = name if self.own_attention else f"{name}.mha"
        found: Shapes = {f"{inner}.in_proj_weight": (projected, self.dim)}
        if self.bias_attn:
            found[f"{inner}.in_proj_bias"] = (projected,)
        found.update(_linear(f"{inner}.out_proj", self.dim, self.dim, self.bias_attn))
        if qk_norm:
            found.update(_norm(f"{name}.q_layer_norm", self.dim))
            found.update(_norm(f"{name}.k_layer_norm", self.dim))
        return found

    def check(self, shapes: Shapes, *, source: str) -> None:
        """Refuses weights that are not those of this shape; what belongs to conditioners is passed over.

        Raises:
            MicroMusicGenError: naming `source` and the first difference.
        """
        if self.num_layers > len(shapes) or self.num_codebooks > len(shapes):
            worst = max(self.num_layers, self.num_codebooks)
            raise MicroMusicGenError(
                f"{source} says {worst} layers or codebooks, but there are only {len(shapes)} tensors"
            )
        wanted = self.shapes()
        given = {
            name: shape
            for name, shape in shapes.items()
            if not name.endswith(OPTIONAL_BUFFERS) and not name.startswith(("condition_provider.", "fuser."))
        }
        for name in [*wanted, *given]:
            if wanted.get(name) != given.get(name):
                here, there = given.get(name, "missing"), wanted.get(name, "nothing")
                raise MicroMusicGenError(
                    f"{source} does not hold the model that its config describes: {name} is {here}, expected {there}"
                )


def _linear(name: str, out_features: int, in_features: int, bias: bool) -> Shapes:
    found: Shapes = {f"{name}.weight": (out_features, in_features)}
    if bias:
        found[f"{name}.bias"] = (out_features,)
    return found


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Gives the shape that an LM config (as `lm.builder.lm_config` gives it) describes.

    Raises:
        MicroMusicGenError: the engine does not know something that the config asks for.
    """
    t = config["transformer_lm"]
    fuser = config.get("fuser") or {}
    _check_known(t, fuser)
    heads, repeat = int(t["num_heads"]), int(t.get("kv_repeat") or 1)
    crossed = tuple(fuser.get("cross") or ())
    own = bool(t.get("custom")) or bool(t.get("memory_efficient"))
    return Architecture(
        dim=int(t["dim"]),
        num_heads=heads,
        num_kv_heads=heads // repeat,
        num_layers=int(t["num_layers"]),
        ffn_dim=int(float(t.get("hidden_scale", 4)) * int(t["dim"])),
        card=int(t["card"]),
        num_codebooks=int(t["n_q"]),
        activation=str(t.get("activation", "relu")),
        norm_first=bool(t.get("norm_first", False)),
        bias_attn=bool(t.get("bias_attn", True)),
        bias_ff=bool(t.get("bias_ff", True)),
        bias_proj=bool(t.get("bias_proj", True)),
        layer_scale=t.get("layer_scale") is not None,
        qk_norm=bool(t.get("qk_layer_norm", False)),
        qk_norm_cross=bool(crossed) and bool(t.get("qk_layer_norm_cross", False)),
        own_attention=own,
        positions=str(t.get("positional_embedding", "sin")),
        max_period=float(t.get("max_period", 10_000)),
        positional_scale=float(t.get("positional_scale", 1.0)),
        xpos=bool(t.get("xpos", False)),
        past_context=None if t.get("past_context") is None else int(t["past_context"]),
        prefix_conditions=tuple(fuser.get("prepend") or ()),
        cross_conditions=crossed,
        sum_conditions=tuple(fuser.get("sum") or ()),
        cross_positional_scale=_cross_scale(fuser),
        mask_padding=bool(fuser.get("mask_padding", False)),
    )


def _cross_scale(fuser: Mapping[str, Any]) -> float:
    return float(fuser.get("cross_attention_pos_emb_scale", 1.0)) if fuser.get("cross_attention_pos_emb") else 0.0


def _check_known(t: Mapping[str, Any], fuser: Mapping[str, Any]) -> None:
    dim, heads, repeat = int(t["dim"]), int(t["num_heads"]), int(t.get("kv_repeat") or 1)
    faults = []
    if dim < 1 or heads < 1 or dim % heads or repeat < 1 or heads % repeat:
        faults.append(f"dim {dim}, num_heads {heads} and kv_repeat {repeat} don't divide each other")
    if t.get("causal") is not True:
        faults.append("causal must be true: only causal models can be played step by step")
    if t.get("activation", "relu") not in ACTIVATIONS:
        faults.append(f"unknown activation {t['activation']!r}; known: {', '.join(ACTIVATIONS)}")
    if t.get("norm", "layer_norm") != "layer_norm":
        faults.append(f"unknown norm {t['norm']!r}; known: layer_norm")
    if t.get("positional_embedding", "sin") not in POSITIONS:
        faults.append(f"unknown positional_embedding {t['positional_embedding']!r}; known: {', '.join(POSITIONS)}")
    if fuser.get("input_interpolate"):
        faults.append(f"conditions {fuser['input_interpolate']} enter by input_interpolate, which can't be generated")
    if faults:
        raise MicroMusicGenError(f"cannot play this language model: {'; '.join(faults)}")
