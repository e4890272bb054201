from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from micro_musicgen.diffusion.denoiser import Denoiser, DenoiserShape, Told, denoisers
from micro_musicgen.diffusion.film import Film
from micro_musicgen.diffusion.frame_layers import ClipNorm, FrameConv, FrameUp
from micro_musicgen.diffusion.schedule import make_schedule
from micro_musicgen.diffusion.unet import SoftAlignmentUNet
from micro_musicgen.errors import MicroMusicGenError

CONFIGS = Path(__file__).parents[2] / "config" / "model" / "denoiser"
PRESETS = ("samuel", "soft_alignment_unet")
TINY = {"base_channels": 8, "levels": 2, "heads": 2, "window": 4, "time_dim": 16}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def section(preset: str, **changes: Any) -> dict[str, Any]:
    network = yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text())["denoiser"]
    assert network["name"] == "soft_alignment_unet"
    return {**network["soft_alignment_unet"], **changes}


def build(preset: str, *, channels: int = 64, condition: int = 64, seed: int = 0, **changes: Any) -> SoftAlignmentUNet:
    torch.manual_seed(seed)
    shape = DenoiserShape(channels=channels, condition_channels=condition, schedule=make_schedule("cosine", 800))
    network = denoisers.get("soft_alignment_unet")(section(preset, **changes), shape)
    assert isinstance(network, SoftAlignmentUNet)
    return network


def awake(network: Denoiser, seed: int = 1) -> Denoiser:
    """The network with random numbers wherever a new one has zeros, so that everything is heard in its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2, generator=generator)
    return network


def tiny(preset: str, **changes: Any) -> SoftAlignmentUNet:
    network = awake(build(preset, channels=6, condition=5, **{**TINY, **changes}))
    assert isinstance(network, SoftAlignmentUNet)
    return network


def told(batch: int, num_frames: int, channels: int = 5, seed: int = 2) -> Told:
    return Told(aligned=torch.randn(batch, channels, num_frames, generator=torch.Generator().manual_seed(seed)))


def noisy(batch: int, num_frames: int, channels: int = 6, seed: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, num_frames, generator=torch.Generator().manual_seed(seed))


def ask(network: Denoiser, x: torch.Tensor, t: list[int], heard: Told) -> torch.Tensor:
    return network(x, torch.tensor(t), network.hear(heard))


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_published_topology_has_15571904_parameters() -> None:
    network = build("samuel")
    assert count(network) == 15_571_904
    assert count(network.time) == 2_099_712
    assert count(network.align) == 33_280
    assert count(network.film) == 73_984
    assert count(network.encode_x) == count(network.encode_condition) == 12_352
    assert count(network.out) == 4_160
    middle = network.bottleneck
    assert count(middle.block) == 2_625_536 and count(middle) - count(middle.block) == 2_626_560
    outside = (network.time, network.align, network.film, network.encode_x, network.encode_condition, network.out)
    assert count(network) - sum(count(part) for part in outside) == 13_336_064


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_parameters_follow_the_docstrings_formula(preset: str, levels: int) -> None:
    c, e, d, dc = 16, 32, 6, 5
    extra = 0 if preset == "samuel" else 2

    def block(n: int) -> int:
        return 8 * n**2 + (2 * e + 8 + extra) * n

    def align(n: int) -> int:
        return 8 * n**2 + 8 * n

    widths, m = [c * 2**level for level in range(levels)], c * 2**levels
    wanted = 3 * c * (d + dc) + 2 * c + 8 * e**2 + 5 * e + align(c) + 2 * c * e + 2 * c**2 + 4 * c
    wanted += sum(block(n) + 8 * n**2 + 6 * n for n in widths)
    wanted += align(m) + 2 * m**2 + 2 * m + block(m)
    wanted += sum(block(2 * n) + 12 * n * min(4 * n, m) + 3 * n for n in widths)
    wanted += 2 * c**2 + c + c * d + d
    network = build(preset, channels=d, condition=dc, base_channels=c, time_dim=e, levels=levels)
    assert count(network) == wanted


@pytest.mark.parametrize("preset", PRESETS)
def test_a_new_network_says_zero_and_takes_any_shape(preset: str) -> None:
    network = build(preset, channels=6, condition=5, **TINY)
    assert network.stride == 4
    for num_frames in (4, 20, 64):
        found = ask(network, noisy(2, num_frames), [0, 799], told(2, num_frames))
        assert found.shape == (2, 6, num_frames) and not found.any()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_forward_leaves_the_state_as_it_was_and_loads_strictly(preset: str) -> None:
    network = tiny(preset)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    first = ask(network, noisy(1, 16), [400], told(1, 16))
    after = network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], value) for key, value in before.items())
    other = build(preset, channels=6, condition=5, seed=9, **TINY)
    other.load_state_dict(before, strict=True)
    assert torch.equal(ask(other, noisy(1, 16), [400], told(1, 16)), first)


@pytest.mark.parametrize("preset", PRESETS)
def test_clips_of_a_batch_dont_hear_each_other(preset: str) -> None:
    network = tiny(preset)
    x, heard, steps = noisy(3, 24), told(3, 24), [5, 400, 790]
    together = ask(network, x, steps, heard)
    assert heard.aligned is not None
    for row, step in enumerate(steps):
        alone = ask(network, x[row : row + 1], [step], Told(aligned=heard.aligned[row : row + 1]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("mixing", ["linear_sqrt", "linear", "alpha_bar", "reversed"])
def test_gradients_reach_every_parameter_and_the_condition(preset: str, mixing: str) -> None:
    network = tiny(preset, mixing=mixing)
    condition = told(2, 16).aligned
    assert condition is not None
    condition.requires_grad_()
    ask(network, noisy(2, 16), [300, 500], Told(aligned=condition)).square().sum().backward()
    silent = [
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # A shift of all keys moves no softmax over them; the local edges of `samuel` are zeros, so there it does.
    assert [name for name in silent if "keys.bias" not in name] == []
    assert condition.grad is not None and bool(condition.grad.any(dim=1).all())


def test_steps_change_the_output() -> None:
    network = tiny("soft_alignment_unet")
    x, heard = noisy(1, 16), told(1, 16)
    outputs = [ask(network, x, [step], heard) for step in (0, 399, 400, 799)]
    for left, right in zip(outputs, outputs[1:], strict=False):
        assert (left - right).abs().max() > 1e-4


@pytest.mark.parametrize("one_plus", [True, False])
def test_film_is_frame_by_frame(one_plus: bool) -> None:
    film = awake(Film(8, 4, 3, one_plus=one_plus))  # type: ignore[arg-type]
    x, time, guide = torch.randn(2, 10, 4), torch.randn(2, 8), torch.randn(2, 10, 3)
    changed = guide.clone()
    changed[:, 6] += 1
    moved = (film(x, time, changed) != film(x, time, guide)).any(dim=2).any(dim=0)
    assert moved.nonzero().flatten().tolist() == [6]
    told_scale, told_shift = (film.from_time(time)[:, None] + film.from_context(guide)).chunk(2, -1)
    torch.testing.assert_close(film(x, time, guide), (told_scale + one_plus) * x + told_shift)


def test_a_new_film_of_one_plus_changes_nothing() -> None:
    x = torch.randn(2, 10, 4)
    assert torch.equal(Film(8, 4, 3, one_plus=True)(x, torch.randn(2, 8), torch.randn(2, 10, 3)), x)


def test_only_per_frame_film_says_when() -> None:
    """With attention that hears its own frame only, a permuted context still has its mean."""
    for preset, hears_when in (("samuel", False), ("soft_alignment_unet", True)):
        network = tiny(preset)
        block = network.blocks[0]
        context, time, x = torch.randn(1, 16, 8), torch.randn(1, 16), torch.randn(1, 16, 8)
        first = block(x, time, network._guide(context))
        second = block(x, time, network._guide(context.flip(1)))
        assert bool((first - second).abs().max() > 1e-3) == hears_when


def test_bottleneck_residual_keeps_the_features() -> None:
    for preset, keeps in (("samuel", False), ("soft_alignment_unet", True)):
        bottleneck = tiny(preset).bottleneck
        for layer in (bottleneck.align.local_out, bottleneck.align.global_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        shares = (torch.ones(1), torch.ones(1))
        seen: list[torch.Tensor] = []
        bottleneck.block.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        x, context, time = torch.randn(1, 4, 32), torch.randn(1, 4, 32), torch.randn(1, 16)
        bottleneck(x, context, time, context, shares)
        assert torch.equal(seen[0], x if keeps else torch.zeros_like(x))


@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_ends_are_those_of_the_whole(num_frames: int) -> None:
    torch.manual_seed(0)
    up = FrameUp(6, 4).double()
    x = torch.randn(2, num_frames, 6, dtype=torch.float64)
    whole, short = x, torch.stack([x.mean(dim=1), x[:, 0], x[:, -1]], dim=1)
    whole = up(whole)
    short = up.ends(short, num_frames)
    torch.testing.assert_close(short, torch.stack([whole.mean(dim=1), whole[:, 0], whole[:, -1]], dim=1))


def test_layers_over_frames_are_torchs() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 12, 6, dtype=torch.float64)
    planes = x.transpose(1, 2)
    for kernel, stride in ((3, 1), (4, 2)):
        conv = FrameConv(6, 4, kernel, stride).double()
        wanted = F.conv1d(planes, conv.weight.transpose(1, 2), conv.bias, stride=stride, padding=1)
        torch.testing.assert_close(conv(x), wanted.transpose(1, 2))
    up = FrameUp(6, 4).double()
    taps = torch.stack([up.other[0], up.same[0], up.same[1], up.other[1]], dim=-1)  # [out, in, 4]
    wanted = F.conv_transpose1d(planes, taps.transpose(0, 1), up.bias, stride=2, padding=1)
    torch.testing.assert_close(up(x), wanted.transpose(1, 2))
    norm = awake(ClipNorm(6)).double()  # type: ignore[arg-type]
    torch.testing.assert_close(norm(x), F.group_norm(planes, 1, norm.weight, norm.bias).transpose(1, 2))


@pytest.mark.parametrize("preset", PRESETS)
def test_sampling_with_a_random_network_stays_finite(preset: str) -> None:
    network = tiny(preset)
    x, heard = noisy(2, 32), network.hear(told(2, 32))
    schedule = network.schedule
    with torch.no_grad():
        for step in range(799, -1, -50):  # DDIM on v, the network as it is
            t = torch.tensor([step, step])
            a, s = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
            v = network(x, t, heard)
            clean, noise = a * x - s * v, s * x + a * v
            after = torch.clamp(t - 50, min=0)
            x = schedule.alpha(after)[:, None, None] * clean + schedule.sigma(after)[:, None, None] * noise
            assert bool(x.isfinite().all())


def test_runs_in_bfloat16() -> None:
    network = tiny("soft_alignment_unet")
    x, heard = noisy(1, 16), told(1, 16)
    exact = ask(network, x, [400], heard)
    with torch.autocast("cpu", torch.bfloat16):
        found = ask(network, x, [400], heard).float()
    assert (found - exact).abs().max() < 0.1 * exact.abs().max()


def test_wrong_lengths_are_one_line() -> None:
    network = tiny("samuel")
    with pytest.raises(MicroMusicGenError, match="18 frames are not a multiple of the network's stride 4; use 16"):
        ask(network, noisy(1, 18), [0], told(1, 18))
    with pytest.raises(MicroMusicGenError, match="16 frames don't fit a condition of 20"):
        ask(network, noisy(1, 16), [0], told(1, 20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windw": 3}, "windw is not a key"),
        ({"window": 0}, "window=0 has to be a whole number of at least 1"),
        ({"heads": 7}, "base_channels=64 is no multiple of 2 \\* heads, 14"),
        ({"mixing": "both"}, "mixing=both is unknown; known: alpha_bar, linear, linear_sqrt, reversed"),
        ({"film": "none"}, "film=none has to be mean or per_frame"),
        ({"mask_edges": 1}, "mask_edges=1 has to be true or false"),
        ({"time_dim": 7}, "time_dim=7 has to be even"),
        ({"levels": 9}, "levels=9"),
        ({"rope_base": 0.5}, "rope_base=0.5 has to be a number above 1"),
        ({"film": "none", "time_dim": 7}, "time_dim=7 has to be even; film=none"),
    ],
)
def test_a_wrong_section_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MicroMusicGenError, match=message) as caught:
        build("samuel", **changes)
    assert "\n" not in str(caught.value) and "denoiser.soft_alignment_unet" in str(caught.value)


def test_a_missing_key_and_what_it_cant_hear_are_one_line() -> None:
    shape = DenoiserShape(channels=6, condition_channels=5, schedule=make_schedule("cosine", 10))
    short = {key: value for key, value in section("samuel").items() if key != "window"}
    make = denoisers.get("soft_alignment_unet")
    with pytest.raises(MicroMusicGenError, match="window is missing"):
        make(short, shape)
    with pytest.raises(MicroMusicGenError, match="needs a condition"):
        make(section("samuel"), DenoiserShape(channels=6, condition_channels=0, schedule=shape.schedule))
    with pytest.raises(MicroMusicGenError, match="hears no text"):
        make(
            section("samuel"),
            DenoiserShape(channels=6, condition_channels=5, text_channels=8, schedule=shape.schedule),
        )


def test_presets_are_groups_of_the_root_and_have_the_same_keys() -> None:
    assert all((CONFIGS / f"{preset}.yaml").read_text().startswith("# @package _global_\n") for preset in PRESETS)
    assert section("samuel").keys() == section("soft_alignment_unet").keys()
