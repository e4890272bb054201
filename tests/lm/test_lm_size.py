"""The counting formulas against the modules that they count."""

from __future__ import annotations

import fixtures_models as models
import pytest
import torch
from torch import nn

from micro_musicgen.lm.builder import build_lm, lm_spec
from micro_musicgen.lm.scales import SCALES, spec
from micro_musicgen.lm.size import size_rows

PUBLISHED = {"nano": 2_886_400, "tiny": 8_920_576, "mini": 20_461_824, "midi": 33_573_888, "micro": 134_246_400}


def build_unallocated(config: dict) -> nn.Module:
    with torch.device("meta"):
        return build_lm(config, window_s=1.0, device="meta")


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SCALES)
def test_the_formula_counts_the_built_model(name: str) -> None:
    shape = spec(name)
    config = models.lm_config(dim=shape.dim, num_heads=shape.num_heads, num_layers=shape.num_layers, card=2048)
    model = build_unallocated(config)
    assert lm_spec(config) == shape
    assert count(model) == shape.num_parameters == PUBLISHED[name]
    assert count(model.emb) + count(model.linears) == shape.num_embedding_parameters


def test_the_design_formula() -> None:
    """K*d*(2*card+1) + layers*(12*d^2 + 4*d) + 2*d, for the scale that must not move."""
    K, d, card, layers = 4, 2048, 2048, 2
    assert K * d * (2 * card + 1) + layers * (12 * d**2 + 4 * d) + 2 * d == spec("micro").num_parameters == 134_246_400


def test_cross_attention_adds_its_projections_and_norm() -> None:
    config = models.text_lm_config()
    model = build_unallocated(config)
    conditioner = count(model.condition_provider)
    assert lm_spec(config).conditioning == "cross"
    assert count(model) - conditioner == lm_spec(config).num_parameters
    plain = lm_spec(models.lm_config()).num_parameters
    assert lm_spec(config).num_parameters - plain == 2 * (4 * 32**2 + 2 * 32)


def test_rows_add_up() -> None:
    rows = {row.scale: row for row in size_rows(card=256)}
    assert list(rows) == list(SCALES)
    for row in rows.values():
        assert row.total == row.embedding + row.rest
    assert rows["nano"].embedding == 4 * 128 * (2 * 256 + 1)
    assert size_rows()[-1].fp32_mb == pytest.approx(536.9856)
    assert rows["micro"].total > rows["midi"].total
