"""The soft-alignment U-Net: a condition is heard by attention, and steers every block by FiLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from micro_musicgen.diffusion.denoiser import Denoiser, DenoiserShape, Told, check_frames, denoisers
from micro_musicgen.diffusion.film import Film
from micro_musicgen.diffusion.frame_layers import ClipNorm, FrameConv, FrameUp
from micro_musicgen.diffusion.soft_alignment import Heard, Shares, SoftAlignment, mixings
from micro_musicgen.diffusion.time_embedding import sinusoidal
from micro_musicgen.errors import MicroMusicGenError

NAME = "soft_alignment_unet"


@dataclass(frozen=True, kw_only=True)
class UNetSection:
    """The section `denoiser.soft_alignment_unet`; its yaml says what each key means."""

    base_channels: int
    levels: int
    heads: int
    window: int
    time_dim: int
    rope_base: float
    mixing: str
    bottleneck_residual: bool
    film: Literal["mean", "per_frame"]
    film_one_plus: bool
    mask_edges: bool
    shared_norm: bool
    time_mlp_everywhere: bool

    @staticmethod
    def read(section: Mapping[str, Any]) -> UNetSection:
        """Gives the section of a config.

        Raises:
            MicroMusicGenError: keys that are missing or that nobody reads, or values that don't go together.
        """
        known = {field.name: field.type for field in fields(UNetSection)}
        wrong = [f"{key} is not a key" for key in section if key not in known]
        wrong += [f"{key} is missing" for key in known if key not in section]
        if not wrong:
            wrong = [_wrong_type(key, kind, section[key]) for key, kind in known.items()]
            wrong = [text for text in wrong if text] or _wrong_values(section)
        if wrong:
            raise MicroMusicGenError(f"denoiser.{NAME}: {'; '.join(wrong)}")
        return UNetSection(**{str(key): value for key, value in section.items()})


def _wrong_type(key: str, kind: Any, value: Any) -> str:
    """Gives what is wrong with a value's type, or nothing."""
    if kind == "bool":
        return "" if isinstance(value, bool) else f"{key}={value} has to be true or false"
    if kind == "int":
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return "" if whole else f"{key}={value} has to be a whole number of at least 1"
    if kind == "float":
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 1
        return "" if number else f"{key}={value} has to be a number above 1"
    return "" if isinstance(value, str) else f"{key}={value} has to be a word"


def _wrong_values(section: Mapping[str, Any]) -> list[str]:
    """Gives what doesn't go together in a section of the right types."""
    wrong = []
    base, heads, levels = section["base_channels"], section["heads"], section["levels"]
    if base % (2 * heads):
        wrong.append(f"base_channels={base} is no multiple of 2 * heads, {2 * heads}: heads turn pairs of features")
    if levels > 8:
        wrong.append(f"levels={levels} doubles the channels too often; use 8 or fewer")
    if section["time_dim"] % 2:
        wrong.append(f"time_dim={section['time_dim']} has to be even")
    if section["film"] not in ("mean", "per_frame"):
        wrong.append(f"film={section['film']} has to be mean or per_frame")
    if section["mixing"] not in mixings:
        wrong.append(f"mixing={section['mixing']} is unknown; known: {', '.join(mixings)}")
    return wrong


class ResBlock(nn.Module):
    """Norm, convolution, FiLM, norm, convolution, beside the input itself: [B, T, C] to [B, T, C]."""

    def __init__(self, channels: int, section: UNetSection) -> None:
        super().__init__()
        self.norm = ClipNorm(channels)
        self.conv = FrameConv(channels, channels, kernel=3)
        self.film = Film(section.time_dim, channels, channels, one_plus=section.film_one_plus)
        self.second_norm = None if section.shared_norm else ClipNorm(channels)
        self.second_conv = FrameConv(channels, channels, kernel=3)

    def forward(self, x: torch.Tensor, time: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """Gives the features that follow x; guide: context of as many channels, of T frames or of one for all."""
        h = self.film(self.conv(F.silu(self.norm(x))), time, guide)
        second_norm = self.norm if self.second_norm is None else self.second_norm
        result: torch.Tensor = x + self.second_conv(F.silu(second_norm(h)))
        return result


class Down(nn.Module):
    """Halves the frames and doubles the channels. x and its context go through the same one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, 2 * channels, kernel=4, stride=2)
        self.norm = ClipNorm(2 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives [B, T / 2, 2 C] of x [B, T, C]."""
        return F.silu(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """Aligns the coarsest features with their context once more, then a block.

    residual: what is heard is added to the features; otherwise it takes their place, as published.
    """

    def __init__(self, channels: int, section: UNetSection) -> None:
        super().__init__()
        self.residual = section.bottleneck_residual
        self.project_x = nn.Linear(channels, channels)
        self.project_context = nn.Linear(channels, channels)
        self.align = _alignment(channels, section)
        self.block = ResBlock(channels, section)

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, time: torch.Tensor, guide: torch.Tensor, shares: Shares
    ) -> torch.Tensor:
        """Gives the features that follow x [B, T, C], with context [B, T, C]."""
        aligned = self.align(self.project_x(x), self.align.hear(self.project_context(context)), shares)
        result: torch.Tensor = self.block(x + aligned if self.residual else aligned, time, guide)
        return result


class Up(nn.Module):
    """Doubles the frames, puts the skip beside them, then a block.

    channels: of the skip; x and context come with `channels_in`, both leave with 2 * channels. Under film=mean the
    context is its mean, its first and its last frame: only the mean is looked at, and that has a closed form.
    """

    def __init__(self, channels_in: int, channels: int, section: UNetSection) -> None:
        super().__init__()
        self.has_ends = section.film == "mean"
        self.up = FrameUp(channels_in, channels)
        self.context_up = FrameUp(channels_in, 2 * channels)
        self.block = ResBlock(2 * channels, section)

    def forward(
        self, x: torch.Tensor, skip: torch.Tensor, time: torch.Tensor, context: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives features [B, 2 T, 2 C] of x [B, T, channels_in] and skip [B, 2 T, C], and their context."""
        context = self.context_up.ends(context, x.shape[1]) if self.has_ends else self.context_up(context)
        guide = context[:, :1] if self.has_ends else context
        return self.block(torch.cat([self.up(x), skip], dim=-1), time, guide), context


class SoftAlignmentUNet(Denoiser):
    """Three levels by default: features 64, 128, 256, then 512 at an eighth of the rate, and back with skips.

    The condition never lies beside x: x asks it by attention, and what it hears is the context that modulates every
    block. With C base channels, L levels, E = time_dim, D and Dc channels of x and of the condition, one norm a block,
    and block(n) = 8 n^2 + (2 E + 8) n, align(n) = 8 n^2 + 8 n, the parameters are

        3 C (D + Dc) + 2 C + 8 E^2 + 5 E + align(C) + 2 C E + 2 C^2 + 4 C         encoders, time, input
        + sum over n = C, 2 C .. 2^(L-1) C of block(n) + 8 n^2 + 6 n                          down
        + align(M) + 2 M^2 + 2 M + block(M), M = 2^L C                                        bottleneck
        + sum over the same n of block(2 n) + 12 n m + 3 n, m = min(4 n, M)                   up
        + 2 C^2 + C + C D + D                                                                 out

    and 2 n more for a second norm in a block(n).
    """

    def __init__(self, section: UNetSection, shape: DenoiserShape) -> None:
        super().__init__()
        self.section, self.schedule = section, shape.schedule
        self.mixing = mixings.get(section.mixing)
        self.stride = 2**section.levels
        base, time_dim = section.base_channels, section.time_dim
        widths = [base * 2**level for level in range(section.levels)]
        self.encode_x = FrameConv(shape.channels, base, kernel=3)
        self.encode_condition = FrameConv(shape.condition_channels, base, kernel=3)
        self.time = nn.Sequential(nn.Linear(time_dim, 4 * time_dim), nn.SiLU(), nn.Linear(4 * time_dim, time_dim))
        self.align = _alignment(base, section)
        self.film = Film(time_dim, base, base, one_plus=section.film_one_plus)
        self.blocks = nn.ModuleList(ResBlock(width, section) for width in widths)
        self.downs = nn.ModuleList(Down(width) for width in widths)
        middle = base * self.stride
        self.bottleneck = Bottleneck(middle, section)
        self.ups = nn.ModuleList(Up(min(4 * width, middle), width, section) for width in reversed(widths))
        self.mix = nn.Linear(2 * base, base)
        self.out = nn.Linear(base, shape.channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def hear(self, told: Told) -> Heard:
        """Gives keys and values of the condition."""
        assert told.aligned is not None
        return self.align.hear(self.encode_condition(told.aligned.transpose(1, 2)))

    def forward(self, x: torch.Tensor, t: torch.Tensor, heard: Heard) -> torch.Tensor:
        """Gives the prediction [B, D, T].

        Raises:
            MicroMusicGenError: T is no multiple of the stride, or is not the condition's.
        """
        num_frames = x.shape[-1]
        check_frames(num_frames, self.stride)
        if heard.local_keys.shape[-2] != num_frames:
            raise MicroMusicGenError(f"{num_frames} frames don't fit a condition of {heard.local_keys.shape[-2]}")
        shares = self.mixing(self.schedule, t)
        raw_time = sinusoidal(t, self.section.time_dim).to(self.mix.weight.dtype)
        time = self.time(raw_time)
        h = self.encode_x(x.transpose(1, 2))
        context = self.align(h, heard, shares)
        h = self.film(h, time, self._guide(context))
        return self._levels(h, context, time if self.section.time_mlp_everywhere else raw_time, shares)

    def _levels(self, h: torch.Tensor, context: torch.Tensor, time: torch.Tensor, shares: Shares) -> torch.Tensor:
        """Gives [B, D, T] of modulated features h and context, [B, T, C] each."""
        skips = []
        for block, down in zip(self.blocks, self.downs, strict=True):
            h = block(h, time, self._guide(context))
            skips.append(h)
            h, context = down(torch.cat([h, context])).chunk(2)
        h = self.bottleneck(h, context, time, self._guide(context), shares)
        if self.section.film == "mean":
            context = torch.stack([context.mean(dim=1), context[:, 0], context[:, -1]], dim=1)
        for up in self.ups:
            h, context = up(h, skips.pop(), time, context)
        prediction: torch.Tensor = self.out(self.mix(h))
        return prediction.transpose(1, 2)

    def _guide(self, context: torch.Tensor) -> torch.Tensor:
        """Gives what FiLM looks at: context [B, T, C] frame by frame, or its mean [B, 1, C]."""
        return context.mean(dim=1, keepdim=True) if self.section.film == "mean" else context


def _alignment(channels: int, section: UNetSection) -> SoftAlignment:
    return SoftAlignment(
        channels,
        section.heads,
        window=section.window,
        mask_edges=section.mask_edges,
        rope_base=section.rope_base,
    )


@denoisers.register(NAME)
def make_unet(section: Mapping[str, Any], shape: DenoiserShape) -> SoftAlignmentUNet:
    """Gives the network of the section `denoiser.soft_alignment_unet`.

    Raises:
        MicroMusicGenError: unknown keys, values that don't go together, no condition, or a text.
    """
    if not shape.condition_channels:
        raise MicroMusicGenError(f"denoiser.name={NAME} needs a condition; use denoiser.name=dit without one")
    if shape.text_channels:
        raise MicroMusicGenError(f"denoiser.name={NAME} hears no text; use denoiser.name=dit with text=cross or joint")
    return SoftAlignmentUNet(UNetSection.read(section), shape)
