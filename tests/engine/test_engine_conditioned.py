"""Models that are told things: the engine against the pass that training takes, and the API around it.

The slow reference is `lm.training`: whole sequences, no cache, one clip and one branch at a time. Where nothing is
padded, audiocraft's own generation is held against the engine too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import conditioned_models as own
import fixtures_models as models
import pytest
import torch

from micro_musicgen import MicroMusicGen
from micro_musicgen.conditioners.fusing import Fused, fuse, read_fuser
from micro_musicgen.engine.conditions import Heard, fused_rows, guided_rows
from micro_musicgen.engine.layers import CrossAttention
from micro_musicgen.engine.runner import Runner
from micro_musicgen.engine.scoring import step_logits
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.training import hidden_states, position_table

CPU = torch.device("cpu")
LONG = "one two three four five six seven"
FRAMES = round(own.SOUND_S * 50)


def teacher_logits(lm: Any, codes: torch.Tensor, fused: Fused, runner: Runner) -> torch.Tensor:
    """Logits [B, K, T, card] of codes [B, K, T], each given those before it and the conditions."""
    plan = runner.plan(codes.shape[-1])
    at = plan.frames.clamp(min=0).expand(len(codes), -1, -1)
    # Every step, where training leaves out the last ones: the codebooks are not all there any more.
    sequence = torch.where(plan.frames >= 0, codes.gather(2, at), models.CARD)
    length = sequence.shape[-1]
    hidden = hidden_states(lm, sequence, position_table(lm, fused.prefix_length + length, CPU), fused)
    by_step = hidden.view(len(codes), length, -1)
    return torch.stack([lm.linears[k](by_step[:, plan.steps[k] - 1]) for k in range(4)], dim=1)


def heard_by(model: MicroMusicGen, texts: list[str | None], sounds: list[torch.Tensor | None]) -> Heard:
    return model.conditioner.heard(texts, sounds)


def prompt_codes(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(models.CARD, (4, frames), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def expected(lm: Any, model: MicroMusicGen, heard: Heard, codes: torch.Tensor, coef: float, audio: float) -> Any:
    """The likeliest code everywhere, of logits guided by the formula written out, clip by clip and branch by branch."""
    spec = read_fuser(own.own_config("text and sound") | {"fuser": model_fuser(model)})

    def branch(names: set[str], clip: int) -> torch.Tensor:
        tensors = {
            name: tuple(x[clip : clip + 1] for x in (heard.conditional if name in names else heard.null)[name])
            for name in heard.conditional
        }
        return teacher_logits(lm, codes[clip : clip + 1], fuse(spec, tensors, device=CPU, dtype=torch.float32),  # type: ignore[arg-type]
                              model.runner)[0]  # fmt: skip

    found = []
    for clip in range(len(codes)):
        at, a, u = (branch(names, clip) for names in (set(heard.conditional), set(heard.audio), set()))
        found.append((u + audio * (a - u) + coef * (at - a)).argmax(-1))
    return torch.stack(found)


def model_fuser(model: MicroMusicGen) -> dict[str, Any]:
    arch = model.runner.network.arch
    return {"prepend": arch.prefix_conditions, "cross": arch.cross_conditions, "mask_padding": arch.mask_padding}


@pytest.mark.parametrize("form", own.FORMS)
@pytest.mark.parametrize("prompt_frames", [0, 5])
@pytest.mark.parametrize("coefs", [(1.0, 1.0), (3.0, 3.0), (3.0, 1.5)])
def test_greedy_codes_are_those_of_the_training_pass(form: str, prompt_frames: int, coefs: tuple[float, float]) -> None:
    """Texts of different lengths, a sound that is shorter than the model listens, and clips without, in one batch."""
    lm = own.make_lively(own.own_config(form))
    model = own.make_player(form, lm=lm)
    hears_text = "text" in form or "prefix" in form
    texts = ["acid", LONG, None, "a b"] if hears_text else [None] * 4
    sounds = [prompt_codes(FRAMES, 1), prompt_codes(2, 2), prompt_codes(FRAMES, 3), None]
    sounds = sounds if "sound" in form else [None] * 4  # type: ignore[list-item]
    model.set_generation_params(
        duration=0.3, use_sampling=False, cfg_coef=coefs[0], cfg_coef_audio=coefs[1] if "sound" in form else None
    )
    prompt = torch.stack([prompt_codes(prompt_frames, 9 + clip) for clip in range(4)]) if prompt_frames else None
    codes = model.codes(4, descriptions=texts, audio_prompts=sounds, prompt=prompt).clone()
    wanted = expected(lm, model, heard_by(model, texts, sounds), codes, *coefs)
    assert torch.equal(codes[..., prompt_frames:], wanted[..., prompt_frames:])
    assert prompt is None or torch.equal(codes[..., :prompt_frames], prompt)


@pytest.mark.parametrize("form", own.FORMS)
def test_logits_are_those_of_the_training_pass(form: str) -> None:
    lm = own.make_lively(own.own_config(form))
    model = own.make_player(form, lm=lm)
    hears_text = "text" in form or "prefix" in form
    sounds = [prompt_codes(3), None] if "sound" in form else [None, None]
    heard = heard_by(model, ["acid", LONG] if hears_text else [None, None], sounds)
    arch = model.runner.network.arch
    fused = fused_rows(arch, guided_rows(heard, 1.0), device=CPU, dtype=torch.float32)
    codes = torch.stack([prompt_codes(12, 5), prompt_codes(12, 6)])
    with torch.inference_mode():
        wanted = teacher_logits(lm, codes, fused, model.runner)
    torch.testing.assert_close(step_logits(model.runner, codes, fused), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["prefix, unroll", "prefix, delay", "text", "text and sound"])
def test_without_padding_greedy_codes_are_audiocrafts(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = own.make_lively(own.own_config(form))
    model = own.make_player(form, lm=lm)
    sounds = [prompt_codes(FRAMES, 1), prompt_codes(FRAMES, 2)] if "sound" in form else [None, None]
    said = heard_by(model, [LONG, f"zero {LONG}"], sounds)
    other = heard_by(model, ["x y z u v w", "1 2 3 4 5 6"], sounds)
    heard = Heard(conditional=said.conditional, null=other.conditional)
    both = {name: (torch.cat([x, other.conditional[name][0]]), torch.ones(4, x.shape[1]))
            for name, (x, _) in said.conditional.items()}  # fmt: skip
    provider = models.make_lm(models.text_lm_config()).condition_provider  # audiocraft's own asks its type
    monkeypatch.setattr(provider, "tokenize", lambda conditions: None)
    monkeypatch.setattr(provider, "forward", lambda tokenized: both)
    lm.condition_provider, lm.fuser = provider, theirs_fuser(form, lm)
    wanted = lm.generate(conditions=models.attributes(2), max_gen_len=12, use_sampling=False, cfg_coef=2.0)
    model.set_generation_params(duration=12 / 50, use_sampling=False, cfg_coef=2.0)
    assert torch.equal(model.codes(2, conditions=(heard.conditional, heard.null)), wanted)


def theirs_fuser(form: str, lm: Any) -> Any:
    fuser = own.own_config(form)["fuser"]
    lm.fuser.fuse2cond |= {way: list(fuser[way]) for way in ("prepend", "cross")}
    lm.fuser.cond2fuse = {name: way for way in ("prepend", "cross") for name in fuser[way]}
    return lm.fuser


# What is computed once.


def test_keys_and_values_of_conditions_are_computed_once_per_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, taken = own.make_player(), []
    compute = CrossAttention.keys_and_values
    monkeypatch.setattr(CrossAttention, "keys_and_values", lambda self, x: (taken.append(len(x)), compute(self, x))[1])
    model.set_generation_params(duration=2.5, seed=1, cfg_coef=3.0, cfg_coef_audio=2.0)  # 4 windows
    first = model.codes(2, descriptions=["acid", "a"], audio_prompts=own.noise()[None])
    assert sum(taken) == 2 * 3 * 2, "layers, branches, clips"
    assert torch.equal(model.codes(2, descriptions=["acid", "a"], audio_prompts=own.noise()[None]), first)
    assert sum(taken) == 2 * (2 * 3 * 2), "another generation has conditions of its own"


def test_each_thing_said_is_embedded_and_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own.make_player()
    words = model.conditioner.provider.conditioners["description"]  # type: ignore[attr-defined]
    encoded, encode = [], model.codec.encode
    monkeypatch.setattr(model.codec, "encode", lambda wav: (encoded.append(len(wav)), encode(wav))[1], raising=False)
    one = own.noise()
    model.codes(5, descriptions=["acid", "acid", None, "a", "acid"], audio_prompts=[one, one, None, one, own.noise()])
    assert words.prepared == ["acid", "a"] and encoded == [1, 1]


# Streams, continuations, windows.


@pytest.mark.parametrize("form", ["prefix, unroll", "prefix and sound", "text and sound"])
def test_streams_are_the_clips(form: str) -> None:
    model = own.make_player(form)
    said: dict[str, Any] = {"descriptions": ["acid", None]}
    if "sound" in form:
        said |= {"audio_prompts": [None, own.noise()], "cfg_coef": 2.0, "cfg_coef_audio": 3.0}
    for duration in (0.3, 1.4):
        model.set_generation_params(duration=duration, seed=4)
        whole = model.generate(said["descriptions"], **{k: v for k, v in said.items() if k != "descriptions"})
        assert isinstance(whole, torch.Tensor)
        stream = torch.cat(list(model.stream(chunk_s=0.1, **said)), dim=-1)
        assert stream.shape == whole.shape
        torch.testing.assert_close(stream, whole, atol=1e-5, rtol=0)
    assert (
        next(model.stream(chunk_s=0.1, audio_prompts=own.noise()[None])).shape[:2] == (1, 1) if "sound" in form else 1
    )


def test_continuations_listen_too() -> None:
    model = own.make_player()
    start = own.noise(0.14, seed=7)[None]
    _, plain = model.generate_continuation(start, 32000, return_tokens=True)
    _, told = model.generate_continuation(
        start, 32000, ["acid"], return_tokens=True, audio_prompts=own.noise()[None], cfg_coef_audio=2.0
    )
    assert torch.equal(plain[..., :7], told[..., :7]) and not torch.equal(plain, told)
    stream = torch.cat(
        list(model.stream(prompt=start, descriptions=["acid"], audio_prompts=own.noise()[None], cfg_coef_audio=2.0)), -1
    )
    torch.testing.assert_close(stream, model.decode(told), atol=1e-5, rtol=0)


# What can be said.


def tokens(model: MicroMusicGen, *arguments: Any, **more: Any) -> torch.Tensor:
    found = model.generate(*arguments, return_tokens=True, **more)
    assert isinstance(found, tuple)
    return found[1]


def test_nothing_said_is_unconditional() -> None:
    model = own.make_player()
    found = model.generate_unconditional(2, return_tokens=True)[1]
    for texts in ([None, None], ["", "  \n"]):
        assert torch.equal(tokens(model, texts), found), "an empty text is nothing said"
    assert torch.equal(tokens(model, [None, None], audio_prompts=[None, None]), found)


def test_sounds_in_every_shape() -> None:
    """One for all, a batch, a list with gaps; in stereo, at another rate, longer than the model listens, as codes."""
    model = own.make_player()
    one, other = own.noise(), own.noise(seed=1)
    alone = tokens(model, ["acid", "acid"], audio_prompts=[one, one])
    for all_alike in (one, one[None], one.expand(2, 1, -1)):
        assert torch.equal(tokens(model, ["acid", "acid"], audio_prompts=all_alike), alone)
    both = tokens(model, ["acid", "acid"], audio_prompts=torch.stack([one, other]))
    assert torch.equal(both[0], alone[0]) and not torch.equal(both[1], alone[1])
    gap = tokens(model, ["acid", "acid"], audio_prompts=[None, one])
    assert torch.equal(gap[1], alone[1]) and torch.equal(gap[0], tokens(model, ["acid", "acid"])[0])
    assert torch.equal(tokens(model, ["acid"], audio_prompts=[one.expand(2, -1)]), alone[:1])
    longer = torch.cat([one, other], dim=-1)
    assert torch.equal(tokens(model, ["acid"], audio_prompts=[longer]), alone[:1]), "the first frames count"
    assert torch.equal(tokens(model, ["acid"], audio_prompts=[model.codec.encode(one[None])[0]]), alone[:1])
    slow = own.noise(rate=22050)
    assert not torch.equal(tokens(model, ["acid"], audio_prompts=[slow], audio_sr=22050), alone[:1])
    wav = model.generate_with_audio_prompt(None, torch.stack([one, other]), 32000)
    assert isinstance(wav, torch.Tensor) and wav.shape == (2, 1, 9600)
    named = model.generate_with_audio_prompt(["acid", "acid"], one, 32000, False, True)
    assert isinstance(named, tuple) and torch.equal(named[1], alone)
    positional = model.generate(["acid", "acid"], False, True, audio_prompts=one)
    assert isinstance(positional, tuple) and torch.equal(positional[1], alone)


@pytest.mark.parametrize(
    ("form", "texts", "sounds", "words"),
    [
        ("sound", ["acid"], None, "trained without text, so 'acid' means nothing to it"),
        ("text", [None], own.noise(), "trained without audio prompts, so they mean nothing to it; leave them out"),
        ("text", "acid", None, r"a list of texts, one per clip; write \['acid'\]"),
        ("text", [3], None, "a description is a text or None, got 3"),
        ("text", None, None, "nothing was said to generate from; give descriptions, or use generate_unconditional"),
        ("text and sound", ["a", "b", "c"], [own.noise()], "1 audio prompts for 3 clips; give one each .* or one"),
        ("text and sound", ["a"], own.noise().expand(2, 1, -1), "2 audio prompts for 1 clips"),
        ("text and sound", [None] * 2, [None, own.noise(0.01)], "audio prompt 2 of 320 samples is shorter than one"),
        ("text and sound", ["a"], torch.zeros(1, 3200), "audio prompt 1 is silent .*; give a sound, or leave it out"),
        ("text and sound", ["a"], torch.full((1, 3200), float("nan")), "audio prompt 1 holds NaN or infinite samples"),
        ("text and sound", ["a"], torch.zeros(3200), r"axes \[B, C, L\] or \[C, L\]; got \(3200,\)"),
        ("text and sound", ["a"], [torch.zeros(3200)], r"audio prompt 1 has the shape \(3200,\); each has the axes"),
        ("text and sound", ["a"], torch.zeros(3, 3200), "audio prompt 1 has 1 or 2 channels, got 3"),
        ("text and sound", ["a"], torch.zeros(1, 3200, dtype=torch.int16), "is float; got .*int16"),
        ("text and sound", ["a"], torch.zeros(1, 0), "audio prompt 1 is empty"),
        ("text and sound", ["a"], ["kick.wav"], r"audio prompts are tensors \[C, L\].*; read files first"),
    ],
)  # fmt: skip
def test_what_cannot_be_said(form: str, texts: Any, sounds: Any, words: str) -> None:
    model = own.make_player(form)
    with pytest.raises(MicroMusicGenError, match=words) as found:
        model.generate(texts, audio_prompts=sounds)
    assert "\n" not in str(found.value)


def test_a_rate_that_is_none() -> None:
    with pytest.raises(MicroMusicGenError, match="audio prompt 1: sample rate 0 must be above 0 Hz"):
        own.make_player().generate([None], audio_prompts=own.noise(), audio_sr=0)


def test_conditions_count_in_the_memory_that_is_asked_for() -> None:
    from micro_musicgen.engine.state import LMState

    network = own.make_player().runner.network
    assert LMState.num_bytes(network, 2, 20, 10) - LMState.num_bytes(network, 2, 20) == 2 * 2 * 2 * 32 * 16 * 4


def test_a_mask_is_kept_where_nothing_is_padded() -> None:
    """The sums of one kernel and of another differ in the last bit; see `fused_rows`."""
    model = own.make_player("prefix, delay")
    arch = model.runner.network.arch
    rows = guided_rows(heard_by(model, [LONG], [None]), 1.0)
    assert fuse(arch, rows.conditions, device=CPU, dtype=torch.float32).prefix_mask is None
    assert fused_rows(arch, rows, device=CPU, dtype=torch.float32).prefix_mask is not None
    assert fused_rows(replace(arch, mask_padding=False), rows, device=CPU, dtype=torch.float32).prefix_mask is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", own.FORMS)
def test_recorded_steps_on_a_gpu(form: str) -> None:
    lm = own.make_lively(own.own_config(form))
    graph, eager = (
        own.make_player(form, lm=lm, device="cuda", precision="fp32", mode=mode) for mode in ("graph", "eager")
    )
    said: dict[str, Any] = {"descriptions": ["acid", None, LONG] if form != "sound" else None}
    if "sound" in form:
        said |= {"audio_prompts": [own.noise(), own.noise(seed=1), None], "cfg_coef": 3.0, "cfg_coef_audio": 2.0}
    first = eager.codes(3, **said)
    assert torch.equal(graph.codes(3, **said), first) and torch.equal(graph.codes(3, **said), first)
    cpu = own.make_player(form, lm=lm.cpu(), precision="fp32")
    assert torch.equal(cpu.codes(3, **said)[..., :2], first[..., :2].cpu())
