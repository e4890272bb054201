"""The decoder of a codec by its sizes, its layers, and the tensors that they need.

Everything is whole numbers, so a decoder can be compared with the weights in a file before a tensor is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ConvSpec:
    """A convolution of stride 1, or (`stride` > 1 or `transposed`) a transposed one of kernel 2 * stride.

    name: of its module in the state dict. left, right: samples of padding, or cut off where transposed.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    dilation: int
    left: int
    right: int
    normed: bool
    transposed: bool = False

    @property
    def span(self) -> int:
        """Samples before and after the present one that it looks at, together."""
        return (self.kernel - 1) * self.dilation

    @property
    def stride(self) -> int:
        """Samples made of one."""
        return self.kernel // 2 if self.transposed else 1

    def shapes(self) -> Shapes:
        """Gives the tensors it needs by their names in the state dict, weight norm in torch's first form."""
        sides = (self.in_channels, self.out_channels) if self.transposed else (self.out_channels, self.in_channels)
        weight = (*sides, self.kernel)
        weights = {"weight_g": (sides[0], 1, 1), "weight_v": weight} if self.normed else {"weight": weight}
        return {f"{self.name}.{key}": shape for key, shape in {"bias": (self.out_channels,), **weights}.items()}


@dataclass(frozen=True)
class BlockSpec:
    """A residual block: two convolutions beside the input itself, or beside a third convolution of it."""

    first: ConvSpec
    second: ConvSpec
    shortcut: ConvSpec | None


@dataclass(frozen=True)
class StageSpec:
    """One step up in rate: a transposed convolution and the residual blocks behind it."""

    up: ConvSpec
    blocks: tuple[BlockSpec, ...]


@dataclass(frozen=True)
class DecoderSpec:
    """The decoder that a config describes, checked. Sizes are positive and every convolution's reach is bounded."""

    sample_rate: int
    channels: int
    dimension: int
    ratios: tuple[int, ...]
    num_codebooks: int
    cardinality: int
    pad_mode: str
    activation: tuple[str, dict[str, Any]]
    final_activation: tuple[str, dict[str, Any]] | None
    lstm_layers: int
    lstm_name: str
    first: ConvSpec
    stages: tuple[StageSpec, ...]
    last: ConvSpec

    @property
    def hop_samples(self) -> int:
        """Samples of one frame."""
        return prod(self.ratios)

    def convolutions(self) -> Iterator[ConvSpec]:
        """Gives all convolutions, from codes to audio."""
        yield self.first
        for stage in self.stages:
            yield stage.up
            for block in stage.blocks:
                yield from (conv for conv in (block.first, block.second, block.shortcut) if conv is not None)
        yield self.last

    def shapes(self) -> Shapes:
        """Gives name and shape of every tensor that decoding needs."""
        wanted: Shapes = {}
        for conv in self.convolutions():
            wanted |= conv.shapes()
        width = self.first.out_channels
        for layer in range(self.lstm_layers):
            for side in ("ih", "hh"):
                wanted[f"{self.lstm_name}.weight_{side}_l{layer}"] = (4 * width, width)
                wanted[f"{self.lstm_name}.bias_{side}_l{layer}"] = (4 * width,)
        for level in range(self.num_codebooks):
            wanted[codebook_name(level)] = (self.cardinality, self.dimension)
        return wanted

    @property
    def lookahead_frames(self) -> int:
        """Frames behind frame t that the samples of frame t depend on."""
        reach = self.hop_samples - 1 + self.last.right
        for stage in reversed(self.stages):
            reach += sum(block.first.right + block.second.right for block in stage.blocks)
            reach = (reach + stage.up.left) // stage.up.stride
        return reach + self.first.right


def codebook_name(level: int) -> str:
    """Gives the name of a codebook's entries in the state dict."""
    return f"quantizer.vq.layers.{level}._codebook.embed"


def check_state(spec: DecoderSpec, shapes: Shapes, *, source: str) -> None:
    """Refuses tensors that are not exactly those that decoding needs; an encoder's and training's are left aside.

    shapes: of all tensors, weight norm in torch's first form (see `classic_names`).

    Raises:
        MicroMusicGenError: naming `source` and the first difference.
    """
    wanted = spec.shapes()
    present = [name for name in shapes if name.startswith("decoder.") or name.endswith("._codebook.embed")]
    for name in [*wanted, *present]:
        if wanted.get(name) != shapes.get(name):
            here, there = shapes.get(name, "missing"), wanted.get(name, "nothing")
            raise MicroMusicGenError(
                f"{source} does not hold the model that its config describes: {name} is {here}, expected {there}"
            )


def classic_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives `state` with torch's newer names of weight norm put back to those that published weights have."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        renamed[name.replace("parametrizations.weight.original1", "weight_v")] = tensor
    return renamed
