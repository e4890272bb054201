"""The llama-style language model in the engine's parts; `lm.llama` is what it is trained as.

Gains of normalisations lie in the weights of the products that follow, so that a step need not multiply by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from micro_musicgen.conditioners.fusing import read_fuser
from micro_musicgen.engine.architecture import Architecture
from micro_musicgen.engine.layers import Attention, Block, CrossAttention, Part
from micro_musicgen.engine.linear import Linear
from micro_musicgen.engine.transformer_lm import Backbone, Loader, Network, Weights, backbones
from micro_musicgen.lm.llama_shape import BACKBONE, read_llama_shape
from micro_musicgen.weights import Shapes

AT_ONCE = 1 << 15
"""Numbers up to which torch does a pointwise function in one thread. Beyond, it cuts rows anywhere, and the cut decides
which numbers are done one by one, by another function of the same name."""


@dataclass(frozen=True, kw_only=True)
class LlamaArchitecture(Architecture):
    """A llama as `lm.llama` builds it. Axes of weights: [out, in]. qk_norm: head by head, in cross-attention too."""

    norm_eps: float

    @property
    def packed_dim(self) -> int:
        """Width of queries, keys and values side by side."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def shapes(self) -> Shapes:
        """See `Architecture.shapes`; named as `lm.llama` names them."""
        found: Shapes = {}
        for k in range(self.num_codebooks):
            found[f"emb.{k}.weight"] = (self.card + 1, self.dim)
            found[f"linears.{k}.weight"] = (self.card, self.dim)
        for index in range(self.num_layers):
            found.update({f"layers.{index}.{name}": shape for name, shape in self._one_layer().items()})
        return {**found, "out_norm.weight": (self.dim,)}

    def _one_layer(self) -> Shapes:
        d, f = self.dim, self.ffn_dim
        gains: Shapes = {f"{which}_norm.weight": (self.head_dim,) for which in "qk"} if self.qk_norm else {}
        found: Shapes = {
            "attention_norm.weight": (d,),
            "attention.project_in.weight": (self.packed_dim, d),
            "attention.project_out.weight": (d, d),
            **{f"attention.{name}": shape for name, shape in gains.items()},
            "feed_forward_norm.weight": (d,),
            "feed_forward.inner.weight": (2 * f, d),
            "feed_forward.outer.weight": (d, f),
        }
        if self.has_cross_attention:
            found |= {
                "cross_norm.weight": (d,),
                "cross.project_q.weight": (d, d),
                "cross.project_kv.weight": (2 * d, d),
                "cross.project_out.weight": (d, d),
                **{f"cross.{name}": shape for name, shape in gains.items()},
            }
        return found


def read_llama(config: Mapping[str, Any]) -> LlamaArchitecture:
    """Gives the shape that a llama's config (as `lm.builder.lm_config` gives it) describes.

    Raises:
        MicroMusicGenError: it is not a llama's, or describes an impossible one.
    """
    shape, fuser = read_llama_shape(config), read_fuser(config)
    return LlamaArchitecture(
        dim=shape.dim,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        num_layers=shape.num_layers,
        ffn_dim=shape.ffn_dim,
        card=shape.card,
        num_codebooks=shape.num_codebooks,
        qk_norm=shape.qk_norm,
        qk_norm_cross=shape.qk_norm,
        positions="rope",
        max_period=shape.max_period,
        norm_eps=shape.norm_eps,
        prefix_conditions=fuser.prefix_conditions,
        cross_conditions=fuser.cross_conditions,
        sum_conditions=fuser.sum_conditions,
        cross_positional_scale=fuser.cross_positional_scale,
        mask_padding=fuser.mask_padding,
    )


@dataclass(frozen=True)
class RMSNorm:
    """x [..., D] over its root mean square, by torch's own kernel; for GPUs and compilers."""

    dim: int
    epsilon: float
    scale = 1.0
    """What the result is to be multiplied by."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x normalised over its last axis."""
        return torch.rms_norm(x, (self.dim,), None, self.epsilon)


class RootNorm:
    """x [..., D] over the root of (sum of squares + D eps): root mean square normalisation but for `scale`.

    Half the time of torch's own for a single row. Of operations that are rounded exactly, since for others the last
    bits differ between the first rows of a batch and its rest.
    """

    def __init__(self, dim: int, epsilon: float) -> None:
        self.floor = torch.tensor(dim * epsilon)
        self.scale = math.sqrt(dim)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x normalised over its last axis, `scale` times too small."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x.div(norm.mul_(norm).add_(self.floor).sqrt_())


@dataclass(frozen=True)
class HeadNorm:
    """[..., W] -> [..., W], each head of a width of its own normalised. gains: [heads, hd], scales included."""

    norm: RMSNorm | RootNorm
    gains: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives the heads normalised and multiplied by their gains."""
        return self.norm(torch.unflatten(x, -1, self.gains.shape)).mul_(self.gains).flatten(-2)


@dataclass(frozen=True)
class LlamaAttention:
    """Projections around causal attention; queries and keys are normalised (maybe) and turned where they lie.

    Invariant: queries leave the weights, or the gains, scaled by 1/sqrt(head_dim). norm: of `num_turned` heads, those
    of queries and keys.
    """

    project_in: Linear
    project_out: Linear
    num_turned: int
    norm: HeadNorm | None = None

    def __call__(self, x: torch.Tensor, layer: int, attention: Attention) -> torch.Tensor:
        """Gives [M, D] of x [M, D]."""
        projected = self.project_in(x)
        if self.norm is not None:
            both = projected[:, : self.norm.gains.numel()]
            both.copy_(self.norm(both))
        attention.rotate_projected(projected, self.num_turned)
        return self.project_out(attention.attend_projected(layer, projected))


@dataclass(frozen=True)
class SwiGLU:
    """outer(silu(gate) * value), the two halves of inner(x). rows: how many may be gated at once; None for any."""

    inner: Linear
    outer: Linear
    rows: int | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Gives [M, D] of x [M, D]."""
        both = self.inner(x)
        if self.rows is None or len(both) <= self.rows or torch.get_num_threads() == 1:
            return self.outer(_gated(both))
        return self.outer(torch.cat([_gated(part) for part in torch.split(both, self.rows)]))


def _gated(both: torch.Tensor) -> torch.Tensor:
    gate, value = both.chunk(2, -1)
    return F.silu(gate).mul_(value)


class _LlamaLoader(Loader):
    def __init__(
        self, arch: LlamaArchitecture, weights: Weights, device: torch.device, precision: str, plain: bool
    ) -> None:
        smallest = arch.dim * min(arch.dim, arch.ffn_dim, arch.num_codebooks * arch.card)
        super().__init__(weights, device, precision, plain, smallest=smallest)
        self.arch = arch
        self.is_quick = device.type == "cpu" and not plain

    def norm(self, dim: int) -> RMSNorm | RootNorm:
        return (RootNorm if self.is_quick else RMSNorm)(dim, self.arch.norm_eps)

    def normed(self, name: str, norm: str) -> tuple[torch.Tensor, RMSNorm | RootNorm]:
        """Gives the weights `name` with the gains of `norm` in them, and what normalises their input."""
        part = self.norm(self.arch.dim)
        return self.take(f"{name}.weight") * (self.take(f"{norm}.weight") * part.scale), part

    def head_norm(self, name: str, queries: int, keys: int) -> HeadNorm:
        """Gives the normalisation of heads of queries, then of keys."""
        part, width = self.norm(self.arch.head_dim), self.arch.head_dim
        q = self.take(f"{name}.q_norm.weight") * (part.scale * width**-0.5)
        k = self.take(f"{name}.k_norm.weight") * part.scale
        return HeadNorm(part, torch.cat([q.expand(queries, -1), k.expand(keys, -1)]).to(self.dtype))

    def attention(self, name: str, norm: str) -> tuple[LlamaAttention, Part]:
        arch, queries = self.arch, self.arch.num_heads * self.arch.head_dim
        weight, part = self.normed(f"{name}.project_in", norm)
        if not arch.qk_norm:
            weight[:queries] *= arch.head_dim**-0.5
        made = LlamaAttention(
            project_in=self.linear(weight),
            project_out=self.linear(self.take(f"{name}.project_out.weight")),
            num_turned=arch.num_heads + arch.num_kv_heads,
            norm=self.head_norm(name, arch.num_heads, arch.num_kv_heads) if arch.qk_norm else None,
        )
        return made, part

    def cross(self, name: str, norm: str) -> tuple[CrossAttention, Part]:
        arch, heads = self.arch, self.arch.num_heads
        weight, part = self.normed(f"{name}.project_q", norm)
        if not arch.qk_norm:
            weight *= arch.head_dim**-0.5
        made = CrossAttention(
            project_q=self.linear(weight),
            project_kv=self.once(self.take(f"{name}.project_kv.weight")),
            project_out=self.linear(self.take(f"{name}.project_out.weight")),
            num_heads=heads,
            head_dim=arch.head_dim,
            q_norm=self.head_norm(name, heads, 0) if arch.qk_norm else None,
            k_norm=self.head_norm(name, 0, heads) if arch.qk_norm else None,
        )
        return made, part

    def feed_forward(self, name: str, norm: str) -> tuple[SwiGLU, Part]:
        weight, part = self.normed(f"{name}.inner", norm)
        rows = max(1, AT_ONCE // self.arch.ffn_dim) if self.is_quick else None
        return SwiGLU(self.linear(weight), self.linear(self.take(f"{name}.outer.weight")), rows), part

    def block(self, index: int) -> Block:
        name = f"layers.{index}"
        attention, attention_norm = self.attention(f"{name}.attention", f"{name}.attention_norm")
        cross, cross_norm = None, None
        if self.arch.has_cross_attention:
            cross, cross_norm = self.cross(f"{name}.cross", f"{name}.cross_norm")
        feed_forward, feed_forward_norm = self.feed_forward(f"{name}.feed_forward", f"{name}.feed_forward_norm")
        return Block(
            attention=attention,
            attention_norm=attention_norm,
            feed_forward=feed_forward,
            feed_forward_norm=feed_forward_norm,
            cross=cross,
            cross_norm=cross_norm,
        )


def llama(config: Mapping[str, Any], weights: Weights, device: torch.device, precision: str, plain: bool) -> Network:
    """Gives the llama of a config that `read_llama` takes and of weights of that shape."""
    arch = read_llama(config)
    loader = _LlamaLoader(arch, weights, device, precision, plain)
    books = range(arch.num_codebooks)
    out_norm = loader.norm(arch.dim)
    head = torch.cat([loader.take(f"linears.{k}.weight") for k in books])
    made = Network(
        arch=arch,
        embedding=torch.cat([loader.take(f"emb.{k}.weight") for k in books]).to(loader.dtype),
        blocks=tuple(loader.block(index) for index in range(arch.num_layers)),
        out_norm=out_norm,
        heads=loader.linear(head * (loader.take("out_norm.weight") * out_norm.scale)),
        precision=precision,
        num_bytes=0,
        row_multiple=1,
    )
    return replace(made, num_bytes=loader.num_bytes, row_multiple=loader.row_multiple)


backbones.register(BACKBONE)(Backbone(read_llama, llama))
