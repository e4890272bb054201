"""The engine against the llama that is trained: the same weights, the same numbers, with a cache and without one."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import fixtures_models as models
import pytest
import torch
from llama_models import CONFIGS, PATTERNS, WAYS, config, lively, reference_logits

from micro_musicgen.conditioners.fusing import Fused, fuse
from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.conditions import Heard, guided_rows
from micro_musicgen.engine.cursor import HostCursor
from micro_musicgen.engine.fixed import FixedStep
from micro_musicgen.engine.linear import PRECISIONS
from micro_musicgen.engine.llama import RMSNorm, RootNorm, SwiGLU, read_llama
from micro_musicgen.engine.runner import NO_CONDITIONS, Runner
from micro_musicgen.engine.sampler import chances, clip_generators
from micro_musicgen.engine.scoring import code_cross_entropy, step_logits
from micro_musicgen.engine.state import rotate_heads, rotated
from micro_musicgen.engine.step import Step
from micro_musicgen.engine.transformer_lm import backbones, make_network
from micro_musicgen.engine.windows import windows
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.llama import Around
from micro_musicgen.lm.losses import code_losses, cross_entropy
from micro_musicgen.lm.rotary import turned, turns
from micro_musicgen.lm.training import pattern_steps

GREEDY = GenerationParams(greedy=True)
ALL = GenerationParams(top_k=0)


def codes_of(runner: Runner, params: GenerationParams, frames: int, seed: int = 0, clips: int = 2, **more: Any) -> Any:
    generators = clip_generators(seed, clips, first_clip=more.pop("first_clip", 0))
    chance = chances(generators, runner.network.arch.num_codebooks, frames)
    *_, (complete, sequences) = runner.run(params, frames, chance, **more)
    assert complete == frames
    return sequences.frames(0, frames)


def prompt_of(frames: int, clips: int = 2) -> torch.Tensor | None:
    if not frames:
        return None
    return torch.randint(models.CARD, (clips, 4, frames), generator=torch.Generator().manual_seed(frames))


def tensors(way: str, rows: int, seed: int = 0, *, padded: bool = False) -> Any:
    generator, found = torch.Generator().manual_seed(seed), {}
    for kind, names in WAYS[way].items():
        for index, name in enumerate(names):
            length = 1 if kind == "sum" else 5 - 2 * index
            mask = torch.ones(rows, length, dtype=torch.bool)
            if padded and kind != "sum":
                mask[0, -2:], mask[-1] = False, False
            found[name] = (torch.randn(rows, length, 32, generator=generator), mask)
    return found


def fused(runner: Runner, conditions: Any) -> Fused:
    return fuse(runner.network.arch, conditions, device=torch.device("cpu"), dtype=torch.float32)


def plain(x: torch.Tensor) -> torch.Tensor:
    """A copy that autograd takes, of what was made in inference mode."""
    return torch.tensor(x.tolist())


# Without conditions.


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prompt_frames", [0, 1, 7])
def test_greedy_codes_are_the_likeliest_of_the_training_module(name: str, prompt_frames: int) -> None:
    settings = config(CONFIGS[name])
    lm, prompt = lively(settings), prompt_of(prompt_frames)
    codes = plain(codes_of(models.make_runner(settings, lm=lm), GREEDY, 24, prompt=prompt))
    best = reference_logits(lm, codes).argmax(-1)
    assert prompt is None or torch.equal(codes[..., :prompt_frames], prompt)
    assert torch.equal(codes[..., prompt_frames:], best[..., prompt_frames:])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("prompt_frames", [0, 5])
def test_greedy_codes_in_every_pattern(pattern: str, prompt_frames: int) -> None:
    settings = config(CONFIGS["grouped keys"], pattern)
    lm = lively(settings)
    codes = plain(codes_of(models.make_runner(settings, lm=lm), GREEDY, 12, prompt=prompt_of(prompt_frames)))
    best = reference_logits(lm, codes).argmax(-1)
    assert torch.equal(codes[..., prompt_frames:], best[..., prompt_frames:])


@torch.inference_mode()
def _logits_by_step(runner: Runner, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws two clips step by step; gives the sequence [2, K, S] and the logits [2, K, S, card] on the way."""
    chance, plan = chances(clip_generators(0, 2), 4, frames), runner.plan(frames)
    state, sequences = runner._prepare(plan, chance, NO_CONDITIONS, (), 0, None)
    sequences.begin(plan, None, chance)
    step, cursor, found = Step(state, sequences, ALL), HostCursor(0), []
    for _ in range(plan.num_steps - 1):
        logits = step.logits(cursor)
        found.append(logits[:2])
        step.draw(logits, cursor)
        cursor.advance()
    return sequences.codes[..., : len(found)], torch.stack(found, dim=2)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_agree_at_every_step(name: str) -> None:
    """Cached steps, the engine's pass without a cache, and the training module: within 1e-4 at every step."""
    settings = config(CONFIGS[name])
    lm = lively(settings)
    runner = models.make_runner(settings, lm=lm)
    sequence, found = _logits_by_step(runner, 20)
    with torch.no_grad():
        wanted = lm(plain(sequence))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    codes = prompt_of(20)
    torch.testing.assert_close(step_logits(runner, codes), reference_logits(lm, codes), atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(8))
def test_random_small_models(seed: int) -> None:
    chooser = random.Random(seed)
    heads = chooser.choice([1, 2, 4, 6])
    changes = {
        "num_kv_heads": chooser.choice([kv for kv in (1, 2, 3, 6) if heads % kv == 0]),
        "ffn_dim": chooser.choice([None, 8, 24, 72]),
        "qk_norm": chooser.random() < 0.5,
        "max_period": chooser.choice([100.0, 10_000.0]),
    }
    shape = {"dim": heads * chooser.choice([4, 8, 16]), "num_heads": heads, "card": 50}
    settings = config(changes, chooser.choice(list(PATTERNS)), **shape)
    lm = lively(settings, seed)
    prompt = torch.randint(50, (3, 4, 3), generator=torch.Generator().manual_seed(seed))
    codes = plain(codes_of(models.make_runner(settings, lm=lm), GREEDY, 14, clips=3, prompt=prompt))
    assert torch.equal(codes[..., :3], prompt)
    assert torch.equal(codes[..., 3:], reference_logits(lm, codes).argmax(-1)[..., 3:])


def test_scores_are_the_training_modules_cross_entropy() -> None:
    settings = config(CONFIGS["grouped and normed"])
    lm, codes = lively(settings), prompt_of(20)
    wanted = torch.nn.functional.cross_entropy(reference_logits(lm, codes).flatten(0, 2), codes.flatten())
    model: Any = SimpleNamespace(runner=models.make_runner(settings, lm=lm))
    assert code_cross_entropy(model, codes) == pytest.approx(float(wanted), abs=1e-5)


# Conditions, as random tensors.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prompt_frames", [0, 6])
@pytest.mark.parametrize("cfg_coef", [1.0, 3.0])
def test_guided_codes_are_the_likeliest_of_the_training_module(way: str, prompt_frames: int, cfg_coef: float) -> None:
    settings = config(CONFIGS["grouped keys"], way=way)
    lm = lively(settings)
    runner = models.make_runner(settings, lm=lm)
    said, unsaid = tensors(way, 2, 0), tensors(way, 2, 1)
    rows = guided_rows(Heard(conditional=said, null=unsaid), cfg_coef)
    assert rows.coefs == (() if cfg_coef == 1 else (cfg_coef,))
    prompt = prompt_of(prompt_frames)
    codes = codes_of(runner, GREEDY, 16, prompt=prompt, conditions=fused(runner, rows.conditions), coefs=rows.coefs)
    codes = plain(codes)
    told, untold = (reference_logits(lm, codes, fused(runner, each)) for each in (said, unsaid))
    assert (told - untold).abs().max() > 0.05, "conditions make no difference here"
    best = (untold + cfg_coef * (told - untold)).argmax(-1)
    assert torch.equal(codes[..., prompt_frames:], best[..., prompt_frames:])


@pytest.mark.parametrize("way", ["prepend", "cross", "all"])
@pytest.mark.parametrize("name", ["a key for every head", "grouped and normed"])
def test_padded_conditions_are_heard_as_in_training(name: str, way: str) -> None:
    settings = config(CONFIGS[name], way=way)
    lm = lively(settings)
    runner, codes = models.make_runner(settings, lm=lm), prompt_of(11, clips=3)
    conditions = fused(runner, tensors(way, 3, padded=True))
    assert conditions.prefix_mask is not None or conditions.cross_mask is not None
    index, mask = pattern_steps(lm, codes.shape[-1], codes.device)
    counts = torch.zeros(codes[0].numel(), dtype=torch.bool)
    counts[index[mask]] = True
    logits = step_logits(runner, codes, conditions)
    wanted = cross_entropy(logits, codes, counts.view_as(codes[0]).expand_as(codes))
    torch.testing.assert_close(code_losses(lm, codes, conditions), wanted, atol=1e-5, rtol=1e-5)
    heard = code_losses(lm, codes, fused(runner, tensors(way, 3)))
    assert ((heard - wanted).abs() > 1e-3).any(), "what is padding makes no difference here"


@pytest.mark.parametrize("way", ["prepend", "cross"])
def test_padding_is_ignored_where_the_model_says_so(way: str) -> None:
    def codes(runner: Runner, fill: float) -> torch.Tensor:
        made = tensors(way, 2)
        for x, mask in made.values():
            mask[0, -2:] = False
            x[0, -2:] = fill * torch.linspace(-1, 1, 32) ** 3
        return codes_of(runner, ALL, 12, conditions=fused(runner, made), prompt=prompt_of(3))

    for masks in (True, False):
        settings = config(CONFIGS["grouped keys"], way=way, mask_padding=masks)
        runner = models.make_runner(settings, lm=lively(settings))
        assert torch.equal(codes(runner, 0.0), codes(runner, 7.0)) == masks


def test_a_silent_prefix_is_finite() -> None:
    """Zeros, all masked: what nothing said is. They have no root mean square to speak of."""
    settings = config(CONFIGS["grouped and normed"], way="prepend")
    runner = models.make_runner(settings, lm=lively(settings))
    nothing = {n: (torch.zeros_like(x), torch.zeros_like(m)) for n, (x, m) in tensors("prepend", 2).items()}
    assert step_logits(runner, prompt_of(5), fused(runner, nothing)).isfinite().all()


# Batches and precisions.


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((32, 2), {"num_kv_heads": 1}),
        ((96, 4), {"qk_norm": True}),
        ((160, 5), {"ffn_dim": 416}),
        ((512, 4), {"num_kv_heads": 2, "qk_norm": True}),
    ],
)
def test_a_clip_is_the_same_in_every_batch(precision: str, shape: tuple[int, int], changes: dict[str, Any]) -> None:
    """Bit for bit: small, packed and quantised matrices, with and without a prompt, one clip or many."""
    settings = config(changes, dim=shape[0], num_heads=shape[1], card=500)
    runner = models.make_runner(settings, lm=lively(settings), precision=precision)
    for prompt in (None, torch.randint(500, (13, 4, 9), generator=torch.Generator().manual_seed(0))):
        together = codes_of(runner, ALL, 30, clips=13, prompt=prompt)
        for first, count in ((0, 1), (5, 1), (12, 1), (3, 2), (2, 5), (4, 8)):
            part = None if prompt is None else prompt[first : first + count]
            found = codes_of(runner, ALL, 30, clips=count, first_clip=first, prompt=part)
            assert torch.equal(found, together[first : first + count]), (first, count)


def test_rows_are_normalised_and_gated_the_same_in_every_batch() -> None:
    """Bit for bit, at widths that leave a rest, for as many rows as there may be."""
    x = 3 * torch.randn(37, 172, generator=torch.Generator().manual_seed(0))
    norm = RootNorm(172, 1e-5)
    same = SwiGLU(lambda x: x, lambda x: x, 4)  # type: ignore[arg-type]
    for part in (norm, same):
        together = part(x)
        for first, count in ((0, 1), (36, 1), (5, 3), (4, 16), (0, 33)):
            assert torch.equal(part(x[first : first + count]), together[first : first + count])


@pytest.mark.parametrize("precision", [each for each in PRECISIONS if each != "fp32"])
def test_other_precisions_are_near_fp32(precision: str) -> None:
    """int8 leaves activations 6 bits on a CPU without VNNI, and every product adds its error."""
    settings = config({"num_kv_heads": 2, "qk_norm": True}, dim=512, num_heads=4, card=2100)
    lm = lively(settings)
    codes = torch.randint(2100, (1, 4, 12), generator=torch.Generator().manual_seed(0))
    exact = step_logits(models.make_runner(settings, lm=lm), codes)
    rounded = step_logits(models.make_runner(settings, lm=lm, precision=precision), codes)
    assert 0 < float((rounded - exact).norm() / exact.norm()) < {"int8": 0.1, "bf16": 0.05, "fp16": 0.005}[precision]


@pytest.mark.parametrize("name", CONFIGS)
def test_plain_kernels_give_the_same(name: str) -> None:
    """Those of GPUs and compilers: torch's own RMSNorm."""
    settings = config(CONFIGS[name], way="all")
    lm, codes = lively(settings), prompt_of(9)
    quick, own = (models.make_runner(settings, lm=lm, plain=plain) for plain in (False, True))
    assert isinstance(quick.network.out_norm, RootNorm) and isinstance(own.network.out_norm, RMSNorm)
    conditions = fused(quick, tensors("all", 2))
    found, wanted = (step_logits(runner, codes, conditions) for runner in (quick, own))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


# The other ways to run a step, and to go on.


@pytest.mark.parametrize("way", [None, "prepend", "cross", "sum"])
def test_the_step_for_graphs_gives_the_same_codes(way: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixed-shape step that CUDA graphs record, run as it is: no graph, the same kernels."""
    monkeypatch.setattr(FixedStep, "_recorded", lambda self: (self._eager(), self._eager)[1])
    settings = config(CONFIGS["grouped and normed"], way=way)
    eager = models.make_runner(settings, lm=lively(settings))
    fixed = Runner(eager.network, settings["codebooks_pattern"], mode="graph")
    for seed, frames in ((0, 20), (1, 20), (2, 11)):
        conditions = fused(eager, tensors(way, 4, seed) if way else {})
        more = {"conditions": conditions, "coefs": (1.0,) if way else (), "least_frames": 20}
        wanted = codes_of(eager, ALL, frames, seed, prompt=prompt_of(4), **more)
        assert torch.equal(codes_of(fixed, ALL, frames, seed, prompt=prompt_of(4), **more), wanted)


@pytest.mark.parametrize("name", ["grouped keys", "grouped and normed"])
def test_a_rolling_cache_hears_the_last_steps_only(name: str) -> None:
    """It goes on without reading anything again: greedy codes equal a limited context without a cache."""
    steps, frames = 8, 60
    settings = config(CONFIGS[name])
    lm = lively(settings)
    runner = models.make_runner(settings, lm=lm)
    assert runner.network.arch.is_shift_invariant and windows(1.0, 50.0, None, can_roll=True).rolls
    codes = plain(codes_of(runner, GREEDY, frames, rolling_steps=steps))
    pattern = lm.pattern_provider.get_pattern(frames)
    sequence, _, _ = pattern.build_pattern_sequence(codes, models.CARD, keep_only_valid_steps=False)
    place = torch.arange(sequence.shape[-1])
    distance = place[:, None] - place
    band = torch.zeros(distance.shape).masked_fill_((distance < 0) | (distance >= steps), -torch.inf)
    x = sum(table(sequence[:, k]) for k, table in enumerate(lm.emb)).flatten(0, 1)
    around = Around(batch=2, turns=lm.position_table(len(place), x.device), mask=band[None, None])
    with torch.no_grad():
        for layer in lm.layers:
            x = layer(x, around)
        hidden = torch.unflatten(lm.out_norm(x), 0, (2, -1))
        logits = torch.stack([head(hidden) for head in lm.linears], dim=1).permute(0, 3, 1, 2)
    best, _, _ = pattern.revert_pattern_logits(logits, float("nan"), keep_only_valid_steps=False)
    assert torch.equal(codes, best.permute(0, 2, 3, 1).argmax(-1))
    assert runner._buffers is not None and runner._buffers[0].capacity <= 3 * 16, "memory does not grow with the clip"


def test_heads_are_turned_where_they_lie_as_in_training() -> None:
    table = turns(7, 8, 100.0, torch.device("cpu"))
    x = torch.randn(2, 7, 40, generator=torch.Generator().manual_seed(0))
    heads = x[..., :24].unflatten(-1, (3, 8))
    wanted = turned(heads, table)
    torch.testing.assert_close(wanted, rotated(heads, table[:, None]), atol=1e-6, rtol=0)
    for dtype, atol in ((torch.float32, 1e-6), (torch.bfloat16, 0.05)):
        found = x.to(dtype, copy=True)
        rotate_heads(found, 3, table[:, None])
        torch.testing.assert_close(found[..., :24].unflatten(-1, (3, 8)).float(), wanted, atol=atol, rtol=0)
        assert torch.equal(found[..., 24:], x[..., 24:].to(dtype)), "values stay as they are"


# Files that are not what they say.


@pytest.mark.parametrize("way", [None, "cross"])
@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_those_of_the_training_module(name: str, way: str | None) -> None:
    settings = config(CONFIGS[name], way=way)
    wanted = {
        name: tuple(x.shape)
        for name, x in models.make_lm(settings).state_dict().items()
        if not name.startswith("condition_provider.")
    }
    assert read_llama(settings).shapes() == wanted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_layers": 10**9}, "1000000000 layers or codebooks, but there are only"),
        ({"ffn_dim": 2**40}, "does not hold the model that its config describes: layers.0.feed_forward"),
        ({"num_kv_heads": 2}, "does not hold the model that its config describes: layers.0.attention.project_in"),
        ({"num_kv_heads": 3}, "don't divide each other"),
        ({"hidden_scale": 4}, "unknown key 'hidden_scale'"),
    ],
)
def test_weights_of_another_shape_are_refused(changes: dict[str, Any], words: str) -> None:
    weights = models.make_lm(config()).state_dict()
    with pytest.raises(MicroMusicGenError, match=words) as caught:
        make_network(config(changes), weights)
    assert "\n" not in str(caught.value)


def test_backbones_are_known_by_name() -> None:
    with pytest.raises(MicroMusicGenError, match="unknown language model 'mamba'; known: llama, transformer_lm"):
        backbones.get("mamba")


@pytest.mark.parametrize("form", ["prefix, unroll", "text and sound", "prefix and sound"])
def test_it_plays_with_this_projects_conditioners(form: str) -> None:
    """What it is told matters, guided or not, and a clip is the same alone."""
    from conditioned_models import noise, own_config

    from micro_musicgen import MicroMusicGen
    from micro_musicgen.codec.encodec import EncodecCodec
    from micro_musicgen.engine.codec import playing
    from micro_musicgen.engine.inputs import OwnConditioner

    settings = own_config(form)
    settings |= {"lm_model": "llama", "transformer_lm": config(CONFIGS["grouped and normed"])["transformer_lm"]}
    lm, codec = lively(settings), playing(EncodecCodec(models.make_codec_model(), models.codec_config()))
    player = MicroMusicGen(settings, lm.state_dict(), codec, window_s=models.WINDOW_S, device="cpu",
                           conditioner=OwnConditioner(lm.condition_provider))  # fmt: skip
    player.set_generation_params(duration=0.3, seed=1)
    told: dict[str, Any] = {"descriptions": ["a low drum", "birds"]}
    if "sound" in form:
        told |= {"audio_prompts": [noise(seed=1), None], "audio_sr": models.SAMPLE_RATE}
    both = player.codes(2, cfg_coef=3.0, **told)
    first = {key: value[:1] if isinstance(value, list) else value for key, value in told.items()}
    assert torch.equal(player.codes(1, cfg_coef=3.0, **first), both[:1])
    assert not torch.equal(player.codes(2, cfg_coef=1.0, **told), both)
    assert not torch.equal(player.codes(2, cfg_coef=3.0, descriptions=["birds", "a low drum"]), both)
