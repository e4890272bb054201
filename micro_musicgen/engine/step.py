"""One step of generation: the codes of a step in, the codes of the next one out. Written once for every cursor."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.conditions import guided_logits
from micro_musicgen.engine.cursor import Cursor, round_up
from micro_musicgen.engine.sampler import draw_checked
from micro_musicgen.engine.sequences import Sequences
from micro_musicgen.engine.state import LMState, Reading, Stepping
from micro_musicgen.engine.transformer_lm import Network


class Step:
    """Moves `sequences` on, with what `state` remembers. coefs: of guidance, between the branches that rows are."""

    def __init__(
        self, state: LMState, sequences: Sequences, params: GenerationParams, *, coefs: tuple[float, ...] = ()
    ) -> None:
        self.network: Network = state.network
        self.state = state
        self.sequences = sequences
        self.params = params
        self.coefs = coefs
        arch, device = self.network.arch, self.network.device
        self.first_rows = torch.arange(arch.num_codebooks, device=device) * (arch.card + 1)
        self.tokens = torch.zeros(state.padded_rows, arch.num_codebooks, dtype=torch.int64, device=device)
        self.num_clips = len(sequences.codes)
        self.clip_tokens = self.tokens[: self.num_clips]
        self.other_tokens = self.tokens[self.num_clips : (1 + len(coefs)) * self.num_clips]

    def __call__(self, cursor: Cursor) -> None:
        """Draws the codes of the step after the cursor's and moves on."""
        self.draw(self.logits(cursor), cursor)
        cursor.advance()

    def logits(self, cursor: Cursor) -> torch.Tensor:
        """Gives fp32 logits [padded rows, K, card] of what follows the present step."""
        state, network = self.state, self.network
        torch.add(cursor.take(self.sequences.codes, 2), self.first_rows, out=self.clip_tokens)
        if self.coefs:
            self.other_tokens.view(len(self.coefs), *self.clip_tokens.shape).copy_(self.clip_tokens)
        cursor.open_slot(state.mask)
        x = embed(network, self.tokens)
        if state.tables.sin is not None:
            x.add_(cursor.take_position(state.tables.sin))
        if state.added is not None:
            x.add_(state.added)
        attention = Stepping(state, cursor)
        for layer, block in enumerate(network.blocks):
            x = block(x, layer, attention)
        return network.logits(x)

    def read(self, length: int, conditions: Fused, cursor: Cursor) -> None:
        """Reads the prefix and the first `length` steps at once, and draws the codes of the one after.

        cursor: at step `length` - 1; it moves on. On a CPU clip by clip: a clip's sums then don't depend on the batch.
        """
        state = self.state
        state.open_read(state.prefix_length + length, conditions.prefix_mask)
        groups = [slice(row, row + 1) for row in range(state.rows)]
        if self.network.device.type != "cpu":
            groups = [slice(0, state.rows)]
        last = torch.cat([self._read_rows(rows, length, conditions) for rows in groups])
        missing = round_up(len(last), self.network.row_multiple) - len(last)
        self.draw(self.network.logits(F.pad(last, (0, 0, 0, missing))), cursor)
        cursor.advance()

    def _read_rows(self, rows: slice, length: int, conditions: Fused) -> torch.Tensor:
        """Gives the last block's output [rows, D] at the last position."""
        codes = self.sequences.codes[..., :length].repeat(1 + len(self.coefs), 1, 1)
        out = read_positions(self.network, self.state, rows, codes[rows], conditions)
        return out[:, -1]

    def draw(self, logits: torch.Tensor, cursor: Cursor) -> None:
        """Writes the codes drawn from `logits` into the step after the cursor's."""
        sequences = self.sequences
        logits = guided_logits(logits, self.coefs, self.num_clips)
        drawn, health = draw_checked(logits, self.params, cursor.take(sequences.chance, 2, 1))
        sequences.health.add_(health)
        is_open = cursor.take(sequences.is_open, 1, 1)
        cursor.put(sequences.codes, 2, torch.where(is_open, drawn, cursor.take(sequences.codes, 2, 1)), 1)


def embed(network: Network, tokens: torch.Tensor) -> torch.Tensor:
    """Gives [M, D], the sum of the codebooks' embeddings of `tokens` [M, K], which index the joint table."""
    if network.device.type == "cpu":
        return F.embedding_bag(tokens, network.embedding, mode="sum")
    return F.embedding(tokens, network.embedding).sum(1)


def read_positions(
    network: Network, state: LMState, rows: slice, codes: torch.Tensor, conditions: Fused
) -> torch.Tensor:
    """Gives the last block's output [r, P + S, D] for codes [r, K, S] of `rows` behind their prefix of P positions."""
    first = torch.arange(network.arch.num_codebooks, device=network.device) * (network.arch.card + 1)
    tokens = (codes.transpose(1, 2) + first).flatten(0, 1)
    x = torch.unflatten(embed(network, tokens), 0, (len(codes), -1))
    if state.added is not None:
        x = x + state.added[rows, None]
    if conditions.prefix is not None:
        x = torch.cat([conditions.prefix[rows], x], dim=1)
    length = x.shape[1]
    if state.tables.sin is not None:
        x = x + state.tables.sin[:length]
    attention = Reading(state, rows, length)
    flat = x.flatten(0, 1)
    for layer, block in enumerate(network.blocks):
        flat = block(flat, layer, attention)
    return torch.unflatten(flat, 0, (-1, length))
