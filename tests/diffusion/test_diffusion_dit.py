"""The diffusion transformer and its parts: closed forms of size and positions, and what must not influence what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from micro_musicgen.diffusion.attention import Heads, SelfAttention, attend
from micro_musicgen.diffusion.denoiser import DenoiserShape, Told, denoisers
from micro_musicgen.diffusion.dit import DiT, make_dit
from micro_musicgen.diffusion.rope import Rope
from micro_musicgen.diffusion.schedule import make_schedule
from micro_musicgen.diffusion.time_embedding import make_time_embedding, sinusoidal
from micro_musicgen.errors import MicroMusicGenError

PRESETS = Path(__file__).parents[2] / "config" / "model" / "denoiser"
TINY = {
    "dim": 16,
    "depth": 3,
    "num_heads": 4,
    "head_dim": 8,
    "num_kv_heads": 1,
    "mlp_dim": 24,
    "dropout": 0.0,
    "patch_size": 1,
    "hierarchy": False,
    "text": "none",
    "time_embedding": "sinusoidal",
    "rope_base": 10000,
}
SECTIONS = {
    "plain": {},
    "full_attention": {"num_kv_heads": 4},
    "grouped": {"num_kv_heads": 2, "patch_size": 2},
    "hierarchy": {"hierarchy": {"factor": 2, "depth": 1}, "patch_size": 2},
    "coarse": {"hierarchy": {"factor": 3, "depth": 2}, "patch_size": 4, "time_embedding": "fourier"},
    "cross": {"text": "cross", "time_embedding": "learned"},
    "joint": {"text": "joint", "hierarchy": {"factor": 2, "depth": 1}},
    "grouped_cross": {"text": "cross", "num_kv_heads": 2},
    "grouped_joint": {"text": "joint", "num_kv_heads": 2, "dim": 20},
}
CHANNELS, CONDITION, TEXT, TIMES = 3, 5, 6, 50


def shape(text: str = "none", condition: int = CONDITION) -> DenoiserShape:
    return DenoiserShape(
        channels=CHANNELS,
        condition_channels=condition,
        schedule=make_schedule("cosine", TIMES),
        text_channels=0 if text == "none" else TEXT,
    )


def dit(condition: int = CONDITION, **changes: Any) -> DiT:
    """A network with no parameter left at zero, as if it had been trained."""
    torch.manual_seed(0)
    section = {**TINY, **changes}
    model = make_dit(section, shape(section["text"], condition)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def heard(model: DiT, batch: int, length: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, Told]:
    """Noisy frames, steps, and what is told; every clip's text has another length."""
    made = torch.Generator().manual_seed(seed)
    aligned = torch.randn(batch, CONDITION, length, generator=made) if model.aligned_in is not None else None
    text = None
    if model.settings.text != "none":
        mask = torch.arange(4) < 1 + torch.arange(batch)[:, None] % 4
        text = torch.randn(batch, 4, TEXT, generator=made), mask
    steps = torch.randint(0, TIMES, (batch,), generator=made)
    return torch.randn(batch, CHANNELS, length, generator=made), steps, Told(aligned, text)


def parameters(section: dict[str, Any], channels: int, condition: int, text: int, times: int) -> int:
    """The formula in the docstring of `DiT`."""
    d, n, m, p = section["dim"], section["depth"], section["mlp_dim"], section["patch_size"]
    h, g = section["num_heads"] * section["head_dim"], section["num_kv_heads"] * section["head_dim"]
    total = p * (2 * channels + condition) * d + d + p * channels + channels * (d + 1) + 2 * d * (d + 1)
    total += n * d * (2 * h + 2 * g + 2 * m + 1) + n * m
    total += ((9 if section["text"] == "cross" else 6) * n + 2) * d * (d + 1)
    total += times * d if section["time_embedding"] == "learned" else 0
    total += {"none": 0, "joint": n * 2 * text * g, "cross": n * (2 * text * g + 2 * d * h)}[section["text"]]
    if section["hierarchy"]:
        f = section["hierarchy"]["factor"]
        total += 2 * f * d * d + (f + 1) * d
    return total


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("changes", SECTIONS.values(), ids=SECTIONS)
def test_parameters_by_formula(changes: dict[str, Any]) -> None:
    section = {**TINY, **changes}
    model = make_dit(section, shape(section["text"]))
    assert count(model) == parameters(section, CHANNELS, CONDITION, TEXT, TIMES)


def preset(name: str, channels: int, condition: int) -> torch.nn.Module:
    section = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())["denoiser"]
    surroundings = DenoiserShape(
        channels=channels, condition_channels=condition, schedule=make_schedule("cosine", 1000)
    )
    with torch.device("meta"):
        return denoisers.get(section["name"])(section[section["name"]], surroundings)


def test_presets() -> None:
    assert count(preset("dit", 128, 128)) == 52_499_200
    assert count(preset("dit_nano", 64, 68)) == 1_755_200


@pytest.mark.parametrize("changes", SECTIONS.values(), ids=SECTIONS)
def test_a_new_network_says_zero_of_the_right_shape(changes: dict[str, Any]) -> None:
    section = {**TINY, **changes}
    model = make_dit(section, shape(section["text"]))
    x, t, told = heard(model, 2, 24)
    out = model(x, t, model.hear(told))
    assert out.shape == x.shape
    assert not out.any()


@pytest.mark.parametrize("changes", SECTIONS.values(), ids=SECTIONS)
def test_gradients_reach_every_parameter(changes: dict[str, Any]) -> None:
    model = dit(**changes).train()
    x, t, told = heard(model, 2, 24)
    model(x, t, model.hear(told)).square().sum().backward()
    silent = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


@pytest.mark.parametrize("changes", SECTIONS.values(), ids=SECTIONS)
def test_clips_do_not_hear_each_other(changes: dict[str, Any]) -> None:
    model = dit(**changes)
    x, t, told = heard(model, 3, 24)
    together = model(x, t, model.hear(told))
    for row in range(3):
        one = slice(row, row + 1)
        assert told.aligned is not None
        text = None if told.text is None else (told.text[0][one], told.text[1][one])
        alone = model(x[one], t[one], model.hear(Told(told.aligned[one], text)))
        torch.testing.assert_close(alone, together[one], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("changes", SECTIONS.values(), ids=SECTIONS)
def test_forward_changes_no_state_and_weights_load_strictly(changes: dict[str, Any]) -> None:
    model = dit(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, t, told = heard(model, 1, 24)
    with torch.inference_mode():
        out = model(x, t, model.hear(told))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = make_dit({**TINY, **changes}, shape(model.settings.text)).eval()
    other.load_state_dict(before, strict=True)
    assert torch.equal(other(x, t, other.hear(told)), out)


def test_each_of_its_inputs_is_heard() -> None:
    model = dit()
    x, t, told = heard(model, 1, 8)
    assert told.aligned is not None
    out = model(x, t, model.hear(told))
    assert not torch.allclose(out, model(x + 0.1, t, model.hear(told)))
    assert not torch.allclose(out, model(x, (t + 7) % TIMES, model.hear(told)))
    assert not torch.allclose(out, model(x, t, model.hear(Told(told.aligned + 0.1))))


def test_a_share_of_x_goes_straight_through() -> None:
    """It depends on the step and on the channel, and a new network has none."""
    model = make_dit(TINY, shape()).eval()
    x, t, told = heard(model, 2, 8)
    torch.nn.init.normal_(model.skip.weight)
    out = model(x, t, model.hear(told))
    shares = out / x
    torch.testing.assert_close(shares, shares[..., :1].expand_as(shares))
    assert shares[:, :, 0].flatten().unique().numel() == 2 * CHANNELS


def test_order_of_frames_matters() -> None:
    """Without positions, permuted frames would give the same frames, permuted."""
    model = dit(condition=0)
    x, t, _ = heard(model, 1, 8)
    order = torch.tensor([3, 1, 2, 0, 7, 5, 4, 6])
    nothing = model.hear(Told())
    assert not torch.allclose(model(x, t, nothing)[..., order], model(x[..., order], t, nothing), atol=1e-2)
    for block in model._blocks():
        block.attention.rope.rotate = lambda rows, offset=0: rows  # type: ignore[method-assign]
    torch.testing.assert_close(model(x, t, nothing)[..., order], model(x[..., order], t, nothing), atol=1e-4, rtol=1e-4)


def test_the_whole_network_hears_distances_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dit()
    x, t, told = heard(model, 1, 8)
    out = model(x, t, model.hear(told))
    plain = Rope.rotate
    monkeypatch.setattr(Rope, "rotate", lambda rope, rows, offset=0: plain(rope, rows, offset + 1234))
    torch.testing.assert_close(model(x, t, model.hear(told)), out, atol=1e-3, rtol=1e-3)


def test_rope_scores_depend_on_distance() -> None:
    torch.manual_seed(0)
    rope, q, k = Rope(8), torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8)

    def score(place: int, other: int) -> torch.Tensor:
        return (rope.rotate(q, place) * rope.rotate(k, other)).sum(-1)

    for shift in (1, 17, 300):
        torch.testing.assert_close(score(5 + shift, 2 + shift), score(5, 2), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(score(5, 3), score(5, 2), atol=1e-2)
    assert torch.equal(rope.rotate(q), q)


def test_rope_turns_interleaved_pairs() -> None:
    """Pair i at position p turns by p * base^(-2 i / d); here 3 and 3 / 10."""
    x = torch.tensor([1.0, 0.0, 0.0, 1.0])[None, None, None]
    turned = Rope(4, base=100).rotate(x, offset=3)[0, 0, 0]
    angles = torch.tensor([3.0, 0.3])
    expected = torch.stack([angles[0].cos(), angles[0].sin(), -angles[1].sin(), angles[1].cos()])
    torch.testing.assert_close(turned, expected)


def test_rope_keeps_its_kind() -> None:
    rope = Rope(8)
    rows = torch.randn(2, 5, 3, 8)
    assert rope.rotate(rows.transpose(1, 2)).transpose(1, 2).is_contiguous()
    assert rope.rotate(rows.bfloat16()).dtype == torch.bfloat16
    assert not rope.state_dict()
    with pytest.raises(MicroMusicGenError, match="a head of 7 has to be even"):
        Rope(7)


@pytest.mark.parametrize("num_keys", [1, 2])
def test_fewer_heads_of_keys_are_full_attention_with_repeated_ones(num_keys: int) -> None:
    torch.manual_seed(0)
    few = SelfAttention(16, Heads(4, num_keys, 8), Rope(8))
    full = SelfAttention(16, Heads(4, 4, 8), Rope(8))
    q, k, v = few.in_proj.weight.split([32, num_keys * 8, num_keys * 8])
    repeated = [part.view(num_keys, 8, 16).repeat_interleave(4 // num_keys, 0).flatten(0, 1) for part in (k, v)]
    full.in_proj.weight.data = torch.cat([q, *repeated])
    full.out_proj.weight.data = few.out_proj.weight.data
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(few(x), full(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_keys", [1, 2, 4])
def test_attention_is_the_textbook_one(num_keys: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 4, 8), torch.randn(2, 7, num_keys, 8), torch.randn(2, 7, num_keys, 8)
    mask = (torch.arange(7) < torch.tensor([[7], [4]]))[:, None, None]
    scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(4 // num_keys, 2)) / 8**0.5
    shares = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", shares, v.repeat_interleave(4 // num_keys, 2)).flatten(2)
    torch.testing.assert_close(attend(q, k, v, mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", ["cross", "joint"])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_padding_of_a_text_is_not_heard(text: str, num_kv_heads: int) -> None:
    model = dit(text=text, num_kv_heads=num_kv_heads)
    x, t, told = heard(model, 3, 8)
    assert told.text is not None
    embeddings, mask = told.text
    out = model(x, t, model.hear(told))
    other = torch.where(mask[:, :, None], embeddings, torch.nan)
    assert torch.equal(model(x, t, model.hear(Told(told.aligned, (other, mask)))), out)
    longer = torch.nn.functional.pad(embeddings, (0, 0, 0, 3), value=9.0), torch.nn.functional.pad(mask, (0, 3))
    torch.testing.assert_close(model(x, t, model.hear(Told(told.aligned, longer))), out, atol=1e-5, rtol=1e-5)
    changed = embeddings.clone()
    changed[:, 0] += 1  # valid in every clip
    assert not torch.allclose(model(x, t, model.hear(Told(told.aligned, (changed, mask)))), out, atol=1e-3)


@pytest.mark.parametrize("num_keys", [1, 2, 4])
def test_who_hears_nothing_finds_nothing(num_keys: int) -> None:
    """A clip whose text is all padding; a softmax over nothing would be NaN, in the gradients too."""
    q, k = torch.randn(2, 3, 4, 8, requires_grad=True), torch.randn(2, 5, num_keys, 8, requires_grad=True)
    found = attend(q, k, k, torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 5))
    found.sum().backward()
    assert found[0].any() and not found[1].any()
    assert q.grad is not None and q.grad.isfinite().all() and k.grad is not None and k.grad.isfinite().all()


def test_the_middle_of_a_hierarchy_runs_at_the_lower_rate() -> None:
    model = dit(depth=4, hierarchy={"factor": 2, "depth": 2}, patch_size=2)
    assert model.stride == 4
    lengths: list[int] = []
    for block in model._blocks():
        block.register_forward_hook(lambda block, given, out: lengths.append(out.shape[1]))
    x, t, told = heard(model, 1, 24)
    model(x, t, model.hear(told))
    assert lengths == [12, 6, 6, 12]
    assert make_dit({**TINY, "hierarchy": {"factor": 2, "depth": 2}}, shape()).settings.inner == range(1, 3)


def test_dropout_is_for_training_only() -> None:
    model = dit(dropout=0.5)
    x, t, told = heard(model, 1, 8)
    assert torch.equal(model(x, t, model.hear(told)), model(x, t, model.hear(told)))
    model.train()
    assert not torch.equal(model(x, t, model.hear(told)), model(x, t, model.hear(told)))


def test_bfloat16() -> None:
    model = dit(text="joint")
    x, t, told = heard(model, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        near = model(x, t, model.hear(told)).float()
    out = model(x, t, model.hear(told))
    assert (near - out).square().mean() < 1e-3 * out.square().mean()


def test_sinusoids_of_the_step() -> None:
    found = sinusoidal(torch.tensor([0, 7]), 512)
    frequencies = torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(256) / 256)
    torch.testing.assert_close(found[1], torch.cat([(7 * frequencies).sin(), (7 * frequencies).cos()]))
    assert torch.equal(found[0], torch.cat([torch.zeros(256), torch.ones(256)]))


@pytest.mark.parametrize("kind", ["sinusoidal", "fourier", "learned"])
def test_steps_have_embeddings_of_their_own(kind: str) -> None:
    torch.manual_seed(0)
    rows = make_time_embedding(kind, 32, TIMES)(torch.arange(TIMES))
    assert rows.shape == (TIMES, 32) and rows.dtype == torch.float32
    assert (torch.cdist(rows, rows) + torch.eye(TIMES)).min() > 1e-3


def test_random_frequencies_travel_with_the_weights() -> None:
    one, other = (make_time_embedding("fourier", 8, TIMES) for _ in range(2))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(torch.arange(5)), other(torch.arange(5)))
    assert not list(one.parameters())


def test_lengths_that_it_cannot_take() -> None:
    model = dit(patch_size=2, hierarchy={"factor": 2, "depth": 1})
    x, t, told = heard(model, 1, 8)
    held = model.hear(told)
    with pytest.raises(MicroMusicGenError, match="6 frames are not a multiple of the network's stride 4; use 4"):
        model(x[..., :6], t, held)
    with pytest.raises(MicroMusicGenError, match="4 frames with a condition of 8"):
        model(x[..., :4], t, held)
    with pytest.raises(MicroMusicGenError, match="7 frames are not a multiple"):
        model.hear(Told(torch.zeros(1, CONDITION, 7)))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"widht": 3}, "denoiser.dit: it has no 'widht'"),
        ({"dim": "wide"}, "dim is 'wide', expected int"),
        ({"depth": 0}, "depth is 0, expected at least 1"),
        ({"num_kv_heads": 3}, "num_heads 4 is no multiple of num_kv_heads 3"),
        ({"head_dim": 7, "dim": 15}, "dim 15 has to be even; head_dim 7 has to be even"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"patch_size": 3}, "patch_size is 3, expected one of 1, 2, 4"),
        ({"text": "yes"}, "text is 'yes', expected one of none, cross, joint"),
        ({"time_embedding": "linear"}, "time_embedding is 'linear', expected one of fourier, learned, sinusoidal"),
        ({"rope_base": 0}, "rope_base is 0"),
        ({"hierarchy": True}, "hierarchy is True, expected false or {factor: 2"),
        ({"hierarchy": {"factor": 2}}, "hierarchy is {'factor': 2}"),
        ({"hierarchy": {"factor": 1, "depth": 3}}, "hierarchy.factor is 1.*hierarchy.depth is 3, expected 1 to 2"),
        ({"text": "cross"}, "text is 'cross' with diffusion.text_channels=0"),
    ],
)
def test_sections_that_it_refuses(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(MicroMusicGenError, match=line) as refused:
        make_dit({**TINY, **changes}, shape())
    assert "\n" not in str(refused.value)


def test_a_missing_key_and_text_for_a_network_without() -> None:
    with pytest.raises(MicroMusicGenError, match="rope_base is missing"):
        make_dit({key: value for key, value in TINY.items() if key != "rope_base"}, shape())
    with pytest.raises(MicroMusicGenError, match="text is 'none' with diffusion.text_channels=6"):
        make_dit(TINY, shape("joint"))
    with pytest.raises(MicroMusicGenError, match="their width 5 has to be even"):
        make_time_embedding("sinusoidal", 5, 10)
