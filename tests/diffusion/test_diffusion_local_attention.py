from __future__ import annotations

import math

import pytest
import torch

from micro_musicgen.diffusion import narrow_attention
from micro_musicgen.diffusion.local_attention import local_attention
from micro_musicgen.diffusion.rope import Rope
from micro_musicgen.diffusion.schedule import make_schedule
from micro_musicgen.diffusion.soft_alignment import SoftAlignment, mixings


def heads(num_frames: int, *, head_dim: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, num_frames, head_dim, generator=generator, dtype=torch.float64) for _ in range(3)]


def frame_by_frame(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, mask_edges: bool) -> torch.Tensor:
    """The definition: one query, the frames around it, a softmax."""
    num_frames, head_dim = q.shape[-2:]
    rows = []
    for i in range(num_frames):
        places = range(i - window // 2, i + (window - 1) // 2 + 1)
        if mask_edges:
            places = [j for j in places if 0 <= j < num_frames]
        zero = torch.zeros_like(k[..., 0, :])
        keys = torch.stack([k[..., j, :] if 0 <= j < num_frames else zero for j in places], dim=-2)
        values = torch.stack([v[..., j, :] if 0 <= j < num_frames else zero for j in places], dim=-2)
        weights = (q[..., i : i + 1, :] @ keys.transpose(-1, -2) / math.sqrt(head_dim)).softmax(-1)
        rows.append(weights @ values)
    return torch.cat(rows, dim=-2)


@pytest.mark.parametrize("mask_edges", [True, False])
@pytest.mark.parametrize(("num_frames", "window"), [(1, 16), (5, 16), (16, 16), (40, 16), (37, 16), (23, 5), (9, 1)])
def test_blocks_give_what_each_frame_alone_hears(num_frames: int, window: int, mask_edges: bool) -> None:
    q, k, v = heads(num_frames)
    found = local_attention(q, k, v, window=window, mask_edges=mask_edges)
    torch.testing.assert_close(found, frame_by_frame(q, k, v, window, mask_edges), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mask_edges", [True, False])
@pytest.mark.parametrize("changed", [0, 3, 24, 31, 47])
def test_a_frame_is_heard_7_before_it_to_8_behind_it(changed: int, mask_edges: bool) -> None:
    q, k, v = heads(48)
    before = local_attention(q, k, v, window=16, mask_edges=mask_edges)
    k, v = k.clone(), v.clone()
    k[..., changed, :] += 1
    v[..., changed, :] -= 1
    moved = (local_attention(q, k, v, window=16, mask_edges=mask_edges) != before).any(dim=-1).any(0).any(0)
    assert moved.nonzero().flatten().tolist() == list(range(max(0, changed - 7), min(48, changed + 9)))


def test_masked_edges_leave_the_values_their_whole_weight() -> None:
    q, k, v = heads(20)
    ones = torch.ones_like(v)
    assert local_attention(q, k, ones, window=16, mask_edges=True).sub(1).abs().max() < 1e-12
    zeros_took = local_attention(q, k, ones, window=16, mask_edges=False)
    assert zeros_took[..., 0, :].max() < 0.9 and zeros_took[..., 8:13, :].sub(1).abs().max() < 1e-12


@pytest.mark.parametrize("num_frames", [20, 32])
def test_gradients_of_blocks_are_finite_and_right(num_frames: int) -> None:
    inputs = [tensor.requires_grad_() for tensor in heads(num_frames)]
    wanted = torch.autograd.grad(frame_by_frame(*inputs, 16, True).square().sum(), inputs)
    found = torch.autograd.grad(local_attention(*inputs, window=16).square().sum(), inputs)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right)


def largest_tensor(num_frames: int) -> int:
    """Gives the elements of the largest tensor that any operation of a local attention makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            for each in made if isinstance(made, tuple | list) else [made]:
                if isinstance(each, torch.Tensor):
                    largest = max(largest, each.untyped_storage().nbytes() // each.element_size())
            return made

    q = torch.randn(1, 2, num_frames, 8)
    with Watch():
        local_attention(q, q, q, window=16)
    return largest


def test_memory_grows_with_the_frames_and_not_with_their_square() -> None:
    assert largest_tensor(1 << 12) == 16 * largest_tensor(1 << 8)
    assert largest_tensor(1 << 12) <= 2 * (1 << 12) * 2 * 16  # heads x frames x twice the window


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("linear_sqrt", [(1, 0), (0.70666, 0.70755), (0, 1)]),
        ("linear", [(1, 0), (0.49937, 0.50063), (0, 1)]),
        ("alpha_bar", [(0.99995, 0.00005), (0.70129, 0.29871), (0.00002, 0.99998)]),
        ("reversed", [(0, 1), (0.70755, 0.70666), (1, 0)]),
    ],
)
def test_shares_reach_their_ends_at_the_schedules_own_ends(name: str, wanted: list[tuple[float, float]]) -> None:
    schedule = make_schedule("cosine", 800)
    t = torch.tensor([0, 400, 799])
    found = torch.stack(mixings.get(name)(schedule, t), dim=1)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=5e-5)


def build(seed: int = 0, **changes: bool) -> SoftAlignment:
    torch.manual_seed(seed)
    settings = {"window": 16, "mask_edges": True, "rope_base": 10_000.0, **changes}
    return SoftAlignment(16, 2, **settings).double()  # type: ignore[arg-type]


def mixed(align: SoftAlignment, x: torch.Tensor, condition: torch.Tensor, of_global: float) -> torch.Tensor:
    share = torch.full((len(x),), of_global, dtype=torch.float64)
    return align(x, align.hear(condition), (share, 1 - share))


def test_alignment_is_local_where_nothing_is_global() -> None:
    align = build()
    x, condition = torch.randn(2, 1, 48, 16, dtype=torch.float64)
    changed = condition.clone()
    changed[:, 20] += 1
    for of_global, reach in [(0.0, list(range(13, 29))), (0.5, list(range(48)))]:
        moved = (mixed(align, x, changed, of_global) - mixed(align, x, condition, of_global)).abs().amax(dim=(0, 2)) > 0
        assert moved.nonzero().flatten().tolist() == reach


def test_global_attention_is_the_softmax_of_turned_queries_and_keys() -> None:
    align = build()
    x, condition = torch.randn(2, 1, 24, 16, dtype=torch.float64)
    found = mixed(align, x, condition, 1.0)

    def halves(layer: torch.nn.Linear, of: torch.Tensor) -> torch.Tensor:
        return layer(of)[..., 16:].unflatten(-1, (2, 8)).transpose(1, 2)

    rope = Rope(8)
    q, k, v = (
        rope.rotate(halves(align.queries, x)),
        rope.rotate(halves(align.keys, condition)),
        halves(align.values, condition),
    )
    weights = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1)
    wanted = align.global_out((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    shuffled = condition[:, torch.randperm(24, generator=torch.Generator().manual_seed(1))]
    assert (mixed(align, x, shuffled, 1.0) - found).abs().max() > 1e-4, "positions count"


@pytest.mark.parametrize(("num_frames", "num_keys"), [(512, 512), (520, 333)])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_narrow_heads_hear_what_the_fused_kernel_hears(num_frames: int, num_keys: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, frames, 8, generator=generator) for frames in (num_frames, num_keys, num_keys))
    wanted = torch.nn.functional.scaled_dot_product_attention(scale * q, k, v)
    with torch.no_grad():
        torch.testing.assert_close(narrow_attention.attention(scale * q, k, v), wanted, rtol=1e-4, atol=1e-5)


def test_narrow_heads_are_left_to_the_fused_kernel_where_it_is_safer(monkeypatch: pytest.MonkeyPatch) -> None:
    took = []
    narrow = narrow_attention._narrow
    monkeypatch.setattr(narrow_attention, "_narrow", lambda *args: took.append(1) or narrow(*args))
    q = torch.randn(1, 1, 512, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        narrow_attention.attention(q, q, q)
        assert took == [1]
        assert bool(narrow_attention.attention(100 * q, q, q).isfinite().all())
        narrow_attention.attention(q[:, :, :256], q, q)
        narrow_attention.attention(q.double(), q.double(), q.double())
    narrow_attention.attention(q, q, q.requires_grad_()).sum().backward()
    assert took == [1]


def test_narrow_heads_in_bf16_are_computed_in_fp32() -> None:
    """Inside autocast, too: scores to eight bits would be off by tenths."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (2 * torch.randn(2, 2, 512, 8, generator=generator).bfloat16() for _ in range(3))
    with torch.no_grad():
        wanted = narrow_attention.attention(q.float(), k.float(), v.float())
        with torch.autocast("cpu", torch.bfloat16):
            found = narrow_attention.attention(q, k, v)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted.bfloat16())
