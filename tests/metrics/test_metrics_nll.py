"""The likelihood of codes, against closed forms."""

import math

import pytest
import torch

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.metrics.nll import bits_per_second, code_nll


def test_uniform_logits_give_the_log_of_the_card():
    codes = torch.randint(0, 16, (2, 3, 50), generator=torch.Generator().manual_seed(0))
    found = code_nll(torch.zeros(2, 3, 50, 16), codes)
    assert found.dtype == torch.float64 and found.shape == (2, 3)
    assert torch.allclose(found, torch.full((2, 3), 50 * math.log(16), dtype=torch.float64), atol=1e-12)


def test_a_known_distribution():
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125])
    codes = torch.tensor([[[0, 1, 2, 3, 0]]])
    found = code_nll(probabilities.log().expand(1, 1, 5, 4), codes)
    assert float(found) == pytest.approx((1 + 2 + 3 + 3 + 1) * math.log(2), rel=1e-6)


def test_bits_per_second_of_a_model_that_knows_nothing_is_the_codecs_bit_rate():
    assert bits_per_second([math.log(2048)] * 4, 50.0) == pytest.approx(2200)


def test_bad_input_is_named():
    with pytest.raises(MicroMusicGenError, match="don't fit"):
        code_nll(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4, dtype=torch.long))
    with pytest.raises(MicroMusicGenError, match="diverged"):
        code_nll(torch.full((1, 1, 1, 4), float("nan")), torch.zeros(1, 1, 1, dtype=torch.long))
