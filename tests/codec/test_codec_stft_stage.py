"""The STFT stage: exact inverse, oracle against torch, causality, and what it refuses."""

import pytest
import torch

from micro_musicgen.codec.beat_layers import Past
from micro_musicgen.codec.stft_stage import StftStage
from micro_musicgen.errors import MicroMusicGenError


def noise(length: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(2, 1, length, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize(("n_fft", "hop"), [(4096, 1024), (96, 32), (64, 8)])
def test_synthesis_gives_back_what_was_analysed_to_the_edges(n_fft: int, hop: int, power: float) -> None:
    stage = StftStage(n_fft, hop, power)
    wav = noise(10 * hop)
    frames = stage.analysis(wav, with_tail=True)
    assert frames.shape == (2, n_fft + 2, 10 + stage.tail)
    late = stage.synthesis(frames)
    assert float(late[..., : stage.delay_samples].abs().max()) < 1e-5, "silence before the start"
    torch.testing.assert_close(late[..., stage.delay_samples :], wav, atol=2e-6, rtol=0)


def test_frames_are_those_of_torch_with_magnitudes_to_the_power() -> None:
    stage = StftStage(64, 16, 0.5)
    wav = noise(160)
    window = torch.hann_window(64)
    padded = torch.nn.functional.pad(wav[:, 0], (48, 0))
    found = torch.stack([padded[:, start : start + 64] for start in range(0, 160, 16)], dim=-1)
    spectrum = torch.fft.rfft(found * (window / window.norm())[:, None], dim=1)
    wanted = spectrum * spectrum.abs().clamp(min=1e-12) ** -0.5
    torch.testing.assert_close(stage.analysis(wav), torch.cat([wanted.real, wanted.imag], dim=1), atol=1e-4, rtol=1e-3)


def test_white_noise_has_the_magnitude_of_its_level() -> None:
    parts = StftStage(256, 64).analysis(noise(64 * 400)).unflatten(1, (2, 129))
    assert float(parts.square().sum(dim=1).mean().sqrt()) == pytest.approx(0.3, rel=0.02)


def test_a_frame_hears_nothing_behind_its_hop() -> None:
    stage = StftStage(32, 8, 0.5)
    wav = noise(80)[:1].requires_grad_()
    stage.analysis(wav)[0, :, 4].sum().backward()
    heard = wav.grad[0, 0].nonzero()[:, 0]
    assert int(heard.max()) < 5 * 8 and int(heard.min()) >= 5 * 8 - 32


def test_synthesis_in_pieces_is_synthesis_at_once() -> None:
    stage = StftStage(32, 8, 0.5)
    frames = stage.analysis(noise(80), with_tail=True)
    past = Past()
    pieces = [stage.synthesis(part, past) for part in frames.split([1, 5, 2, 5], dim=-1)]
    torch.testing.assert_close(torch.cat(pieces, dim=-1), stage.synthesis(frames))


def test_silence_stays_silence_with_a_finite_gradient() -> None:
    stage = StftStage(32, 8, 0.5)
    wav = torch.zeros(1, 1, 80, requires_grad=True)
    made = stage.synthesis(stage.analysis(wav))
    made.sum().backward()
    assert float(made.detach().abs().max()) == 0 and bool(torch.isfinite(wav.grad).all())


def test_the_window_goes_where_the_stage_goes_and_into_no_file() -> None:
    stage = StftStage(32, 8)
    assert "window" not in stage.state_dict() and stage.double().window.dtype == torch.float64
    with torch.device("meta"):
        assert StftStage(32, 8).window.device.type == "cpu", "a build on the meta device leaves it usable"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((33, 11, 1.0), "n_fft=33 must be an even number"),
        ((1 << 30, 1024, 1.0), "n_fft=1073741824"),
        ((64, 32, 1.0), "hop_samples=32 must be a third of n_fft 64"),
        ((64, 0, 1.0), "hop_samples=0"),
        ((64, 16, 0.0), r"power=0 must lie in \[0.1, 1\]"),
    ],
)
def test_sizes_that_do_not_add_up_are_refused(sizes: tuple[int, int, float], message: str) -> None:
    with pytest.raises(MicroMusicGenError, match=message):
        StftStage(*sizes)


def test_audio_of_a_broken_hop_is_refused() -> None:
    with pytest.raises(MicroMusicGenError, match="audio of 70 samples is no whole number of hops of 8"):
        StftStage(32, 8).analysis(noise(70))
