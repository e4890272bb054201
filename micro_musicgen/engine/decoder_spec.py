"""What a codec's config says about its decoder: sizes, layers, and the tensors that they need.

Everything is computed in whole numbers before a tensor is touched, so a config that lies about its weights, or asks for
more of them than a machine has, is refused at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any

from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]

POINTWISE = frozenset(
    "ELU CELU SELU ReLU ReLU6 LeakyReLU GELU SiLU Mish Tanh Sigmoid LogSigmoid Softplus Softsign Softshrink Hardshrink "
    "Tanhshrink Hardtanh Hardswish Hardsigmoid Threshold Identity".split()
)
"""Classes of torch.nn that look at one number at a time and have no weights: all that a stream can use."""

PAD_MODES = frozenset({"constant", "reflect", "replicate"})
MAX_SPAN = 1 << 20
"""Longest reach of one convolution, in its own samples. Dilation appears in no shape, so it has a limit of its own."""

_SEANET_KEYS = (
    "channels dimension n_filters n_residual_layers ratios activation activation_params norm norm_params kernel_size "
    "last_kernel_size residual_kernel_size dilation_base causal pad_mode true_skip compress lstm "
    "disable_norm_outer_blocks trim_right_ratio final_activation final_activation_params"
).split()
_SEANET_DEFAULTS: dict[str, Any] = {
    "channels": 1, "dimension": 128, "n_filters": 32, "n_residual_layers": 3, "ratios": [8, 5, 4, 2],
    "activation": "ELU", "activation_params": {"alpha": 1.0}, "norm": "none", "norm_params": {}, "kernel_size": 7,
    "last_kernel_size": 7, "residual_kernel_size": 3, "dilation_base": 2, "causal": False, "pad_mode": "reflect",
    "true_skip": True, "compress": 2, "lstm": 0, "disable_norm_outer_blocks": 0, "trim_right_ratio": 1.0,
    "final_activation": None, "final_activation_params": None,
}  # fmt: skip


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


class _Reader:
    """Takes typed values out of a config section; every fault names the key and its value."""

    def __init__(self, section: Mapping[str, Any], source: str) -> None:
        self.section, self.source = section, source

    def fault(self, key: str, wanted: str) -> MicroMusicGenError:
        return MicroMusicGenError(f"{self.source}: the config says {key} {self.section.get(key)!r}, expected {wanted}")

    def whole(self, key: str, lowest: int, highest: int = 1 << 31) -> int:
        value = self.section.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise self.fault(key, f"a whole number from {lowest} to {highest}")
        return value

    def flag(self, key: str) -> bool:
        value = self.section.get(key)
        if not isinstance(value, bool):
            raise self.fault(key, "true or false")
        return value

    def ratios(self) -> tuple[int, ...]:
        value: Any = self.section.get("ratios")
        listed = isinstance(value, list | tuple) and 0 < len(value) <= 16
        if not listed or not all(type(ratio) is int and 0 < ratio < MAX_SPAN for ratio in value):
            raise self.fault("ratios", f"1 to 16 whole numbers below {MAX_SPAN}")
        return tuple(value)

    def activation(self, key: str) -> tuple[str, dict[str, Any]]:
        name, params = self.section.get(key), self.section.get(f"{key}_params") or {}
        if name not in POINTWISE or not isinstance(params, Mapping):
            raise self.fault(key, "a class of torch.nn that works number by number, with its parameters as a mapping")
        return str(name), dict(params)


def decoder_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the arguments of the decoder: the autoencoder's, with those that the config sets for the decoder alone."""
    seanet = config.get("seanet") or {}
    plain = {key: value for key, value in seanet.items() if key not in ("encoder", "decoder")}
    return {**_SEANET_DEFAULTS, **plain, **(seanet.get("decoder") or {})}


def can_stream(config: Mapping[str, Any]) -> bool:
    """Says whether the decoder is one that gives the same audio piece by piece as at once."""
    encodec = config.get("encodec") or {}
    kind = (config.get("compression_model"), encodec.get("autoencoder"), encodec.get("quantizer"))
    if kind != ("encodec", "seanet", "rvq") or encodec.get("renormalize") or encodec.get("renorm"):
        return False
    section = decoder_section(config)
    activations = {section["activation"], section["final_activation"] or "Identity"}
    known = set(section) <= set(_SEANET_KEYS)
    normed = section["norm"] in ("none", "weight_norm")
    return known and normed and section["pad_mode"] in PAD_MODES and activations <= POINTWISE


def parse_decoder(config: Mapping[str, Any], num_tensors: int, *, source: str) -> DecoderSpec:
    """Gives the decoder that `config` (see `codec.builder.codec_config`) describes.

    num_tensors: how many there are; a config that repeats a part more often is refused.

    Raises:
        MicroMusicGenError: a decoder that this engine has no form for, or a value out of range.
    """
    if not can_stream(config):
        raise MicroMusicGenError(f"{source}: the config describes a codec that only audiocraft's modules can decode")
    read = _Reader(decoder_section(config), source)
    rvq = _Reader(config.get("rvq") or {}, source)
    encodec = _Reader(config.get("encodec") or {}, source)
    causal, ratios = read.flag("causal"), read.ratios()
    trim = read.section["trim_right_ratio"]
    if isinstance(trim, bool) or not isinstance(trim, int | float) or not 0 <= trim <= 1 or (not causal and trim != 1):
        raise read.fault("trim_right_ratio", "0 to 1 for a causal decoder, 1 for any other")
    maker = _Layers(read, ratios, causal, float(trim), num_tensors)
    first, stages, last = maker.build()
    final = None if read.section["final_activation"] is None else read.activation("final_activation")
    spec = DecoderSpec(
        sample_rate=encodec.whole("sample_rate", 1),
        channels=last.out_channels,
        dimension=first.in_channels,
        ratios=ratios,
        num_codebooks=rvq.whole("n_q", 1, num_tensors),
        cardinality=rvq.whole("bins", 1),
        pad_mode=str(read.section["pad_mode"]),
        activation=read.activation("activation"),
        final_activation=final,
        lstm_layers=maker.lstm_layers,
        lstm_name="decoder.model.1.lstm",
        first=first,
        stages=stages,
        last=last,
    )
    spans = {conv.name: conv.span for conv in spec.convolutions()}
    widest = max(spans, key=lambda name: spans[name])
    if spans[widest] > MAX_SPAN:
        raise MicroMusicGenError(f"{source}: {widest} would reach over {spans[widest]} samples, at most {MAX_SPAN} can")
    return spec


class _Layers:
    """Walks through audiocraft's SEANetDecoder in the order of its modules, which their names count."""

    def __init__(self, read: _Reader, ratios: tuple[int, ...], causal: bool, trim: float, num_tensors: int) -> None:
        self.read, self.ratios, self.causal, self.trim = read, ratios, causal, trim
        self.filters, self.compress = read.whole("n_filters", 1), read.whole("compress", 1)
        self.lstm_layers = read.whole("lstm", 0, num_tensors)
        self.residual_layers = read.whole("n_residual_layers", 0, num_tensors)
        self.num_blocks = len(ratios) + 2
        self.unnormed = read.whole("disable_norm_outer_blocks", 0, self.num_blocks)
        self.index = 0

    def normed(self, block: int) -> bool:
        """block: counted from the output, which is 1; those below `disable_norm_outer_blocks` have no norm."""
        return self.read.section["norm"] == "weight_norm" and self.unnormed < block

    def conv(self, name: str, sides: tuple[int, int], kernel: int, normed: bool, dilation: int = 1) -> ConvSpec:
        total = (kernel - 1) * dilation
        right = 0 if self.causal else total // 2
        return ConvSpec(f"decoder.model.{name}", *sides, kernel, dilation, total - right, right, normed)

    def up(self, width: int, ratio: int, normed: bool) -> ConvSpec:
        right = ceil(ratio * self.trim) if self.causal else ratio // 2
        name = f"decoder.model.{self.index}.convtr.convtr"
        return ConvSpec(name, width, width // 2, 2 * ratio, 1, ratio - right, right, normed, transposed=True)

    def block(self, width: int, dilation: int, normed: bool) -> BlockSpec:
        hidden, kernel, index = width // self.compress, self.read.whole("residual_kernel_size", 1), self.index
        if hidden < 1:
            raise self.read.fault("compress", f"at most {width}, the width of the narrowest residual block")
        shortcut = None
        if not self.read.flag("true_skip"):
            shortcut = self.conv(f"{index}.shortcut.conv.conv", (width, width), 1, normed)
        return BlockSpec(
            self.conv(f"{index}.block.1.conv.conv", (width, hidden), kernel, normed, dilation),
            self.conv(f"{index}.block.3.conv.conv", (hidden, width), 1, normed),
            shortcut,
        )

    def build(self) -> tuple[ConvSpec, tuple[StageSpec, ...], ConvSpec]:
        """Gives the first convolution, the stages and the last convolution."""
        read, stages = self.read, []
        width = self.filters << len(self.ratios)
        sides = (read.whole("dimension", 1), width)
        first = self.conv("0.conv.conv", sides, read.whole("kernel_size", 1), self.normed(self.num_blocks))
        self.index = 1 + (self.lstm_layers > 0)
        base = read.whole("dilation_base", 1)
        for number, ratio in enumerate(self.ratios):
            normed = self.normed(self.num_blocks - 1 - number)
            self.index += 1  # the activation
            up = self.up(width, ratio, normed)
            width //= 2
            blocks = []
            for depth in range(self.residual_layers):
                self.index += 1
                # Kept small enough to be a number at all: base ** 10**9 would be one of a gigabyte.
                dilation = min(base ** min(depth, 64), 1 << 40)
                blocks.append(self.block(width, dilation, normed))
            self.index += 1
            stages.append(StageSpec(up, tuple(blocks)))
        self.index += 1  # the last activation
        sides = (self.filters, read.whole("channels", 1))
        last = self.conv(f"{self.index}.conv.conv", sides, read.whole("last_kernel_size", 1), self.normed(1))
        return first, tuple(stages), last
