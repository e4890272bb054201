"""The engine against audiocraft's modules: the same weights, the same numbers, code by code and logit by logit.

The reference is `LMModel.generate` where that is right. With rotary positions it is not: its streaming offset reads the
wrong axis with torch's attention, and is one short after a prompt with a limited context; there the reference is the
model without a cache.
"""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import fixtures_models as models
import pytest
import torch

from micro_musicgen.conditioners.fusing import fuse
from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.conditions import Heard, Rows, guided_rows
from micro_musicgen.engine.cursor import HostCursor
from micro_musicgen.engine.fixed import FixedStep
from micro_musicgen.engine.runner import NO_CONDITIONS, Runner
from micro_musicgen.engine.sampler import chances, clip_generators
from micro_musicgen.engine.scoring import code_cross_entropy, step_logits
from micro_musicgen.engine.sequences import Sequences
from micro_musicgen.engine.step import Step

GREEDY = GenerationParams(greedy=True)
ALL = GenerationParams(top_k=0)

CONFIGS: dict[str, dict[str, Any]] = {
    "as in MusicGen": {},
    "torch's attention module": {"memory_efficient": False},
    "audiocraft's own attention": {"memory_efficient": False, "custom": True},
    "biases": {"bias_attn": True, "bias_ff": True, "bias_proj": True},
    "norm last": {"norm_first": False},
    "layer scale": {"layer_scale": 0.3},
    "grouped keys": {"kv_repeat": 2},
    "normed queries": {"memory_efficient": False, "custom": True, "qk_layer_norm": True},
    "relu": {"activation": "relu", "hidden_scale": 2},
    "limited context": {"past_context": 5, "memory_efficient": False, "custom": True},
    "rope": {"positional_embedding": "rope", "memory_efficient": False, "custom": True},
    "rope and sin with xpos": {
        "positional_embedding": "sin_rope", "xpos": True, "memory_efficient": False, "custom": True
    },
    "no positions": {"positional_scale": 0.0},
}  # fmt: skip

PATTERNS: dict[str, dict[str, Any]] = {
    "delay": {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3], "flatten_first": 0, "empty_initial": 0}},
    "uneven delay": {"modeling": "delay", "delay": {"delays": [0, 0, 2, 5], "flatten_first": 0, "empty_initial": 0}},
    "flat start": {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3], "flatten_first": 2, "empty_initial": 1}},
    "parallel": {"modeling": "parallel"},
    "unroll": {"modeling": "unroll", "unroll": {"flattening": [0, 1, 2, 3], "delays": [0, 0, 0, 0]}},
    "unroll in groups": {"modeling": "unroll", "unroll": {"flattening": [0, 1, 1, 1], "delays": [0, 3, 3, 3]}},
    "coarse first": {"modeling": "coarse_first", "coarse_first": {"delays": [0, 1, 1]}},
    "musiclm": {"modeling": "musiclm", "musiclm": {"group_by": 2}},
}


def config(changes: dict[str, Any] | None = None, pattern: str = "delay", **shape: Any) -> dict[str, Any]:
    made = deepcopy(models.lm_config(**shape))
    made["transformer_lm"].update(changes or {})
    made["codebooks_pattern"] = PATTERNS[pattern]
    return made


def lively(settings: dict[str, Any], seed: int = 0) -> Any:
    """A model whose weights are far from their start, so that every part of it matters."""
    lm = models.make_lm(settings, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return lm


def codes_of(runner: Runner, params: GenerationParams, frames: int, seed: int = 0, clips: int = 2, **more: Any) -> Any:
    generators = clip_generators(seed, clips, first_clip=more.pop("first_clip", 0))
    chance = chances(generators, runner.network.arch.num_codebooks, frames)
    *_, (complete, sequences) = runner.run(params, frames, chance, **more)
    assert complete == frames
    return sequences.frames(0, frames)


def prompt_of(frames: int, clips: int = 2) -> torch.Tensor:
    return torch.randint(models.CARD, (clips, 4, frames), generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prompt_frames", [0, 1, 7])
def test_greedy_codes_are_audiocrafts(name: str, prompt_frames: int) -> None:
    settings = config(CONFIGS[name])
    lm = lively(settings)
    prompt = prompt_of(prompt_frames) if prompt_frames else None
    wanted = lm.generate(prompt=prompt, num_samples=2, max_gen_len=24, use_sampling=False)
    assert torch.equal(codes_of(models.make_runner(settings, lm=lm), GREEDY, 24, prompt=prompt), wanted)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("prompt_frames", [0, 5])
def test_greedy_codes_in_every_pattern(pattern: str, prompt_frames: int) -> None:
    settings = config(pattern=pattern)
    lm = lively(settings)
    prompt = prompt_of(prompt_frames) if prompt_frames else None
    wanted = lm.generate(prompt=prompt, num_samples=2, max_gen_len=12, use_sampling=False)
    assert torch.equal(codes_of(models.make_runner(settings, lm=lm), GREEDY, 12, prompt=prompt), wanted)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_patterns_are_audiocrafts(pattern: str, frames: int) -> None:
    settings = config(pattern=pattern)
    theirs = models.make_lm(settings).pattern_provider.get_pattern(frames)
    plan = models.make_runner(settings).plan(frames)
    codes = torch.arange(4 * frames).view(1, 4, frames)
    wanted, _, mask = theirs.build_pattern_sequence(codes, -1)
    assert plan.num_steps == wanted.shape[-1]
    found = torch.where(plan.frames >= 0, codes[0].gather(1, plan.frames.clamp(min=0)), -1)
    assert torch.equal(found, wanted[0]) and torch.equal(plan.frames >= 0, mask)
    assert all(plan.first_step(t) == theirs.get_first_step_with_timesteps(t) for t in range(frames))
    for step, done in enumerate(plan.complete):
        assert done == sum(bool((plan.steps[:, : t + 1] <= step).all()) for t in range(frames))


@torch.inference_mode()
def _logits_by_step(runner: Runner, frames: int) -> tuple[Sequences, torch.Tensor]:
    """Draws two clips step by step; gives them and the logits [2, K, S, card] on the way."""
    chance, plan = chances(clip_generators(0, 2), 4, frames), runner.plan(frames)
    state, sequences = runner._prepare(plan, chance, NO_CONDITIONS, (), 0, None)
    sequences.begin(plan, None, chance)
    step, cursor, found = Step(state, sequences, ALL), HostCursor(0, window=runner._context()), []
    for _ in range(plan.num_steps - 1):
        logits = step.logits(cursor)
        found.append(logits[:2])
        step.draw(logits, cursor)
        cursor.advance()
    return sequences, torch.stack(found, dim=2)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_agree_at_every_step(name: str) -> None:
    """Cached steps, the uncached pass, and audiocraft's modules: within 1e-4 at every step."""
    settings = config(CONFIGS[name])
    lm = lively(settings)
    runner = models.make_runner(settings, lm=lm)
    sequences, found = _logits_by_step(runner, 20)
    with torch.no_grad():
        wanted = lm(torch.tensor(sequences.codes[..., : found.shape[2]].tolist()), [], {})
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    codes = sequences.frames(0, 20)
    codes = torch.tensor(codes.tolist())
    theirs = lm.compute_predictions(codes, [], {}, keep_only_valid_steps=False).logits.detach()
    torch.testing.assert_close(step_logits(runner, codes), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(12))
def test_random_small_models(seed: int) -> None:
    """Any combination of shapes and switches: greedy codes after a prompt are those of the model without a cache."""
    chooser = random.Random(seed)
    heads = chooser.choice([1, 2, 4])
    rope = chooser.random() < 0.4
    changes = {
        "hidden_scale": chooser.choice([1, 2, 4]),
        "norm_first": chooser.random() < 0.7,
        "bias_attn": chooser.random() < 0.5,
        "bias_ff": chooser.random() < 0.5,
        "bias_proj": chooser.random() < 0.5,
        "layer_scale": chooser.choice([None, 0.5]),
        "activation": chooser.choice(["gelu", "relu"]),
        "positional_embedding": chooser.choice(["rope", "sin_rope"]) if rope else "sin",
        "xpos": rope and chooser.random() < 0.5,
        "kv_repeat": chooser.choice([1, heads]),
        "max_period": chooser.choice([100.0, 10_000.0]),
    }
    pattern = chooser.choice(list(PATTERNS))
    settings = config(changes, pattern, dim=heads * chooser.choice([4, 8, 16]), num_heads=heads, num_layers=2, card=50)
    lm = lively(settings, seed)
    runner = models.make_runner(settings, lm=lm)
    prompt = torch.randint(50, (3, 4, 3), generator=torch.Generator().manual_seed(seed))
    codes = codes_of(runner, GREEDY, 14, clips=3, prompt=prompt)
    best = lm.compute_predictions(codes, [], {}, keep_only_valid_steps=False).logits.argmax(-1)
    assert torch.equal(codes[..., :3], prompt) and torch.equal(codes[..., 3:], best[..., 3:])


# Conditions, as random tensors: what makes them comes later.


def conditioned(kind: str, **fuser: Any) -> dict[str, Any]:
    settings = config()
    settings["fuser"] = {**settings["fuser"], kind: ["a", "b"], "cross_attention_pos_emb": False,
                         "cross_attention_pos_emb_scale": 1.0, **fuser}  # fmt: skip
    settings["transformer_lm"]["cross_attention"] = kind == "cross"
    settings["conditioners"] = {
        name: {"model": "lut", "lut": {"n_bins": 4, "dim": 4, "tokenizer": "noop", "pad_idx": 0}} for name in "ab"
    }
    return settings


def condition_tensors(kind: str, rows: int, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = (1, 1) if kind == "sum" else (5, 3)
    return {
        name: (torch.randn(rows, length, 32, generator=generator), torch.ones(rows, length))
        for name, length in zip("ab", lengths, strict=True)
    }


def theirs_guided(lm: Any, rows: Any, frames: int, cfg_coef: float, prompt: Any, monkeypatch: Any) -> torch.Tensor:
    """Codes of `LMModel.generate` for given condition tensors, conditional rows before null ones."""
    monkeypatch.setattr(lm.condition_provider, "tokenize", lambda conditions: None)
    monkeypatch.setattr(lm.condition_provider, "forward", lambda tokenized: rows)
    attributes = models.attributes(2)
    codes: torch.Tensor = lm.generate(
        prompt=prompt, conditions=attributes, max_gen_len=frames, use_sampling=False, cfg_coef=cfg_coef
    )
    return codes


@pytest.mark.parametrize("kind", ["prepend", "cross", "sum"])
@pytest.mark.parametrize("prompt_frames", [0, 6])
@pytest.mark.parametrize("cfg_coef", [1.0, 3.0])
def test_guided_codes_are_audiocrafts(
    kind: str, prompt_frames: int, cfg_coef: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = conditioned(kind)
    lm = lively(settings)
    runner = models.make_runner(settings, lm=lm)
    said, unsaid = condition_tensors(kind, 2, 0), condition_tensors(kind, 2, 1)
    prompt = prompt_of(prompt_frames) if prompt_frames else None
    both = {name: (torch.cat([said[name][0], unsaid[name][0]]), torch.ones(4, said[name][1].shape[1])) for name in "ab"}
    wanted = theirs_guided(lm, both, 16, cfg_coef, prompt, monkeypatch)
    rows = guided_rows(Heard(conditional=said, null=unsaid), cfg_coef)
    assert rows.coefs == (() if cfg_coef == 1 else (cfg_coef,))
    fused = fuse(runner.network.arch, rows.conditions, device=torch.device("cpu"), dtype=torch.float32)
    found = codes_of(runner, GREEDY, 16, prompt=prompt, conditions=fused, coefs=rows.coefs)
    assert torch.equal(found, wanted)


def test_cross_attention_with_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = conditioned("cross", cross_attention_pos_emb=True, cross_attention_pos_emb_scale=0.7)
    lm = lively(settings)
    runner = models.make_runner(settings, lm=lm)
    rows = condition_tensors("cross", 4)
    wanted = theirs_guided(lm, rows, 12, 2.0, None, monkeypatch)
    fused = fuse(runner.network.arch, rows, device=torch.device("cpu"), dtype=torch.float32)
    found = codes_of(runner, GREEDY, 12, conditions=fused, coefs=(2.0,))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ["prepend", "cross"])
def test_padding_is_ignored_where_the_model_says_so(kind: str) -> None:
    """mask_padding: what stands in padded places changes nothing, in a clip alone and beside a longer one."""
    settings = conditioned(kind, mask_padding=True)
    runner = models.make_runner(settings, lm=lively(settings))

    def codes(fill: float) -> torch.Tensor:
        tensors = condition_tensors(kind, 2)
        for x, mask in tensors.values():
            mask[0, -2:] = 0
            x[0, -2:] = fill * torch.linspace(-1, 1, 32) ** 3  # a constant would be normalised away
        fused = fuse(runner.network.arch, tensors, device=torch.device("cpu"), dtype=torch.float32)
        return codes_of(runner, ALL, 12, conditions=fused, prompt=prompt_of(3))

    assert torch.equal(codes(0.0), codes(7.0))
    settings["fuser"]["mask_padding"] = False
    runner = models.make_runner(settings, lm=lively(settings))
    assert not torch.equal(codes(0.0), codes(7.0)), "audiocraft's models were trained with padding attended"


def test_no_second_branch_where_it_changes_nothing() -> None:
    said, unsaid = condition_tensors("cross", 2, 0), condition_tensors("cross", 2, 1)
    empty = {name: (x, torch.zeros_like(mask)) for name, (x, mask) in said.items()}
    assert guided_rows(Heard(conditional={}, null={}), 3.0) == Rows(conditions={})
    assert guided_rows(Heard(conditional=said, null=unsaid), 1.0) == Rows(conditions=said)
    assert guided_rows(Heard(conditional=said, null=unsaid), 0.0) == Rows(conditions=unsaid)
    assert guided_rows(Heard(conditional=empty, null=unsaid), 3.0) == Rows(conditions=unsaid)
    rows = guided_rows(Heard(conditional=said, null=unsaid), 3.0)
    assert rows.coefs == (3.0,) and all(x.shape[0] == 4 for x, _ in rows.conditions.values())


# Batches.


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("shape", [(32, 2), (96, 4), (160, 5), (512, 2)])
def test_a_clip_is_the_same_in_every_batch(precision: str, shape: tuple[int, int]) -> None:
    """Bit for bit: small, packed and quantised matrices, with and without a prompt, one clip or many."""
    settings = config(dim=shape[0], num_heads=shape[1], num_layers=2, card=500)
    lm = lively(settings)
    runner = models.make_runner(settings, lm=lm, precision=precision)
    for prompt in (None, torch.randint(500, (13, 4, 9), generator=torch.Generator().manual_seed(0))):
        together = codes_of(runner, ALL, 40, clips=13, prompt=prompt)
        for first, count in ((0, 1), (5, 1), (12, 1), (3, 2), (2, 5), (4, 8)):
            part = None if prompt is None else prompt[first : first + count]
            found = codes_of(runner, ALL, 40, clips=count, first_clip=first, prompt=part)
            assert torch.equal(found, together[first : first + count]), (first, count)


def test_a_loud_neighbour_changes_nothing() -> None:
    """int8 scales its activations row by row."""
    settings = config(dim=512, num_heads=4, num_layers=1, card=2100)
    runner = models.make_runner(settings, lm=lively(settings), precision="int8")
    heads = runner.network.heads
    assert type(heads).__name__ == "Int8Linear"
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    loud = x.clone()
    loud[1:] *= 1000
    assert torch.equal(heads(x)[0], heads(loud)[0])


# The other ways to run a step, and to go on.


def test_the_step_for_graphs_gives_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixed-shape step that CUDA graphs record, run as it is: no graph, the same kernels."""
    monkeypatch.setattr(FixedStep, "_recorded", lambda self: (self._eager(), self._eager)[1])
    for settings in (config(), conditioned("cross"), conditioned("prepend"), config(CONFIGS["rope"])):
        lm = lively(settings)
        kind = "cross" if settings["fuser"]["cross"] else "prepend" if settings["fuser"]["prepend"] else None
        eager = models.make_runner(settings, lm=lm)
        fixed = Runner(eager.network, settings["codebooks_pattern"], mode="graph")
        for seed, frames in ((0, 20), (1, 20), (2, 11)):
            tensors = condition_tensors(kind, 4, seed) if kind else {}
            fused = fuse(eager.network.arch, tensors, device=torch.device("cpu"), dtype=torch.float32)
            more = {"conditions": fused, "coefs": (1.0,) if kind else (), "least_frames": 20}
            wanted = codes_of(eager, ALL, frames, seed, prompt=prompt_of(4), **more)
            assert torch.equal(codes_of(fixed, ALL, frames, seed, prompt=prompt_of(4), **more), wanted)


def test_a_rolling_cache_hears_the_last_steps_only() -> None:
    """Rotary models go on without reading anything again: greedy codes equal a limited context without a cache."""
    steps, frames = 8, 60
    settings = config({"positional_embedding": "rope"})
    lm = lively(settings)
    runner = models.make_runner(settings, lm=lm)
    codes = codes_of(runner, GREEDY, frames, rolling_steps=steps)
    limited = config(
        {"positional_embedding": "rope", "past_context": steps - 1, "memory_efficient": False, "custom": True}
    )
    reference = models.make_lm(limited)
    reference.load_state_dict(lm.state_dict())
    best = reference.compute_predictions(codes, [], {}, keep_only_valid_steps=False).logits.argmax(-1)
    assert torch.equal(codes, best)
    assert runner._buffers is not None and runner._buffers[0].capacity <= 3 * 16, "memory does not grow with the clip"


def test_scores_are_audiocrafts_cross_entropy() -> None:
    from types import SimpleNamespace

    settings = config()
    lm = lively(settings)
    codes = prompt_of(20)
    logits = lm.compute_predictions(codes, [], {}, keep_only_valid_steps=False).logits.detach()
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 2), codes.flatten())
    model: Any = SimpleNamespace(runner=models.make_runner(settings, lm=lm))
    assert code_cross_entropy(model, codes) == pytest.approx(float(wanted), abs=1e-5)
