import math

import pytest
import torch

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.codes import count_codes, entropy, unigram_entropy, usage, usage_fraction


def test_closed_forms():
    card, length = 8, 64
    constant = torch.full((length,), 3)
    uniform = torch.arange(length) % card
    halves = torch.arange(length) % 2 * 5
    quarter = torch.where(torch.arange(length) % 4 == 0, 1, 2)  # 1/4 and 3/4
    codes = torch.stack([constant, uniform, halves, quarter])[None].expand(3, -1, -1)
    found = unigram_entropy(codes, card)
    expected = [0.0, math.log(8), math.log(2), 0.25 * math.log(4) + 0.75 * math.log(4 / 3)]
    assert found.dtype == torch.float64 and found.shape == (4,)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    assert usage_fraction(codes, card).tolist() == [1 / 8, 1.0, 2 / 8, 2 / 8]


def test_any_leading_axes_and_counts_that_add_up():
    codes = torch.randint(0, 16, (2, 3, 4, 50), generator=torch.Generator().manual_seed(0))
    counts = count_codes(codes, 16)
    assert counts.shape == (4, 16) and counts.dtype == torch.int64 and counts.sum(dim=-1).tolist() == [300] * 4
    for k in range(4):
        assert torch.equal(counts[k], torch.bincount(codes[:, :, k].flatten(), minlength=16))
    assert torch.equal(counts, count_codes(codes[0], 16) + count_codes(codes[1], 16))
    assert torch.equal(entropy(counts), unigram_entropy(codes, 16)) and torch.equal(
        usage(counts), usage_fraction(codes, 16)
    )
    assert torch.equal(count_codes(codes.to(torch.int16), 16), counts)


def test_errors():
    with pytest.raises(MicroMusicGenError, match=r"code 8 is outside \[0, 8\)"):
        count_codes(torch.tensor([[0, 8]]), 8)
    with pytest.raises(MicroMusicGenError, match=r"code -1 is outside \[0, 8\)"):
        count_codes(torch.tensor([[0, -1]]), 8)
    with pytest.raises(MicroMusicGenError, match=r"no codes to count \(shape \(2, 0\)\)"):
        count_codes(torch.zeros(2, 0, dtype=torch.long), 8)
