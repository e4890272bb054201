import math

import torch

from micro_musicgen.solvers.lm import cross_entropy
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
