import pytest
import torch

from micro_musicgen.diffusion.normaliser import Normaliser
from micro_musicgen.errors import MicroMusicGenError


def fitted(*batches):
    normaliser = Normaliser(batches[0].shape[1])
    normaliser.fit(batches)
    return normaliser


def test_mean_and_deviation_are_those_of_all_frames():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(1, 3, 900, generator=generator) * torch.tensor([1.0, 5.0, 0.01])[:, None] + 7
    normaliser = fitted(whole[..., :100], whole[..., 100:300], whole[..., 300:].reshape(3, 2, 300).transpose(0, 1))
    frames = whole[0].double()
    assert torch.allclose(normaliser.mean.double(), frames.mean(dim=1), rtol=1e-6)
    assert torch.allclose(normaliser.std.double(), frames.std(dim=1, correction=0), rtol=1e-5)
    found = normaliser(whole)
    assert torch.allclose(found.mean(dim=2), torch.zeros(1, 3), atol=1e-4)
    assert torch.allclose(found.std(dim=2, correction=0), torch.ones(1, 3), atol=1e-4)
    assert torch.allclose(normaliser.undo(found), whole, atol=1e-5)


def test_two_values_by_hand():
    normaliser = fitted(torch.tensor([[[1.0, 3.0]]]))
    assert (float(normaliser.mean), float(normaliser.std)) == (2.0, 1.0)
    assert normaliser(torch.tensor([[[5.0]]])).tolist() == [[[3.0]]]
    assert normaliser.undo(torch.tensor([[[3.0]]])).tolist() == [[[5.0]]]


@pytest.mark.parametrize("level", [0.0, 3.0, 0.1, 1000.1, -77777.7])
def test_a_channel_that_never_moves_stays_where_it_is(level):
    frames = torch.randn(2, 2, 2500, generator=torch.Generator().manual_seed(0))
    frames[:, 1] = level
    normaliser = fitted(*frames.split(1))
    assert torch.equal(normaliser(frames)[:, 1], torch.zeros(2, 2500))
    assert torch.equal(normaliser(frames + 5)[:, 1], torch.zeros(2, 2500))  # not blown up
    assert torch.allclose(normaliser.undo(normaliser(frames))[:, 1], frames[:, 1])


def test_one_that_was_never_fitted_refuses():
    for use in (Normaliser(2).forward, Normaliser(2).undo):
        with pytest.raises(MicroMusicGenError, match="never fitted"):
            use(torch.zeros(1, 2, 3))


@pytest.mark.parametrize("batches", [[], [torch.zeros(1, 2, 0)], [torch.full((1, 2, 3), torch.nan)]])
def test_nothing_and_nan_are_refused(batches):
    normaliser = Normaliser(2)
    with pytest.raises(MicroMusicGenError, match="can't be fitted"):
        normaliser.fit(batches)
    assert not normaliser.fitted


def test_it_travels_with_the_weights():
    normaliser = fitted(torch.randn(1, 2, 50, generator=torch.Generator().manual_seed(0)))
    copy = Normaliser(2)
    copy.load_state_dict(normaliser.state_dict(), strict=True)
    frames = torch.ones(1, 2, 3)
    assert torch.equal(copy(frames), normaliser(frames)) and copy.fitted
    assert list(normaliser.state_dict()) == ["mean", "std", "fitted"]
    assert not list(normaliser.parameters())
