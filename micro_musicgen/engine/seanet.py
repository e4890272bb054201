"""The part of a SEANet decoder behind its recurrent layers: residual blocks, stages and the way down through them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from micro_musicgen.engine.activation import Activation
from micro_musicgen.engine.convolution import FAST_ROWS, Conv, Kit, Line, UpConv, empty_rows
from micro_musicgen.engine.decoder_spec import BlockSpec, DecoderSpec, StageSpec


@dataclass
class BlockLine:
    """What a residual block remembers of one clip. skipped: rows of the shortcut that wait for the convolutions."""

    first: Line = field(default_factory=Line)
    skipped: torch.Tensor | None = None


class Block:
    """A residual block."""

    def __init__(self, spec: BlockSpec, kit: Kit) -> None:
        self.first = Conv(spec.first, kit, kit.activation)
        self.second = Conv(spec.second, kit, kit.activation, owns=True)
        self.shortcut = None if spec.shortcut is None else Conv(spec.shortcut, kit, None)

    def __call__(self, line: BlockLine, x: torch.Tensor, last: bool) -> torch.Tensor:
        """Gives the rows [m, C] that are final now that `x` [n, C] has come; `last`: nothing follows."""
        inner = self.first(line.first, x, last)
        beside = x if self.shortcut is None else self.shortcut(Line(), x, last)
        # The sum starts as the shortcut with the bias in it, so that the product is added where it lands.
        out = empty_rows(x, inner.shape[0], x.shape[1])
        waiting = 0 if line.skipped is None else line.skipped.shape[0]
        now = min(waiting, out.shape[0])
        if line.skipped is not None:
            torch.add(line.skipped[:now], self.second.bias, out=out[:now])
        torch.add(beside[: out.shape[0] - now], self.second.bias, out=out[now:])
        self.second.add_to(out, inner)
        left = beside[out.shape[0] - now :]
        line.skipped = left.clone() if line.skipped is None else torch.cat([line.skipped[now:], left])
        return out


@dataclass
class StageLine:
    """What a stage remembers of one clip."""

    up: Line
    blocks: list[BlockLine]


class Stage:
    """One step up in rate: a transposed convolution and residual blocks."""

    def __init__(self, spec: StageSpec, kit: Kit) -> None:
        self.up = UpConv(spec.up, kit)
        self.blocks = [Block(block, kit) for block in spec.blocks]
        self.row_floats = spec.up.out_channels * spec.up.stride

    def start(self) -> StageLine:
        """Gives the memory of a clip that has not begun."""
        return StageLine(Line(), [BlockLine() for _ in self.blocks])

    def __call__(self, line: StageLine, x: torch.Tensor, last: bool) -> torch.Tensor:
        """Gives the rows [m, C'] that are final now that `x` [n, C] has come; `last`: nothing follows."""
        x = self.up(line.up, x, last)
        for block, memory in zip(self.blocks, line.blocks, strict=True):
            x = block(memory, x, last)
        return x


@dataclass
class Voice:
    """What the convolutions behind the recurrent layers remember of one clip."""

    stages: list[StageLine]
    last: Line


class Upsampler:
    """Everything behind the recurrent layers: stages, last convolution, final activation.

    Invariant: the samples of a clip depend on its frames and the pieces they came in, never on other clips.
    """

    def __init__(self, spec: DecoderSpec, kit: Kit, final: Activation | None, *, block_floats: int) -> None:
        """block_floats: numbers that a stage makes at once, which should stay in the processor's cache."""
        self.dtype = kit.dtype
        self.stages = [Stage(stage, kit) for stage in spec.stages]
        self.last = Conv(spec.last, kit, kit.activation)
        self.final = final
        self.block_floats = block_floats

    def start(self) -> Voice:
        """Gives the memory of a clip that has not begun."""
        return Voice([stage.start() for stage in self.stages], Line())

    def __call__(self, voice: Voice, x: torch.Tensor, last: bool) -> torch.Tensor:
        """Gives the samples [m, C] that are final now that frames `x` [n, D] have come; `last`: nothing follows."""
        pieces: list[torch.Tensor] = []
        self._descend(voice, 0, x.to(self.dtype), last, pieces)
        return torch.cat(pieces)

    def _descend(self, voice: Voice, level: int, x: torch.Tensor, last: bool, out: list[torch.Tensor]) -> None:
        """Takes `x` through stage `level` and, in pieces that fit the cache, through all that follow."""
        if level == len(self.stages):
            samples = self.last(voice.last, x, last)
            if self.final is not None:
                self.final(samples, samples)
            out.append(samples.float())
            return
        stage = self.stages[level]
        num_rows = max(FAST_ROWS, self.block_floats // stage.row_floats)
        for start in range(0, max(1, x.shape[0]), num_rows):
            piece = x[start : start + num_rows]
            ends = last and start + num_rows >= x.shape[0]
            self._descend(voice, level + 1, stage(voice.stages[level], piece, ends), ends, out)
