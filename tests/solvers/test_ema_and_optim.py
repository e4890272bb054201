import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.optimise.ema import EMA
from micro_musicgen.solvers.optimise.optim import build_optimizer, parameter_groups


def test_average_of_constant_weights_is_the_weights() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    for _ in range(20):
        ema.update()
    torch.testing.assert_close(ema.average["weight"], model.weight.detach())


def test_average_follows_the_recurrence() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema, expected = EMA(model, 0.5), 0.0
    for step in range(1, 9):
        nn.init.constant_(model.weight, float(step))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        ema.update()
    assert ema.average["weight"].item() == pytest.approx(expected)


def test_swapping_in_is_undone_also_after_an_error() -> None:
    model = nn.Linear(1, 1)
    ema = EMA(model, 0.9)
    nn.init.constant_(model.weight, 5.0)
    with pytest.raises(RuntimeError), ema.swapped_in():
        assert model.weight.item() != 5.0
        raise RuntimeError
    assert model.weight.item() == 5.0


def test_works_under_weight_norm_and_survives_a_round_trip() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    ema = EMA(model, 0.9)
    ema.update()
    other = EMA(model, 0.9)
    other.load_state_dict(ema.state_dict())
    assert other.num_updates == 1


def test_decay_spares_norms_biases_and_embeddings() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.LayerNorm(3))
    decayed, kept = parameter_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [(3, 3)] and decayed["weight_decay"] == 0.1
    assert len(kept["params"]) == 4 and kept["weight_decay"] == 0.0


def test_unknown_optimizer_names_the_known_ones() -> None:
    with pytest.raises(MicroMusicGenError, match="'dadam'; known: adam, adamw, muon"):
        build_optimizer(nn.Linear(1, 1), OmegaConf.create({"optimizer": "dadam"}))
