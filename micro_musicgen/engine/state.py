"""What a generation remembers: keys and values of everything heard, in buffers of fixed size written in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from micro_musicgen.conditioners.fusing import Fused
from micro_musicgen.engine.cursor import KEY_MULTIPLE, Cursor, HostCursor, round_up
from micro_musicgen.engine.tables import Tables, make_tables
from micro_musicgen.engine.transformer_lm import Network


class LMState:
    """Buffers for `rows` sequences of at most `num_slots` positions, the prefix counted.

    Invariant: mask is 0 where a slot may be heard and -inf elsewhere; what a shut slot holds is finite.
    heard: keys and values [2, rows, Hkv, slots, hd] per layer. keys: [rows * Hkv, hd, slots] and values: [rows * Hkv,
    slots, hd], views of it. mask: [rows * Hkv or 1, 1, slots]. padded_rows: rows that a step computes.
    """

    def __init__(self, network: Network, rows: int, num_slots: int, *, num_positions: int | None = None) -> None:
        arch, device, dtype = network.arch, network.device, network.dtype
        self.network = network
        self.rows = rows
        self.padded_rows = round_up(rows, network.row_multiple)
        self.num_slots = num_slots
        self.capacity = round_up(num_slots, KEY_MULTIPLE) + (KEY_MULTIPLE if arch.past_context is not None else 0)
        self.num_positions = max(num_slots, num_positions or 0)
        self.tables: Tables = make_tables(arch, self.num_positions, device=device, dtype=dtype)
        shape = (2, rows, arch.num_kv_heads, self.capacity, arch.head_dim)
        self.heard = [torch.zeros(shape, device=device, dtype=dtype) for _ in network.blocks]
        self.keys = [both[0].flatten(0, 1).transpose(1, 2) for both in self.heard]
        self.values = [both[1].flatten(0, 1) for both in self.heard]
        self.mask = torch.full((1, 1, self.capacity), -torch.inf, device=device, dtype=dtype)
        self.answer = torch.zeros(self.padded_rows, arch.dim, device=device, dtype=dtype)
        self.cross: list[torch.Tensor] = []
        self.cross_mask: torch.Tensor | None = None
        self.added: torch.Tensor | None = None
        self.prefix_length = 0
        self._crossed: Fused | None = None

    @staticmethod
    def num_bytes(network: Network, rows: int, num_slots: int, cross_length: int = 0) -> int:
        """Gives the memory that keys and values will take, of conditions too."""
        arch = network.arch
        slots = (round_up(num_slots, KEY_MULTIPLE) + KEY_MULTIPLE) * arch.num_kv_heads
        crossed = round_up(cross_length, KEY_MULTIPLE) * arch.num_heads
        each = torch.finfo(network.dtype).bits // 8
        return 2 * arch.num_layers * rows * arch.head_dim * (slots + crossed) * each

    def begin(self, conditions: Fused) -> None:
        """Forgets everything and takes in the conditions; the prefix itself is read by the first `Reading`."""
        assert conditions.rows in (0, self.rows), (conditions.rows, self.rows)
        arch = self.network.arch
        self.prefix_length = conditions.prefix_length
        wanted = 1 if conditions.prefix_mask is None else self.rows * arch.num_kv_heads
        if len(self.mask) != wanted:
            self.mask = self.mask.new_empty(wanted, 1, self.capacity)
        self.mask.fill_(-torch.inf)
        if conditions.added is None:
            self.added = None
        else:
            self.added = _kept(self.added, F.pad(conditions.added, (0, 0, 0, self.padded_rows - self.rows)))
        if conditions.cross is None:
            self.cross, self.cross_mask = [], None
        elif conditions is not self._crossed:  # the windows of one generation share them
            self._take_cross(conditions.cross, conditions.cross_mask)
        self._crossed = conditions

    def _take_cross(self, cross: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Computes every layer's keys and values of conditions [rows, S, D], once."""
        length = cross.shape[1]
        padded = F.pad(cross, (0, 0, 0, round_up(length, KEY_MULTIPLE) - length))
        # Row by row on a CPU, so that a row's keys don't depend on the batch.
        parts = torch.split(padded, 1) if padded.device.type == "cpu" else (padded,)
        made = []
        for block in self.network.blocks:
            assert block.cross is not None
            made.append(torch.cat([block.cross.keys_and_values(part) for part in parts], dim=1))
        held: list[torch.Tensor | None] = [*self.cross] or [None] * len(made)
        self.cross = [_kept(old, new) for old, new in zip(held, made, strict=True)]
        valid = padded.new_zeros(self.rows, padded.shape[1])
        valid[:, length:] = -torch.inf
        if mask is not None:
            # A row of nothing but padding attends to all of it: there is nothing else to attend to.
            shut = ~(mask | ~mask.any(1, keepdim=True))
            valid[:, :length].masked_fill_(shut, -torch.inf)
        heads = self.network.arch.num_heads
        self.cross_mask = _kept(self.cross_mask, valid.repeat_interleave(heads, 0)[:, None])

    def open_read(self, length: int, prefix_mask: torch.Tensor | None) -> None:
        """Lets the first `length` slots be heard, padded ones of the prefix not."""
        self.mask[..., :length] = 0
        if prefix_mask is not None:
            shut = ~prefix_mask.repeat_interleave(self.network.arch.num_kv_heads, 0)[:, None]
            self.mask[..., : self.prefix_length].masked_fill_(shut, -torch.inf)

    def roll(self, cursor: HostCursor, keep: int) -> None:
        """Moves the last `keep` slots to the front when the cache is full, so that it never grows (RoPE models)."""
        if cursor.slot < self.num_slots:
            return
        for both in self.heard:
            both[..., :keep, :] = both[..., cursor.slot - keep : cursor.slot, :].clone()
        self.mask[..., :keep] = 0
        self.mask[..., keep:] = -torch.inf
        cursor.slot = keep


class Stepping:
    """Attention of one new position per row to everything in the state. Made anew for every step.

    Attends with two batched products: torch's fused attention is no faster for single queries on a CPU, and its sums
    depend on which thread a row falls to. Small models spend their time on calls, hence as few as possible.
    """

    def __init__(self, state: LMState, cursor: Cursor) -> None:
        self.state = state
        self.cursor = cursor
        self.mask = cursor.heard(state.mask, 2)

    def attend_projected(self, layer: int, projected: torch.Tensor) -> torch.Tensor:
        """Gives [padded rows, D]."""
        state, arch, width = self.state, self.state.network.arch, projected.shape[1]
        rows, heads, kv_heads, size = state.rows, arch.num_heads, arch.num_kv_heads, arch.head_dim
        kv = projected.as_strided((2, rows, kv_heads, size), (kv_heads * size, width, size, 1), heads * size)
        self.cursor.put_slot(state.heard[layer], kv)
        q = projected.as_strided((rows, heads, size), (width, size, 1)).reshape(rows * kv_heads, -1, size)
        return self._heard(layer, q)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Gives [padded rows, D]."""
        rows = self.state.rows
        self.cursor.put_slot(self.state.heard[layer], torch.stack([k[:rows], v[:rows]]))
        return self._heard(layer, q[:rows].reshape(rows * k.shape[1], -1, q.shape[-1]))

    def _heard(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        state, cursor = self.state, self.cursor
        return self._answer(q, cursor.heard(state.keys[layer], 2), cursor.heard(state.values[layer], 1), self.mask)

    def cross(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Gives [padded rows, D]."""
        keys, values = self.state.cross[layer].flatten(1, 2)
        assert self.state.cross_mask is not None
        q = q[: self.state.rows].reshape(len(keys), -1, keys.shape[-1])
        return self._answer(q, keys.transpose(1, 2), values, self.state.cross_mask)

    def _answer(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Gives [padded rows, D] of queries [N, M, hd], keys [N, hd, S] and values [N, S, hd]."""
        weights = torch.baddbmm(mask, q, keys).softmax(-1)
        torch.bmm(weights, values, out=self.state.answer.view(-1, *q.shape[1:])[: len(q)])
        return self.state.answer

    def rotate(self, x: torch.Tensor, *, is_key: bool) -> torch.Tensor:
        """Gives x [rows, H, hd] rotated by the present position."""
        table = self.state.tables.rope_k if is_key else self.state.tables.rope_q
        assert table is not None
        return rotated(x, self.cursor.take_position(table))

    def rotate_projected(self, projected: torch.Tensor, num_heads: int) -> None:
        """Rotates heads of [padded rows, W] by the present position, where they are."""
        table = self.state.tables.rope_q
        assert table is not None
        rotate_heads(projected, num_heads, self.cursor.take_position(table))


class Reading:
    """Attention of the first `length` positions of some rows among themselves: a prompt, prefix included."""

    def __init__(self, state: LMState, rows: slice, length: int) -> None:
        self.state = state
        self.rows = rows
        self.length = length

    def attend_projected(self, layer: int, projected: torch.Tensor) -> torch.Tensor:
        """Gives [rows * length, D] and fills the cache."""
        arch = self.state.network.arch
        by_head = torch.unflatten(projected, -1, (-1, arch.head_dim))
        q, k, v = torch.split(by_head, [arch.num_heads, arch.num_kv_heads, arch.num_kv_heads], dim=1)
        return self.attend(layer, q, k, v)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Gives [rows * length, D] and fills the cache."""
        keys, values = self._by_head(k), self._by_head(v)
        self.state.heard[layer][0, self.rows, :, : self.length] = keys
        self.state.heard[layer][1, self.rows, :, : self.length] = values
        grouped = q.shape[1] != k.shape[1]
        mask = self._mask()
        found = F.scaled_dot_product_attention(
            self._by_head(q), keys, values, attn_mask=mask, is_causal=mask is None, scale=1.0, enable_gqa=grouped
        )
        return found.transpose(1, 2).reshape(len(q), -1)

    def cross(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Gives [rows * length, D]."""
        keys, values = self.state.cross[layer][:, self.rows]
        assert self.state.cross_mask is not None
        mask = self.state.cross_mask.view(self.state.rows, -1, 1, keys.shape[2])[self.rows]
        found = F.scaled_dot_product_attention(self._by_head(q), keys, values, attn_mask=mask, scale=1.0)
        return found.transpose(1, 2).reshape(len(q), -1)

    def rotate(self, x: torch.Tensor, *, is_key: bool) -> torch.Tensor:
        """Gives x [rows * length, H, hd] rotated by positions 0 to length - 1."""
        table = self.state.tables.rope_k if is_key else self.state.tables.rope_q
        assert table is not None
        return rotated(x.view(-1, self.length, *x.shape[1:]), table[: self.length, None]).flatten(0, 1)

    def rotate_projected(self, projected: torch.Tensor, num_heads: int) -> None:
        """Rotates heads of [rows * length, W] by positions 0 to length - 1, where they are."""
        table = self.state.tables.rope_q
        assert table is not None
        rotate_heads(projected.view(-1, self.length, projected.shape[-1]), num_heads, table[: self.length, None])

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 0, (-1, self.length)).transpose(1, 2)

    def _mask(self) -> torch.Tensor | None:
        """Gives the additive mask [rows or 1, H or 1, length, length], None where plain causality is all."""
        state, context = self.state, self.state.network.arch.past_context
        if len(state.mask) == 1 and (context is None or context >= self.length):
            return None
        place = torch.arange(self.length, device=state.mask.device)
        distance = place[:, None] - place
        shut = (distance < 0) | (distance > (self.length if context is None else context))
        causal = state.mask.new_zeros(self.length, self.length).masked_fill_(shut, -torch.inf)
        if len(state.mask) == 1:
            return causal[None, None]
        padding = state.mask.view(state.rows, -1, 1, state.capacity)[self.rows, :1, :, : self.length]
        # A padded position must attend to something, or its softmax is NaN and spreads: to itself.
        return (causal + padding).masked_fill_(distance == 0, 0.0)


def rotated(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Gives x [..., hd] with each pair of neighbours turned by `turns`, complex [..., hd / 2]; fp32 inside."""
    pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def rotate_heads(x: torch.Tensor, num_heads: int, turns: torch.Tensor) -> None:
    """Turns pairs of neighbours in the first `num_heads` heads of x [..., W], contiguous, in place; fp32 inside.

    turns: complex [..., hd / 2]. As `rotated`, in a third of the calls.
    """
    half = turns.shape[-1]
    if x.dtype != torch.float32:
        heads = x[..., : 2 * half * num_heads]
        heads.copy_(rotated(torch.unflatten(heads, -1, (num_heads, -1)), turns).flatten(-2))
        return
    pairs = x.as_strided((*x.shape[:-1], num_heads, half, 2), (*x.stride()[:-1], 2 * half, 2, 1))
    torch.view_as_complex(pairs).mul_(turns)


def _kept(held: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    """Gives `new`, in the place of `held` where that fits: recorded steps know tensors by their address."""
    if held is None or held.shape != new.shape:
        return new
    return held.copy_(new)
