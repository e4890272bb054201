"""The llama that is trained: its parts against closed forms, the whole against what it has to be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_models import CONFIGS, PATTERNS, WAYS, config, lively
from torch.nn import functional

from micro_musicgen.conditioners.fusing import fuse, read_fuser
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import build_lm, language_models, lm_spec
from micro_musicgen.lm.llama import Around, FeedForward, LlamaLM, SelfAttention
from micro_musicgen.lm.llama_shape import LlamaShape, read_llama_shape, swiglu_width
from micro_musicgen.lm.losses import code_losses, cross_entropy
from micro_musicgen.lm.rms_norm import RMSNorm
from micro_musicgen.lm.rotary import turned, turns
from micro_musicgen.lm.scales import LLAMA_SCALES, SCALES, spec
from micro_musicgen.lm.size import size_rows
from micro_musicgen.lm.training import compile_training, training_plan

CPU = torch.device("cpu")
CARD = 64


def some(*shape: int, seed: int = 0, **more: Any) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **more)


def some_codes(batch: int = 3, num_frames: int = 11) -> torch.Tensor:
    return torch.randint(CARD, (batch, 4, num_frames), generator=torch.Generator().manual_seed(1))


def shape_of(**changes: Any) -> LlamaShape:
    return read_llama_shape(config(changes))


def around(batch: int, length: int, width: int) -> Around:
    return Around(batch=batch, turns=turns(length, width, 10_000.0, CPU))


# The parts.


def test_rms_norm_is_its_closed_form() -> None:
    norm, x = RMSNorm(12, 1e-3).double(), 3 * some(5, 12, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(some(12, seed=1))
    gains = norm.weight.tolist()
    wanted = [
        [gain * value / math.sqrt(sum(v * v for v in row) / 12 + 1e-3) for value, gain in zip(row, gains, strict=True)]
        for row in x.tolist()
    ]
    torch.testing.assert_close(norm(x), torch.tensor(wanted, dtype=torch.float64))
    ones = RMSNorm(12, 1e-12)
    torch.testing.assert_close(ones(x.float()).square().mean(-1), torch.ones(5))
    assert not ones(torch.zeros(2, 12)).any()


def test_rms_norm_has_the_gradient_of_its_definition() -> None:
    x, gain = some(4, 3, 7, dtype=torch.float64), some(7, seed=1, dtype=torch.float64)
    norm = RMSNorm(7, 1e-2).double()
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, x),
                                    (x.requires_grad_(), gain.requires_grad_()))  # fmt: skip
    found = torch.autograd.grad(torch.func.functional_call(norm, {"weight": gain}, x).pow(3).sum(), (x, gain))
    wanted = torch.autograd.grad(functional.rms_norm(x, (7,), gain, 1e-2).pow(3).sum(), (x, gain))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_swiglu_is_its_closed_form() -> None:
    part, x = FeedForward(shape_of(ffn_dim=24)), some(5, 32)
    gate, value = x @ part.inner.weight[:24].T, x @ part.inner.weight[24:].T
    torch.testing.assert_close(part(x), (gate / (1 + torch.exp(-gate)) * value) @ part.outer.weight.T)


def test_rotation_turns_neighbours_by_position_over_period() -> None:
    table, x = turns(9, 6, 100.0, CPU), some(1, 9, 1, 6)
    found = turned(x, table)[0, :, 0]
    for place in range(9):
        for pair in range(3):
            angle = place / 100.0 ** (2 * pair / 6)
            a, b = x[0, place, 0, 2 * pair : 2 * pair + 2].tolist()
            wanted = [a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)]
            assert found[place, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), x[0, :, 0].norm(dim=-1))


def test_only_distances_matter_to_rotated_products() -> None:
    table, q, k = turns(40, 8, 10_000.0, CPU), some(8, seed=1), some(8, seed=2)
    queries, keys = (turned(x.expand(1, 40, 1, 8), table)[0, :, 0] for x in (q, k))
    products = queries @ keys.T
    for distance in (-3, 0, 7):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert (products[20] - products[20, 20]).abs().max() > 0.1, "distances do matter"


@pytest.mark.parametrize("qk_norm", [False, True])
def test_grouped_attention_is_full_attention_of_repeated_keys(qk_norm: bool) -> None:
    torch.manual_seed(0)
    few = SelfAttention(shape_of(num_kv_heads=2, qk_norm=qk_norm))
    full = SelfAttention(shape_of(num_kv_heads=4, qk_norm=qk_norm))
    q, k, v = torch.split(few.project_in.weight.view(8, 8, 32), [4, 2, 2])
    with torch.no_grad():
        both = [part.repeat_interleave(2, dim=0) for part in (k, v)]
        full.project_in.weight.copy_(torch.cat([q, *both]).flatten(0, 1))
        full.project_out.weight.copy_(few.project_out.weight)
    x = some(2 * 9, 32)
    torch.testing.assert_close(few(x, around(2, 9, 8)), full(x, around(2, 9, 8)))


def test_attention_is_its_closed_form() -> None:
    """Head by head, position by position, in plain sums."""
    torch.manual_seed(0)
    part = SelfAttention(shape_of(num_kv_heads=2))
    x = some(6, 32)
    heads = turned((x @ part.project_in.weight.T).view(1, 6, 8, 8), turns(6, 8, 10_000.0, CPU))[0]
    v = (x @ part.project_in.weight.T).view(6, 8, 8)[:, 6:]
    rows = []
    for place in range(6):
        row = []
        for head in range(4):
            scores = heads[: place + 1, 4 + head // 2] @ heads[place, head] / math.sqrt(8)
            row.append(scores.softmax(0) @ v[: place + 1, head // 2])
        rows.append(torch.cat(row))
    torch.testing.assert_close(part(x, around(1, 6, 8)), torch.stack(rows) @ part.project_out.weight.T)


# The whole.


@pytest.mark.parametrize("way", [None, *WAYS])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_future_is_not_heard_and_all_of_the_past_is(name: str, way: str | None) -> None:
    settings = config(CONFIGS[name], way=way)
    model = lively(settings)
    sequence = torch.randint(CARD + 1, (1, 4, 9), generator=torch.Generator().manual_seed(0))
    tensors = {n: (some(1, 1 if kind == "sum" else 3, 32, seed=3).requires_grad_(), torch.ones(1, 1 if kind == "sum"
               else 3)) for kind, names in WAYS.get(way or "", {}).items() for n in names}  # fmt: skip
    conditions = fuse(read_fuser(settings), tensors, device=CPU, dtype=torch.float32)
    embedded: list[torch.Tensor] = []
    model.emb[0].register_forward_hook(lambda module, given, out: embedded.append(out) or out)
    logits = model(sequence, conditions)
    assert logits.shape == (1, 4, 9, CARD)
    for step in range(9):
        (by_step,) = torch.autograd.grad(logits[0, :, step].square().sum(), embedded[0], retain_graph=True)
        assert (by_step[0].abs().sum(-1) > 0).tolist() == [at <= step for at in range(9)]
        for name, (x, _) in tensors.items():
            assert torch.autograd.grad(logits[0, :, step].sum(), x, retain_graph=True)[0].any(), name


@pytest.mark.parametrize("name", CONFIGS)
def test_the_order_of_earlier_steps_matters(name: str) -> None:
    """What Melformer's attention did not hear: it never turned its queries and keys."""
    model = lively(config(CONFIGS[name]))
    sequence = torch.randint(CARD, (1, 4, 9), generator=torch.Generator().manual_seed(0))
    other = sequence[..., [3, 0, 2, 1, 4, 5, 6, 7, 8]]
    with torch.no_grad():
        assert (model(sequence)[..., -1, :] - model(other)[..., -1, :]).abs().max() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shift_of_all_positions_changes_nothing(name: str) -> None:
    """Behind a prefix that nobody hears, the sequence is what it is without one."""
    settings = config(CONFIGS[name], way="prepend")
    model, codes = lively(settings), some_codes()
    tensors = {n: (some(3, 4, 32), torch.zeros(3, 4, dtype=torch.bool)) for n in "ab"}
    silent = fuse(read_fuser(settings), tensors, device=CPU, dtype=torch.float32)
    torch.testing.assert_close(code_losses(model, codes, silent), code_losses(model, codes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_loss_is_the_cross_entropy_of_the_logits(pattern: str) -> None:
    model, codes = lively(config(CONFIGS["grouped keys"], pattern)), some_codes()
    assert training_plan(model).refusal == ""
    steps = model.pattern_provider.get_pattern(11)
    sequence, _, _ = steps.build_pattern_sequence(codes, CARD, keep_only_valid_steps=True)
    reverted, _, mask = steps.revert_pattern_logits(
        model(sequence).permute(0, 3, 1, 2), float("nan"), keep_only_valid_steps=True
    )
    wanted = cross_entropy(reverted.permute(0, 2, 3, 1), codes, mask.expand(3, -1, -1))
    found = code_losses(model, codes)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(each.sum(), list(model.parameters())) for each in (found, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_first_loss_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    losses = code_losses(build_lm(config(dim=64), window_s=1.0), some_codes(8, 50))
    assert losses.tolist() == pytest.approx([math.log(CARD)] * 4, abs=0.9)


def test_dropout_is_off_in_evaluation_and_follows_the_seed() -> None:
    model, codes = lively(config({"dropout": 0.2, "num_kv_heads": 2}, way="cross")), some_codes()
    tensors = {n: (some(3, 4, 32), torch.ones(3, 4)) for n in "ab"}
    told = fuse(read_fuser(config(way="cross")), tensors, device=CPU, dtype=torch.float32)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return code_losses(model, codes, told)

    model.train()
    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    model.eval()
    assert torch.equal(drawn(0), drawn(1))
    still = lively(config({"num_kv_heads": 2}, way="cross"))
    still.load_state_dict(model.state_dict())
    torch.testing.assert_close(code_losses(still.train(), codes, told), drawn(0))


@pytest.mark.parametrize("name", ["a key for every head", "grouped and normed"])
def test_autocast_rounds_products_and_nothing_else(name: str) -> None:
    model, codes = lively(config(CONFIGS[name], way="all")), some_codes()
    tensors = {n: (some(3, 1 if n == "a" else 4, 32), torch.ones(3, 1 if n == "a" else 4)) for n in "abc"}
    told = fuse(read_fuser(config(way="all")), tensors, device=CPU, dtype=torch.float32)
    exact = code_losses(model, codes, told)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = code_losses(model, codes, told)
    assert rounded.dtype == torch.float32 and 0 < float((rounded - exact).detach().abs().max()) < 0.1
    wanted, found = (torch.autograd.grad(x.sum(), list(model.layers.parameters())) for x in (exact, rounded))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32 and functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


@pytest.mark.slow
def test_a_compiled_pass_gives_the_same() -> None:
    model, codes = lively(config(CONFIGS["grouped and normed"])), some_codes()
    wanted = torch.autograd.grad(code_losses(model, codes).sum(), list(model.parameters()))
    compile_training(model, backend="aot_eager")
    found = torch.autograd.grad(code_losses(model, codes).sum(), list(model.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_it_learns_a_period() -> None:
    torch.manual_seed(0)
    model = build_lm(config(CONFIGS["grouped and normed"]), window_s=1.0)
    codes = (torch.arange(24) % 5 + 7 * torch.arange(4)[:, None])[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        code_losses(model, codes).sum().backward()
        optimizer.step()
    assert code_losses(model, codes).mean() < 0.2


# Sizes, configs, weights.


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def unallocated(settings: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return build_lm(settings, window_s=1.0, device="meta")


@pytest.mark.parametrize("name", LLAMA_SCALES)
def test_the_formula_counts_the_built_model(name: str) -> None:
    """K*d*(2*card+1) + L*(2*d*hd*(Hq + Hkv) + 3*d*m + 2*d) + d."""
    shape = spec(name, backbone="llama")
    changes = {"num_kv_heads": shape.num_kv_heads, "ffn_dim": shape.ffn_dim}
    settings = config(changes, dim=shape.dim, num_heads=shape.num_heads, num_layers=shape.num_layers, card=2048)
    assert lm_spec(settings) == shape
    d, width, heads = shape.dim, shape.dim // shape.num_heads, shape.num_heads + (shape.num_kv_heads or 0)
    layer = 2 * d * width * heads + 3 * d * shape.ffn_dim + 2 * d
    by_hand = 4 * d * (2 * 2048 + 1) + shape.num_layers * layer + d
    assert count(unallocated(settings)) == shape.num_parameters == by_hand
    if name in SCALES:
        ratio = shape.num_parameters - shape.num_embedding_parameters, spec(name).num_parameters
        assert ratio[0] / (ratio[1] - shape.num_embedding_parameters) == pytest.approx(1, abs=0.01)


def test_melformer_is_the_size_that_it_had() -> None:
    """8 blocks of 442,368 weights (REFERENCE_SYSTEMS.md 3.5), and the gains that it lacked."""
    shape = spec("melformer", backbone="llama", card=16, num_codebooks=1)
    assert shape.num_parameters - shape.num_embedding_parameters == 8 * 442_368 + (2 * 8 + 1) * 128


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("way", ["prepend", "cross", "sum"])
def test_conditions_and_gains_are_counted(way: str, qk_norm: bool) -> None:
    settings = config({"num_kv_heads": 2, "qk_norm": qk_norm}, way=way)
    model = unallocated(settings)
    assert count(model) - count(model.condition_provider) == lm_spec(settings).num_parameters
    plain = lm_spec(config({"num_kv_heads": 2, "qk_norm": False})).num_parameters
    gains = 2 * 2 * 8 * (2 if way == "cross" else 1) if qk_norm else 0
    added = 2 * (4 * 32**2 + 32) if way == "cross" else 0
    assert lm_spec(settings).num_parameters == plain + gains + added


def test_widths_make_up_for_what_shared_keys_save() -> None:
    assert [swiglu_width(128, 4, 4), swiglu_width(384, 8, 8), swiglu_width(128, 8, 4)] == [344, 1024, 384]
    for kv_heads in (1, 2, 4, 8):
        shape = shape_of(dim=256, num_heads=8, num_kv_heads=kv_heads)
        weights = 2 * 256 * 32 * (8 + kv_heads) + 3 * 256 * shape.ffn_dim
        assert weights == pytest.approx(12 * 256**2, rel=0.01)


def test_rows_of_sizes_are_those_of_the_backbone() -> None:
    rows = {row.scale: row for row in size_rows(card=256, backbone="llama")}
    assert list(rows) == [*SCALES, "melformer"]
    assert all(row.total == row.embedding + row.rest for row in rows.values())
    with pytest.raises(MicroMusicGenError, match="unknown backbone 'mamba'; known: transformer_lm, llama"):
        size_rows(backbone="mamba")
    with pytest.raises(MicroMusicGenError, match="unknown scale 'melformer'"):
        spec("melformer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_first": True, "bias_ff": False}, r"unknown key 'norm_first'; unknown key 'bias_ff'; known: attention_"),
        ({"num_layers": None}, "missing key 'num_layers'"),
        ({"num_kv_heads": 3}, "num_heads 4 and num_kv_heads 3 don't divide each other"),
        ({"dim": 12}, "heads of dim / num_heads = 3 can't be rotated in pairs"),
        ({"dim": -32, "card": "many"}, "dim=-32 is no number from 1 on; card=many is no number"),
        ({"dropout": 1.5, "norm_eps": 0.0}, r"dropout=1.5 is not in \[0, 1\); norm_eps=0.0 is not above 0"),
    ],
)
def test_configs_that_are_none(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MicroMusicGenError, match=words) as caught:
        build_lm(config(changes), window_s=1.0)
    assert "\n" not in str(caught.value)


def test_conditions_that_it_cannot_take() -> None:
    settings = config()
    settings["fuser"]["input_interpolate"] = ["a"]
    with pytest.raises(MicroMusicGenError, match="enter by input_interpolate, which it does not take"):
        lm_spec(settings)
    model, codes = lively(config(way="cross")), some_codes()
    with pytest.raises(MicroMusicGenError, match="attends to conditions at every step and was given none"):
        code_losses(model, codes)
    settings["codebooks_pattern"], settings["fuser"]["input_interpolate"] = {"modeling": "spiral"}, []
    with pytest.raises(MicroMusicGenError, match=r"unknown codebooks_pattern.modeling 'spiral'; known: delay"):
        build_lm(settings, window_s=1.0)


def test_language_models_are_known_by_name() -> None:
    with pytest.raises(MicroMusicGenError, match="unknown language model 'mamba'; known: llama, transformer_lm"):
        language_models.get("mamba")
    settings = config()
    settings["lm_model"] = "transformer_lm"
    settings["transformer_lm"]["num_kv_heads"] = 2
    with pytest.raises(MicroMusicGenError, match="transformer_lm has no num_kv_heads, which is a llama's; add model="):
        build_lm(settings, window_s=1.0)


def test_weights_are_loaded_strictly_and_tables_and_heads_are_where_they_always_are(tmp_path: Path) -> None:
    model = lively(config(CONFIGS["grouped and normed"]))
    state = model.state_dict()
    assert {f"emb.{k}.weight" for k in range(4)} | {f"linears.{k}.weight" for k in range(4)} <= set(state)
    assert len(state) == len(list(model.parameters())), "what follows from the config is not stored"
    other = build_lm(config(CONFIGS["grouped and normed"]), window_s=1.0)
    assert isinstance(other, LlamaLM)
    other.load_state_dict(state)
    torch.testing.assert_close(code_losses(other, some_codes()), code_losses(model, some_codes()))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**state, "layers.0.rope": torch.zeros(1)})


def test_optimisers_take_blocks_and_leave_tables_and_gains() -> None:
    from micro_musicgen.solvers.optimise.muon import hidden_matrices
    from micro_musicgen.solvers.optimise.optim import parameter_groups

    model = lively(config({"qk_norm": True, "emb_lr": 0.5}, way="cross"))
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = {names[id(p)] for p in hidden_matrices(model)}
    each = ("attention.project_in", "attention.project_out", "cross.project_q", "cross.project_kv", "cross.project_out",
            "feed_forward.inner", "feed_forward.outer")  # fmt: skip
    assert matrices == {f"layers.{layer}.{name}.weight" for layer in range(2) for name in each}
    decayed, kept, tables = parameter_groups(model, 0.1)
    heads = {f"linears.{k}.weight" for k in range(4)}
    assert matrices | heads <= {names[id(p)] for p in decayed["params"]}
    assert all(p.ndim == 1 or "condition_provider" in names[id(p)] for p in kept["params"])
    assert tables["lr"] == 0.5 and {names[id(p)] for p in tables["params"]} == {f"emb.{k}.weight" for k in range(4)}
