"""How fast the denoisers are: training steps, realtime factor with its share of the FLOP limit, network calls."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common import Row, Sample, make_row, say

if TYPE_CHECKING:
    import torch

    from micro_musicgen.contracts import Codec
    from micro_musicgen.diffusion.denoiser import Told
    from micro_musicgen.diffusion.model import LatentDiffusion
    from micro_musicgen.engine.diffusion_codec import DiffusionCodec

LATENTS, RATE = 1024, 21.533203125
"""Of a clip as SAMUeL-GEN has them: 1024 latents of 64 channels at 44,100 / 2048 a second, 47.55 s."""
STEPS, GUIDANCE = 20, 3.0
PUBLISHED = "samuel"
"""The network whose realtime factor counts."""
REFERENCE_CALLS = 1600
"""Of the reference: 800 steps, the branches of guidance one after the other."""
GEMM_SIZE = 1024
REALTIME_AIM = "value >= 30"
THREADS = 2
TRAIN_BATCH, TRAIN_FRAMES, CHANNELS = 16, 100, 64
DECODED_S = 10.0


@dataclass(frozen=True)
class Timed:
    """Repeats of one thing, with plain matrix products between them. seconds: of the thing. rate: of the fastest
    product, operations a second.
    """

    seconds: tuple[float, ...]
    rate: float


def build(network: str, *, channels: int = CHANNELS, condition_channels: int = CHANNELS, device: str = "cpu") -> Any:
    """Gives a new model around the network of config/model/denoiser/`network`, its normalisers fitted to noise."""
    import torch
    from models import _compose

    from micro_musicgen.diffusion.builder import build_diffusion, diffusion_config

    argv = ["solver=diffusion_decoder/codes", f"model=denoiser/{network}", "compression_model_checkpoint=none"]
    argv += [f"diffusion.channels={channels}", f"diffusion.condition_channels={condition_channels}"]
    argv += ["diffusion.num_timesteps=800"]
    torch.manual_seed(0)
    model = build_diffusion(diffusion_config(_compose(argv)))
    model.normaliser.fit([torch.randn(4, channels, 64)])
    assert model.condition_normaliser is not None
    model.condition_normaliser.fit([torch.randn(4, condition_channels, 64)])
    return model.to(device).eval()


def told(model: LatentDiffusion, clips: int, frames: int, device: str) -> Told:
    """Gives a random condition."""
    import torch

    from micro_musicgen.diffusion.denoiser import Told

    generator = torch.Generator().manual_seed(1)
    return Told(torch.randn(clips, model.condition_channels, frames, generator=generator).to(device))


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Lets torch use so many threads meanwhile, and no more than it may."""
    import torch

    held = torch.get_num_threads()
    torch.set_num_threads(min(number, held))
    try:
        yield
    finally:
        torch.set_num_threads(held)


def timed(work: Callable[[], Any], repeats: int, device: str, dtype: torch.dtype | None = None) -> Timed:
    """Gives the repeats of `work` and the rate of products of `dtype` measured between them."""
    import torch
    from peers import synchronise

    a = torch.randn(GEMM_SIZE, GEMM_SIZE, device=device, dtype=dtype or torch.float32)
    b = torch.randn_like(a)
    work()
    seconds, fastest = [], math.inf
    for _ in range(repeats):
        for _ in range(5):
            fastest = min(fastest, _once(lambda: a @ b, device))
        seconds.append(_once(work, device))
    synchronise(device)
    return Timed(tuple(seconds), 2.0 * GEMM_SIZE**3 / fastest)


def _once(work: Callable[[], Any], device: str) -> float:
    from peers import synchronise

    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def rows(device: str, *, quick: bool, decoder: DiffusionCodec | None = None) -> list[Row]:
    """Gives all rows of speed. decoder: whose codec's share is measured; None leaves that out."""
    repeats = 2 if quick else 5
    with threads(THREADS):
        say("network calls and training steps")
        found = [network_calls(device), *train_rows(device, repeats)]
        say("samuel, 20 steps with guidance")
        found += realtime_rows(device, repeats)
        if decoder is not None:
            found += decoder_rows(decoder, repeats, device)
    return found


def network_calls(device: str) -> Row:
    """Gives how often a branch goes through the network for a clip, counted where it is called."""
    import torch

    from micro_musicgen.diffusion.guidance import Guided
    from micro_musicgen.diffusion.samplers import default_spacings, samplers, times

    model = build("dit_nano", device=device)
    guided = Guided(model, told(model, 1, 64, device), guidance=GUIDANCE)
    x = torch.randn(1, model.channels, 64).to(device)
    chosen = times(model.schedule, STEPS, default_spacings.get("dpm"))
    samplers.get("dpm")(guided, x, model.schedule, chosen, noise=lambda: torch.randn_like(x))
    note = f"{guided.calls} forward passes of both branches; the reference: 800 steps, a pass for each branch"
    return Row(
        name="network_calls",
        value=guided.branch_calls,
        unit="calls",
        aim="value <= 40",
        peer="SAMUeL-GEN",
        peer_value=REFERENCE_CALLS,
        ratio=REFERENCE_CALLS / guided.branch_calls,
        n=1,
        note=note,
    )


def train_rows(device: str, repeats: int) -> list[Row]:
    """Gives the training steps a second of dit_nano: loss, gradients, AdamW."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = build("dit_nano", condition_channels=CHANNELS + 4, device=device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    clean = torch.randn(TRAIN_BATCH, CHANNELS, TRAIN_FRAMES, device=device)
    condition = told(model, TRAIN_BATCH, TRAIN_FRAMES, device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        model.loss(clean, condition).loss.mean().backward()
        optimiser.step()

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    found = timed(step, 4 * repeats, device)
    rate = Sample(tuple(1 / each for each in found.seconds))
    parameters = sum(each.numel() for each in model.parameters())
    note = f"{TRAIN_BATCH} segments of {TRAIN_FRAMES} frames, {parameters / 1e6:.2f} M parameters, fp32"
    return [
        make_row("train_steps_per_s", rate, "steps/s", note=note),
        _share("train_share_of_limit", counter.get_total_flops(), found),
    ]


def realtime_rows(device: str, repeats: int) -> list[Row]:
    """Gives seconds of latents a second of the `samuel` preset, plain and in whatever other ways the device has."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from micro_musicgen.diffusion.sampling import SamplingParams, sample
    from micro_musicgen.solvers.optimise.precision import has_bf16_units

    dtype = torch.bfloat16 if has_bf16_units(device) else None
    params = SamplingParams(sampler="dpm", steps=STEPS, guidance=GUIDANCE)
    found: list[Row] = []
    for variant, prepare in variants(device).items():
        end = "" if variant == "eager" else f"_{variant}"
        model = build(PUBLISHED, device=device)
        condition = told(model, 1, LATENTS, device)

        def clip(model: LatentDiffusion = model, condition: Told = condition) -> torch.Tensor:
            return sample(model, condition, num_frames=LATENTS, params=params, dtype=dtype)

        with torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                clip()
            prepare(model)
            measured = timed(clip, repeats, device, dtype)
        factors = Sample(tuple(LATENTS / RATE / each for each in measured.seconds))
        precision = "bf16" if dtype is not None else "fp32, for this device has no bf16 units"
        note = f"{LATENTS} latents, {STEPS} dpm steps, guidance {GUIDANCE:g}, {precision}, {torch.get_num_threads()} "
        note += f"threads; {counter.get_total_flops() / STEPS / 1e9:.1f} GFLOP a call of both branches"
        found.append(make_row(f"realtime_factor{end}", factors, "x", aim=REALTIME_AIM, note=note))
        found.append(_share(f"share_of_limit{end}", counter.get_total_flops(), measured))
    return found


def variants(device: str) -> dict[str, Callable[[LatentDiffusion], None]]:
    """Gives the ways to run a network: as it is; on CUDA also compiled, and compiled into CUDA graphs."""
    ways: dict[str, Callable[[LatentDiffusion], None]] = {"eager": lambda model: None}
    if device.startswith("cuda"):
        ways["compile"] = lambda model: model.denoiser.compile()
        ways["graph"] = lambda model: model.denoiser.compile(mode="reduce-overhead")
    return ways


def _share(name: str, operations: float, found: Timed) -> Row:
    """Gives the share of what products of one size reach in the same run, in per cent."""
    shares = [100 * operations / each / found.rate for each in found.seconds]
    note = f"limit {found.rate / 1e9:.0f} GFLOP/s, products of {GEMM_SIZE} measured in between"
    return make_row(name, Sample(tuple(shares)), "%", note=note)


def decoder_rows(decoder: DiffusionCodec, repeats: int, device: str) -> list[Row]:
    """Gives the decoder job's realtime factor, codes to sound, and what share of it is the codec's own decoding."""
    import torch

    codec: Codec = decoder.codec
    frames = round(DECODED_S * codec.frame_rate)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(codec.cardinality, (1, decoder.counts[0], frames), generator=generator).to(device)
    with torch.inference_mode():
        latents = decoder.refined(codes)
        refining = timed(lambda: decoder.refined(codes), repeats, device)
        plain = timed(lambda: codec.decode_latents(latents), repeats, device)
    pairs = list(zip(refining.seconds, plain.seconds, strict=True))
    seconds = frames / codec.frame_rate
    whole = Sample(tuple(seconds / (a + b) for a, b in pairs))
    alone = Sample(tuple(seconds / b for _, b in pairs))
    share = 100 * statistics.median(plain.seconds) / statistics.median(a + b for a, b in pairs)
    kind = f"{decoder.params.steps} steps of {decoder.params.sampler}, guidance {decoder.params.guidance:g}"
    return [
        make_row("decoder_realtime_factor", whole, "x", peer="plain decoder", theirs=alone, note=f"{kind}, one clip"),
        make_row("decoder_codec_share", Sample((share,)), "%", note="of that time: the codec's own decoding"),
    ]
