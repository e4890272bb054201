"""A diffusion transformer over patches of frames (Peebles and Xie, 2023): time by AdaLN-zero, rotary positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from micro_musicgen.conditioners.settings import read_settings
from micro_musicgen.diffusion.attention import CrossAttention, Heads, SelfAttention, TextKeys
from micro_musicgen.diffusion.denoiser import Denoiser, DenoiserShape, Told, check_frames, denoisers
from micro_musicgen.diffusion.hierarchy import Hierarchy
from micro_musicgen.diffusion.rope import Rope
from micro_musicgen.diffusion.time_embedding import make_time_embedding, time_embeddings
from micro_musicgen.errors import MicroMusicGenError

SOURCE = "denoiser.dit"
PATCH_SIZES = (1, 2, 4)
TEXT = ("none", "cross", "joint")


@dataclass(frozen=True, kw_only=True)
class DiTSettings:
    """The section `denoiser.dit`; config/model/denoiser/dit.yaml says what each key means."""

    dim: int
    depth: int
    num_heads: int
    head_dim: int
    num_kv_heads: int
    mlp_dim: int
    dropout: float
    patch_size: int
    hierarchy: bool | dict  # type: ignore[type-arg]  # read_settings knows plain names
    text: str
    time_embedding: str
    rope_base: float

    def __post_init__(self) -> None:
        """Refuses values that don't go together, all of them at once."""
        faults = [
            f"{name} is {getattr(self, name)}, expected at least 1"
            for name in ("dim", "depth", "num_heads", "head_dim", "num_kv_heads", "mlp_dim")
            if getattr(self, name) < 1
        ]
        if self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads:
            faults.append(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        faults += [f"{name} {value} has to be even" for name, value in self._pairs() if value % 2]
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout is {self.dropout}, expected 0 <= dropout < 1")
        if self.rope_base <= 1:
            faults.append(f"rope_base is {self.rope_base}, expected more than 1")
        for name, value, known in (
            ("patch_size", self.patch_size, PATCH_SIZES),
            ("text", self.text, TEXT),
            ("time_embedding", self.time_embedding, tuple(time_embeddings)),
        ):
            if value not in known:
                faults.append(f"{name} is {value!r}, expected one of {', '.join(map(str, known))}")
        faults += self._hierarchy_faults()
        if faults:
            raise MicroMusicGenError(f"{SOURCE}: {'; '.join(faults)}")

    def _pairs(self) -> tuple[tuple[str, int], ...]:
        return ("dim", self.dim), ("head_dim", self.head_dim)

    def _hierarchy_faults(self) -> list[str]:
        given = self.hierarchy
        if given is False:
            return []
        if given is True or set(given) != {"factor", "depth"} or not all(type(n) is int for n in given.values()):
            return [f"hierarchy is {given}, expected false or {{factor: 2, depth: blocks at the lower rate}}"]
        faults = []
        if given["factor"] < 2:
            faults.append(f"hierarchy.factor is {given['factor']}, expected at least 2")
        if not 1 <= given["depth"] < self.depth:
            faults.append(
                f"hierarchy.depth is {given['depth']}, expected 1 to {self.depth - 1} of the {self.depth} blocks"
            )
        return faults

    @property
    def factor(self) -> int:
        """Patches that become one in the middle."""
        return int(self.hierarchy["factor"]) if isinstance(self.hierarchy, dict) else 1

    @property
    def inner(self) -> range:
        """The blocks that run at the lower rate; the rest stand around them, the odd one before."""
        depth = int(self.hierarchy["depth"]) if isinstance(self.hierarchy, dict) else 0
        first = (self.depth - depth + 1) // 2
        return range(first, first + depth)

    @property
    def num_modulations(self) -> int:
        """Vectors that a block gets from the time: shift, scale and gate of each of its parts."""
        return 9 if self.text == "cross" else 6


@dataclass(frozen=True)
class Heard:
    """What a `DiT` makes of what it is told. aligned: [B, N, dim], its part of the patches. text: one a block."""

    aligned: torch.Tensor | None
    text: tuple[TextKeys, ...] | None


class Block(nn.Module):
    """Attention, attention to a text where there is one of its own, and a feed-forward part; each before a norm.

    Invariant: with gates of zero it gives what it gets.
    """

    def __init__(self, settings: DiTSettings, heads: Heads, rope: Rope, text_channels: int) -> None:
        super().__init__()
        joint = text_channels if settings.text == "joint" else 0
        self.attention = SelfAttention(settings.dim, heads, rope, joint)
        self.cross = CrossAttention(settings.dim, heads, text_channels) if settings.text == "cross" else None
        self.up = nn.Linear(settings.dim, settings.mlp_dim)
        self.down = nn.Linear(settings.mlp_dim, settings.dim)
        self.dropout = settings.dropout

    def hear(self, text: torch.Tensor, mask: torch.Tensor) -> TextKeys:
        """Gives the keys of a text [B, S, E]; mask: bool [B, S]."""
        return (self.cross or self.attention).hear(text, mask)

    def forward(self, x: torch.Tensor, modulation: tuple[torch.Tensor, ...], text: TextKeys | None) -> torch.Tensor:
        """Gives [B, N, dim] of x [B, N, dim]; modulation: [B, 1, dim] each."""
        shift, scale, gate, *others = modulation
        own_text = text if self.cross is None else None
        x = torch.addcmul(x, gate, self._dropped(self.attention(modulated(x, shift, scale), own_text)))
        if self.cross is not None:
            shift, scale, gate, *others = others
            assert text is not None
            x = torch.addcmul(x, gate, self._dropped(self.cross(modulated(x, shift, scale), text)))
        shift, scale, gate = others
        hidden = functional.gelu(self.up(modulated(x, shift, scale)))  # the tanh form is slower, on a CPU
        return torch.addcmul(x, gate, self._dropped(self.down(self._dropped(hidden))))

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, self.dropout) if self.dropout and self.training else x


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Gives x [B, N, dim], normalised over its features, times 1 + scale, plus shift, [B, 1, dim] both."""
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:]), 1 + scale)


class DiT(Denoiser):
    """A transformer over patches of p frames. With d = dim, h = num_heads * head_dim, g = num_kv_heads * head_dim,
    m = mlp_dim, n = depth, D, Dc and E channels of frames, condition and text, it has as many parameters as the sum of

        p (2 D + Dc) d + d + p D                    patches in and out
        D (d + 1)                                   share of x in the prediction
        2 d (d + 1)                                 time; T d more where it is learned
        n d (2 h + 2 g + 2 m + 1) + n m             blocks
        (6 n + 2) d (d + 1)                         AdaLN; 9 n instead of 6 n with cross-attention
        n (2 E g)            with text=joint        n (2 E g + 2 d h)   with text=cross
        2 f d^2 + (f + 1) d  with a hierarchy of factor f

    which `config/model/denoiser/dit.yaml` at D = Dc = 128 makes 52,499,200.
    """

    def __init__(self, settings: DiTSettings, shape: DenoiserShape) -> None:
        super().__init__()
        self.settings = settings
        dim, patch = settings.dim, settings.patch_size
        self.stride = patch * settings.factor
        heads = Heads(settings.num_heads, settings.num_kv_heads, settings.head_dim)
        rope = Rope(settings.head_dim, settings.rope_base)
        # The sum of the two is the projection of both side by side; apart, the condition's is made once a generation.
        self.x_in = nn.Linear(patch * shape.channels, dim)
        self.aligned_in = (
            nn.Linear(patch * shape.condition_channels, dim, bias=False) if shape.condition_channels else None
        )
        self.time = make_time_embedding(settings.time_embedding, dim, shape.schedule.num_timesteps)
        self.time_in, self.time_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        # Of all blocks at once: one product instead of one a block.
        self.modulation = nn.Linear(dim, (settings.depth * settings.num_modulations + 2) * dim)
        self.blocks = nn.ModuleList(Block(settings, heads, rope, shape.text_channels) for _ in range(settings.depth))
        self.hierarchy = Hierarchy(dim, settings.factor) if settings.factor > 1 else None
        self.out = nn.Linear(dim, patch * shape.channels)
        # v and noise are x times a function of t, and something smooth: what the first needs would fill the residual
        # stream of a narrow network. With it 100 steps of a toy decoder (dim 128, patch 2) are worth 200 without.
        self.skip = nn.Linear(dim, shape.channels)
        self._initialise()

    def _initialise(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.skip.weight)

    def hear(self, told: Told) -> Heard:
        """Gives the condition's part of the patches and each block's keys of the text."""
        aligned, text = None, None
        if self.aligned_in is not None:
            assert told.aligned is not None
            check_frames(told.aligned.shape[-1], self.stride)
            aligned = self.aligned_in(self._patches(told.aligned))
        if self.settings.text != "none":
            assert told.text is not None
            embeddings, mask = told.text
            # 0 * NaN is NaN: what stands in the padding must not even be multiplied.
            embeddings = embeddings.masked_fill(~mask[:, :, None], 0)
            text = tuple(block.hear(embeddings, mask) for block in self._blocks())
        return Heard(aligned, text)

    def forward(self, x: torch.Tensor, t: torch.Tensor, heard: Heard) -> torch.Tensor:
        """Gives the prediction [B, D, T] for noisy x [B, D, T] at steps t, int64 [B].

        Raises:
            MicroMusicGenError: T is no multiple of the stride, or the condition has another length.
        """
        check_frames(x.shape[-1], self.stride)
        rows = self.x_in(self._patches(x))
        if heard.aligned is not None:
            if heard.aligned.shape[1] != rows.shape[1]:
                told = heard.aligned.shape[1] * self.settings.patch_size
                raise MicroMusicGenError(f"{x.shape[-1]} frames with a condition of {told}; they have to be as many")
            rows = rows + heard.aligned
        moment = self._moment(t)
        # Shifts, scales and gates, [B, 1, dim] each, of all blocks in turn and then of the end.
        modulations = torch.unflatten(self.modulation(moment), -1, (-1, 1, self.settings.dim)).unbind(1)
        each, inner = self.settings.num_modulations, self.settings.inner
        skip = rows
        for index, block in enumerate(self._blocks()):
            if self.hierarchy is not None and index == inner.start:
                skip, rows = rows, self.hierarchy.down(rows)
            text = None if heard.text is None else heard.text[index]
            rows = block(rows, modulations[index * each : (index + 1) * each], text)
            if self.hierarchy is not None and index == inner.stop - 1:
                rows = self.hierarchy.up(rows, skip)
        rows = self.out(modulated(rows, *modulations[-2:]))
        frames = torch.unflatten(rows, -1, (self.settings.patch_size, -1)).flatten(1, 2).transpose(1, 2)
        return torch.addcmul(frames, self.skip(moment)[:, :, None], x)

    def _blocks(self) -> Iterator[Block]:
        return cast("Iterator[Block]", iter(self.blocks))

    def _patches(self, frames: torch.Tensor) -> torch.Tensor:
        """Gives [B, T / p, p * D] of frames [B, D, T], frame by frame."""
        return torch.unflatten(frames.transpose(1, 2), 1, (-1, self.settings.patch_size)).flatten(2)

    def _moment(self, t: torch.Tensor) -> torch.Tensor:
        """Gives what the network makes of steps t [B], [B, dim]."""
        known = self.time(t).to(self.time_in.weight.dtype)
        moment: torch.Tensor = functional.silu(self.time_out(functional.silu(self.time_in(known))))
        return moment


@denoisers.register("dit")
def make_dit(section: Mapping[str, Any], shape: DenoiserShape) -> DiT:
    """Gives the network of a section `denoiser.dit`.

    Raises:
        MicroMusicGenError: unknown or missing keys, values that don't go together, or text on one side only.
    """
    settings = read_settings(DiTSettings, section, source=SOURCE)
    if (settings.text == "none") != (shape.text_channels == 0):
        raise MicroMusicGenError(
            f"{SOURCE}.text is {settings.text!r} with diffusion.text_channels={shape.text_channels}; "
            "a network that hears text needs both, any other text=none and 0"
        )
    return DiT(settings, shape)
