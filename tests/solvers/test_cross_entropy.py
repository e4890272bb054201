import math

import pytest
import torch
from fixtures_models import lm_config

from micro_musicgen.lm.builder import build_lm
from micro_musicgen.lm.losses import code_losses, cross_entropy
from micro_musicgen.upstream import audiocraft_module


def test_equals_upstreams_own_loss_and_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 11, 17, requires_grad=True)
    codes = torch.randint(17, (3, 4, 11))
    mask = torch.rand(3, 4, 11) > 0.3
    solver = audiocraft_module("solvers.musicgen").MusicGenSolver
    theirs, theirs_each = solver._compute_cross_entropy(None, logits, codes, mask)
    ours = cross_entropy(logits, codes, mask)
    torch.testing.assert_close(ours, torch.stack(theirs_each))
    torch.testing.assert_close(ours.mean(), theirs)
    (gradient,) = torch.autograd.grad(ours.mean(), logits, retain_graph=True)
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(gradient, their_gradient)


def test_nan_outside_the_mask_does_no_harm() -> None:
    logits = torch.zeros(1, 2, 3, 5)
    logits[:, :, 2] = math.nan
    mask = torch.tensor([True, True, False]).expand(1, 2, 3)
    losses = cross_entropy(logits, torch.zeros(1, 2, 3, dtype=torch.long), mask)
    torch.testing.assert_close(losses, torch.full((2,), math.log(5)))


PATTERNS = {
    "delay": {"delays": [0, 1, 2, 3], "flatten_first": 0, "empty_initial": 0},
    "parallel": {},
    "unroll": {"flattening": [0, 1, 2, 3], "delays": [0, 0, 0, 0]},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_losses_on_pattern_steps_equal_those_on_frames(name: str) -> None:
    config = {**lm_config(), "codebooks_pattern": {"modeling": name, name: PATTERNS[name]}}
    torch.manual_seed(0)
    model = build_lm(config, window_s=1.0)
    codes = torch.randint(64, (3, 4, 21))
    output = model.compute_predictions(codes, [], condition_tensors={})
    slow = cross_entropy(output.logits, codes, output.mask)
    fast = code_losses(model, codes)
    torch.testing.assert_close(fast, slow)
    weight = model.emb[0].weight
    gradients = [torch.autograd.grad(losses.mean(), weight)[0] for losses in (fast, slow)]
    torch.testing.assert_close(*gradients)
