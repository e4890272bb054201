"""What a codec's config says about its decoder, checked value by value.

A config that asks for more weights than there are, or than a machine has room for, is refused before any is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from micro_musicgen.engine.decoder_spec import BlockSpec, ConvSpec, DecoderSpec, StageSpec
from micro_musicgen.errors import MicroMusicGenError

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
