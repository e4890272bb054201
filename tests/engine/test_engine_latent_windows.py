"""Windows over a clip: which frames each one sees, how they are joined, and that pieces change nothing."""

from __future__ import annotations

import pytest
import torch

from micro_musicgen.engine.latent_windows import LatentWindows


def codes(num_frames: int) -> torch.Tensor:
    """Codes that say which frame they are of, [1, 1, T]."""
    return torch.arange(num_frames)[None, None]


class Windows:
    """A refiner that gives the frame's own number, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, codes: torch.Tensor, start: int) -> torch.Tensor:
        assert codes[0, 0].tolist() == list(range(start, start + codes.shape[-1]))
        self.asked.append((start, codes.shape[-1]))
        return codes.float()


def run(num_frames: int, window: int, pieces: list[int]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    refine = Windows()
    windows, made, done = LatentWindows(refine, window), [torch.zeros(1, 1, 0)], 0
    for piece in pieces:
        made += windows.push(codes(num_frames)[..., done : done + piece])
        done += piece
    assert done == num_frames
    return torch.cat([*made, *windows.finish()], dim=-1), refine.asked


@pytest.mark.parametrize("window", [1, 2, 7, 8, 16, 50])
@pytest.mark.parametrize("num_frames", [0, 1, 7, 8, 9, 15, 16, 17, 30, 31, 45, 100])
def test_every_frame_comes_once_in_its_place_whatever_the_pieces(num_frames: int, window: int) -> None:
    whole, asked = run(num_frames, window, [num_frames])
    assert torch.equal(whole, codes(num_frames).float())
    ones, again = run(num_frames, window, [1] * num_frames)
    assert torch.equal(ones, whole) and again == asked
    assert all(length == min(window, num_frames) for _, length in asked)


def test_the_last_window_ends_with_the_clip() -> None:
    assert run(45, 16, [45])[1] == [(0, 16), (14, 16), (28, 16), (29, 16)]
    assert run(30, 16, [30])[1] == [(0, 16), (14, 16)]
    assert run(5, 16, [5])[1] == [(0, 5)]


def test_windows_fade_into_one_another() -> None:
    """Windows that give their own number: the shared frames rise evenly, all others belong to one window."""
    windows = LatentWindows(lambda codes, start: torch.full((1, 1, codes.shape[-1]), float(start > 0)), 16)
    made = torch.cat([*windows.push(codes(30)), *windows.finish()], dim=-1)[0, 0]
    assert made[:14].eq(0).all() and made[16:].eq(1).all()
    torch.testing.assert_close(made[14:16], torch.tensor([1 / 3, 2 / 3]))


def test_a_frame_is_given_as_soon_as_its_window_is_known() -> None:
    windows = LatentWindows(Windows(), 16)
    assert windows.push(codes(15)) == []
    (piece,) = windows.push(codes(16)[..., 15:])
    assert piece.shape[-1] == 14
    assert windows._codes is not None and windows._codes.shape[-1] == 16  # and what is behind it is kept no longer
    for frame in range(16, 200):
        windows.push(codes(200)[..., frame : frame + 1])
        assert windows._codes.shape[-1] < 32
