"""audiocraft's transformer in the engine's parts: from a config and its weights to something that computes logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from micro_musicgen.conditioners.lazy_registry import LazyRegistry
from micro_musicgen.engine.architecture import Architecture, read_architecture
from micro_musicgen.engine.layers import Block, CrossAttention, FeedForward, LayerNorm, Part, SelfAttention, gelu
from micro_musicgen.engine.linear import ALL_INT8_FROM, ROW_MULTIPLE, Linear, make_linear
from micro_musicgen.engine.threads import ONE_THREAD_BELOW
from micro_musicgen.weights import Shapes

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A backbone with its weights in place, ready to be stepped. Holds no state: see `state.py`.

    embedding: [K * (card + 1), D], codebook after codebook, the empty code last in each. out_norm: before the heads.
    heads: [D] -> [K * card]. row_multiple: rows of a step come in multiples of this, so that they are independent.
    """

    arch: Architecture
    embedding: torch.Tensor
    blocks: tuple[Block, ...]
    out_norm: Part | None
    heads: Linear
    precision: str
    num_bytes: int
    row_multiple: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.embedding.device

    @property
    def num_threads(self) -> int | None:
        """Threads to step with: one for small networks on a CPU, else as many as torch was told."""
        return 1 if self.device.type == "cpu" and self.num_bytes < ONE_THREAD_BELOW else None

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations between its parts."""
        return self.embedding.dtype

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Gives fp32 logits [M, K, card] of the last block's output [M, D]."""
        out = self.heads(x if self.out_norm is None else self.out_norm(x))
        return torch.unflatten(out.float(), -1, (self.arch.num_codebooks, self.arch.card))


MakeNetwork = Callable[[Mapping[str, Any], Weights, torch.device, str, bool], Network]


class Backbone(NamedTuple):
    """How one kind of language model is played.

    read: gives the shape that an LM config describes. make: takes (lm config, weights, device, precision, plain kernels
    only), the weights being of that shape.
    """

    read: Callable[[Mapping[str, Any]], Architecture]
    make: MakeNetwork


backbones: LazyRegistry[Backbone] = LazyRegistry("language model", {"llama": "micro_musicgen.engine.llama"})
"""By the config's `lm_model`."""


def make_network(
    config: Mapping[str, Any],
    weights: Weights,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    plain: bool = False,
    shapes: Shapes | None = None,
    source: str = "the model",
) -> Network:
    """Gives the network that an LM config and its weights (fp32, named as audiocraft names them) describe.

    plain: torch's own kernels only, for torch.compile. shapes: of the weights, where they are known without reading
    them. source: where they are from, for messages.

    Raises:
        MicroMusicGenError: config and weights don't belong together, or the engine doesn't know the model.
    """
    backbone = backbones.get(str(config["lm_model"]))
    backbone.read(config).check(shapes or shapes_of(weights), source=source)
    with torch.inference_mode():
        return backbone.make(config, weights, torch.device(device), precision, plain)


def shapes_of(weights: Weights) -> Shapes:
    """Gives name and shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


class Loader:
    """Takes weights by name and makes parts of them; counts the bytes that a step reads.

    smallest: weights of the smallest matrix of a step.
    """

    def __init__(self, weights: Weights, device: torch.device, precision: str, plain: bool, *, smallest: int) -> None:
        self.weights, self.device = weights, device
        self.precision, self.plain = precision, plain
        self.dtype = torch.bfloat16 if precision == "bf16" and (plain or device.type != "cpu") else torch.float32
        self.num_bytes = 0
        self.row_multiple = 1
        self.all_large = smallest >= ALL_INT8_FROM

    def take(self, name: str) -> torch.Tensor:
        """Gives a copy: what a file is mapped to lies on odd addresses, where products are several times as slow."""
        return self.weights[name].detach().to(self.device, torch.float32, copy=True)

    def maybe(self, name: str, wanted: bool) -> torch.Tensor | None:
        """Gives what `take` gives, None where it is not wanted."""
        return self.take(name) if wanted else None

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """Gives the kernel for a matrix of a step, [out, in]."""
        made = make_linear(weight, bias, self.precision, plain=self.plain, all_large=self.all_large)
        self.num_bytes += made.num_bytes
        if self.device.type == "cpu" and not made.takes_any_rows:
            self.row_multiple = ROW_MULTIPLE
        return made

    def once(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """Gives the kernel for a matrix that is used once a generation, not by a step."""
        before = self.num_bytes
        made = self.linear(weight, bias)
        self.num_bytes = before
        return made


class _TransformerLoader(Loader):
    """Makes the parts of audiocraft's transformer."""

    def __init__(self, arch: Architecture, weights: Weights, device: torch.device, precision: str, plain: bool) -> None:
        smallest = arch.dim * min(arch.dim, arch.num_codebooks * arch.card)
        super().__init__(weights, device, precision, plain, smallest=smallest)
        self.arch = arch

    def norm(self, name: str, scale: float = 1.0) -> LayerNorm:
        weight, bias = self.take(f"{name}.weight") * scale, self.take(f"{name}.bias") * scale
        return LayerNorm(weight.to(self.dtype), bias.to(self.dtype))

    def scaled(self, name: str, scale_name: str, has_bias: bool) -> Linear:
        """Gives the linear `name` with the layer's gate multiplied into it."""
        weight, bias = self.take(f"{name}.weight"), self.maybe(f"{name}.bias", has_bias)
        if self.arch.layer_scale:
            gate = self.take(f"{scale_name}.scale")
            weight, bias = weight * gate[:, None], None if bias is None else bias * gate
        return self.linear(weight, bias)

    def projection(self, name: str, queries: int, qk_norm: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gives weight and bias of the packed projection, the first `queries` outputs scaled by 1/sqrt(head_dim)."""
        weight = self.take(f"{name}.in_proj_weight")
        bias = self.maybe(f"{name}.in_proj_bias", self.arch.bias_attn)
        if not qk_norm:
            weight[:queries] *= self.arch.head_dim**-0.5
            if bias is not None:
                bias[:queries] *= self.arch.head_dim**-0.5
        return weight, bias

    def attention(self, name: str) -> SelfAttention:
        arch = self.arch
        inner = name if arch.own_attention else f"{name}.mha"
        return SelfAttention(
            project_in=self.linear(*self.projection(inner, arch.dim, arch.qk_norm)),
            project_out=self.scaled(f"{inner}.out_proj", f"{_layer_of(name)}.layer_scale_1", arch.bias_attn),
            num_heads=arch.num_heads,
            num_kv_heads=arch.num_kv_heads,
            head_dim=arch.head_dim,
            rotates=arch.uses_rope,
            q_norm=self.norm(f"{name}.q_layer_norm", arch.head_dim**-0.5) if arch.qk_norm else None,
            k_norm=self.norm(f"{name}.k_layer_norm") if arch.qk_norm else None,
        )

    def cross(self, name: str) -> CrossAttention:
        arch, d = self.arch, self.arch.dim
        inner = name if arch.own_attention else f"{name}.mha"
        weight, bias = self.projection(inner, d, arch.qk_norm_cross)
        kv = self.once(weight[d:], None if bias is None else bias[d:])
        return CrossAttention(
            project_q=self.linear(weight[:d], None if bias is None else bias[:d]),
            project_kv=kv,
            project_out=self.scaled(f"{inner}.out_proj", f"{_layer_of(name)}.layer_scale_cross", arch.bias_attn),
            num_heads=arch.num_heads,
            head_dim=arch.head_dim,
            q_norm=self.norm(f"{name}.q_layer_norm", arch.head_dim**-0.5) if arch.qk_norm_cross else None,
            k_norm=self.norm(f"{name}.k_layer_norm") if arch.qk_norm_cross else None,
        )

    def activation(self) -> Part:
        if self.arch.activation != "gelu":
            return F.relu
        return F.gelu if self.plain or self.device.type != "cpu" else gelu

    def block(self, index: int) -> Block:
        arch, name = self.arch, f"transformer.layers.{index}"
        inner = self.linear(self.take(f"{name}.linear1.weight"), self.maybe(f"{name}.linear1.bias", arch.bias_ff))
        outer = self.scaled(f"{name}.linear2", f"{name}.layer_scale_2", arch.bias_ff)
        crosses = arch.has_cross_attention
        return Block(
            attention=self.attention(f"{name}.self_attn"),
            attention_norm=self.norm(f"{name}.norm1"),
            feed_forward=FeedForward(inner, outer, self.activation()),
            feed_forward_norm=self.norm(f"{name}.norm2"),
            cross=self.cross(f"{name}.cross_attention") if crosses else None,
            cross_norm=self.norm(f"{name}.norm_cross") if crosses else None,
            norm_first=arch.norm_first,
        )


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]


def transformer_lm(
    config: Mapping[str, Any], weights: Weights, device: torch.device, precision: str, plain: bool
) -> Network:
    """Gives audiocraft's transformer."""
    arch = read_architecture(config)
    loader = _TransformerLoader(arch, weights, device, precision, plain)
    books = range(arch.num_codebooks)
    head = torch.cat([loader.take(f"linears.{k}.weight") for k in books])
    bias = torch.cat([loader.take(f"linears.{k}.bias") for k in books]) if arch.bias_proj else None
    made = Network(
        arch=arch,
        embedding=torch.cat([loader.take(f"emb.{k}.weight") for k in books]).to(loader.dtype),
        blocks=tuple(loader.block(index) for index in range(arch.num_layers)),
        out_norm=loader.norm("out_norm") if arch.norm_first else None,
        heads=loader.linear(head, bias),
        precision=precision,
        num_bytes=0,
        row_multiple=1,
    )
    return replace(made, num_bytes=loader.num_bytes, row_multiple=loader.row_multiple)


backbones.register("transformer_lm")(Backbone(read_architecture, transformer_lm))
