"""Drawing codes: against closed forms, and what a clip's codes may and may not depend on."""

from __future__ import annotations

from typing import Any

import fixtures_models as models
import pytest
import torch

from micro_musicgen.contracts import GenerationParams
from micro_musicgen.engine.runner import Runner
from micro_musicgen.engine.sampler import chances, clip_generators, draw
from micro_musicgen.engine.windows import CodeRequest, Windows, code_chunks, generate_codes, windows
from micro_musicgen.errors import MicroMusicGenError

ALL = GenerationParams(top_k=0)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return models.make_runner()


def window(
    runner: Runner, params: GenerationParams, seed: int, clips: int, frames: int, **changes: Any
) -> torch.Tensor:
    """Codes [clips, K, frames] made within one window."""
    progress = changes.pop("progress", None)
    generators = clip_generators(seed, clips, first_clip=changes.pop("first_clip", 0))
    shape = changes.pop("shape", Windows(frames, max(1, frames - 1)))
    request = CodeRequest(params=params, generators=generators, num_frames=frames, shape=shape, **changes)
    return generate_codes(runner, request, progress)


def test_draws_pass_a_chi_square_test() -> None:
    """Independent numbers, as generation draws them, against the exact probabilities of 64 codes."""
    from scipy.stats import chi2

    logits = torch.randn(64, generator=torch.Generator().manual_seed(1))
    chance = chances(clip_generators(3, 1), 4, 5_000).flatten()
    codes = draw(logits.expand(len(chance), -1), ALL, chance)
    found, wanted = torch.bincount(codes, minlength=64).double(), logits.double().softmax(-1) * len(chance)
    assert float(((found - wanted) ** 2 / wanted).sum()) < chi2.ppf(0.999, 63)


def uniforms(count: int) -> torch.Tensor:
    return (torch.arange(count) + 0.5) / count


def shares(logits: torch.Tensor, params: GenerationParams, count: int = 10_000) -> torch.Tensor:
    """How often each code is drawn when the uniform numbers are spread evenly: the model's own distribution."""
    codes = draw(logits.expand(count, -1), params, uniforms(count))
    return torch.bincount(codes, minlength=logits.shape[-1]) / count


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.0])
    torch.testing.assert_close(shares(logits, ALL), logits.softmax(-1), atol=2e-4, rtol=0)
    halved = GenerationParams(top_k=0, temperature=0.5)
    torch.testing.assert_close(shares(logits, halved), (2 * logits).softmax(-1), atol=2e-4, rtol=0)


def test_top_k_keeps_the_k_likeliest() -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.0])
    found = shares(logits, GenerationParams(top_k=2))
    wanted = torch.tensor([0.0, 0.0, 0.0, 0.0])
    wanted[[1, 3]] = torch.tensor([2.0, 1.0]).softmax(-1)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    torch.testing.assert_close(
        shares(logits, GenerationParams(top_p=0.6)), torch.tensor([0.625, 0.375, 0, 0]), atol=2e-4, rtol=0
    )
    assert shares(logits, GenerationParams(top_p=0.5, top_k=3))[0] == 1
    torch.testing.assert_close(shares(logits, GenerationParams(top_p=1.0)), logits.exp(), atol=2e-4, rtol=0)


def test_draws_agree_with_audiocrafts_distribution() -> None:
    from micro_musicgen.upstream import audiocraft_module

    logits = torch.tensor([0.3, 2.0, -1.0, 1.0])
    torch.manual_seed(0)
    theirs = audiocraft_module("utils.utils").sample_top_k(logits.softmax(-1).expand(20_000, 4).clone(), 3)
    torch.testing.assert_close(
        shares(logits, GenerationParams(top_k=3)), torch.bincount(theirs[:, 0], minlength=4) / 20_000, atol=0.02, rtol=0
    )


def test_extreme_draws_stay_in_range() -> None:
    logits = torch.tensor([[0.0, -200.0, 0.0]])
    for uniform in (0.0, 1 - 2**-24, 1.0):
        for params in (ALL, GenerationParams(top_k=2), GenerationParams(top_p=0.4), GenerationParams(temperature=1e-4)):
            assert int(draw(logits, params, torch.tensor([uniform]))) in (0, 2)
    assert int(draw(torch.tensor([1.0, 3.0, 2.0]), GenerationParams(greedy=True), torch.tensor(0.0))) == 1
    assert draw(torch.zeros(2, 4, 8), GenerationParams(top_k=250), torch.rand(2, 4)).shape == (2, 4)


def test_the_same_seed_gives_the_same_codes_and_another_seed_others(runner: Runner) -> None:
    first, again = (window(runner, ALL, 7, 2, 10) for _ in range(2))
    assert first.shape == (2, 4, 10) and first.dtype == torch.int64
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    other = window(runner, ALL, 8, 2, 10)
    assert (first != other).float().mean() > 0.9


def test_a_clip_does_not_depend_on_its_batch(runner: Runner) -> None:
    together = window(runner, ALL, 7, 3, 10)
    alone = window(runner, ALL, 7, 1, 10, first_clip=2)
    assert torch.equal(together[2:], alone)


def test_no_global_state_is_touched(runner: Runner) -> None:
    before = torch.get_rng_state()
    window(runner, ALL, 7, 1, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interruption_leaves_the_model_usable(runner: Runner) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    wanted = window(runner, ALL, 7, 1, 8)
    with pytest.raises(KeyboardInterrupt):
        window(runner, ALL, 7, 1, 8, progress=stop)
    assert torch.equal(window(runner, ALL, 7, 1, 8), wanted)


def test_a_prompt_stays_and_decides(runner: Runner) -> None:
    prompt = window(runner, ALL, 7, 2, 6)
    codes = window(runner, ALL, 9, 2, 10, prompt=prompt)
    assert torch.equal(codes[..., :6], prompt)
    greedy = GenerationParams(greedy=True)
    whole = window(runner, greedy, 0, 1, 10)
    rest = window(runner, greedy, 0, 1, 10, prompt=whole[..., :6])
    assert torch.equal(rest, whole)


def test_progress_counts_frames_up_to_the_end(runner: Runner) -> None:
    heard: list[tuple[int, int]] = []
    prompt = torch.zeros(1, 4, 2, dtype=torch.long)
    window(runner, ALL, 7, 1, 8, prompt=prompt, progress=lambda *p: heard.append(p))
    assert heard[0] == (1, 6) and heard[-1] == (6, 6) and heard == sorted(heard)


def test_a_diverged_model_is_named() -> None:
    lm = models.make_lm()
    lm.linears[0].weight.data.fill_(float("nan"))
    runner = models.make_runner(lm=lm)
    with pytest.raises(MicroMusicGenError, match="not finite: its training diverged"):
        window(runner, ALL, 7, 1, 5)


# Windows.


def test_the_default_stride_is_sixty_percent() -> None:
    assert windows(10.0, 50.0, None) == Windows(500, 300)
    assert windows(10.0, 50.0, 2.5) == Windows(500, 125)
    assert windows(0.02, 50.0, None) == Windows(1, 1)
    with pytest.raises(MicroMusicGenError, match="extend_stride 10 s must be shorter than the model's window of 10 s"):
        windows(10.0, 50.0, 10.0)


def test_windows_continue_each_other(runner: Runner) -> None:
    """Greedy window after window, by hand: context of window - stride frames, then new ones."""
    greedy, shape = GenerationParams(greedy=True), Windows(10, 6)
    found = window(runner, greedy, 0, 1, 20, shape=shape)
    wanted = window(runner, greedy, 0, 1, 10)
    for length in (10, 8):
        more = window(runner, greedy, 0, 1, length, prompt=wanted[..., -4:])
        wanted = torch.cat([wanted, more[..., 4:]], dim=-1)
    assert found.shape == (1, 4, 20) and torch.equal(found, wanted)


@pytest.mark.parametrize("prompt_frames", [1, 5, 10, 17])
def test_prompts_may_be_longer_than_the_window(runner: Runner, prompt_frames: int) -> None:
    prompt = torch.randint(64, (2, 4, prompt_frames), generator=torch.Generator().manual_seed(0))
    heard: list[tuple[int, int]] = []
    codes = window(runner, ALL, 3, 2, 21, shape=Windows(10, 6), prompt=prompt, progress=lambda *p: heard.append(p))
    assert codes.shape == (2, 4, 21) and torch.equal(codes[..., :prompt_frames], prompt)
    assert heard[-1] == (21 - prompt_frames, 21 - prompt_frames) and heard == sorted(heard)


def test_long_clips_agree_with_audiocraft(runner: Runner) -> None:
    """The same windows as upstream's loop, where it can be compared: greedy, no prompt."""
    from micro_musicgen.upstream import audiocraft_module

    theirs = audiocraft_module("models").MusicGen("x", models.make_codec_model(), models.make_lm(), max_duration=0.2)
    theirs.set_generation_params(use_sampling=False, duration=0.5, extend_stride=0.12)
    _, wanted = theirs.generate_unconditional(1, return_tokens=True)
    found = window(runner, GenerationParams(greedy=True), 0, 1, 25, shape=Windows(10, 6))
    assert torch.equal(found, wanted)


def test_chunks_are_the_whole(runner: Runner) -> None:
    """What a stream is given as it goes is what the call gives at the end, over windows and with a prompt."""
    for prompt in (None, torch.randint(64, (2, 4, 5), generator=torch.Generator().manual_seed(0))):
        request = CodeRequest(
            params=ALL, generators=clip_generators(3, 2), num_frames=23, shape=Windows(10, 6), prompt=prompt
        )
        whole = generate_codes(runner, request)
        for size in (1, 3, 10, 100):
            request = CodeRequest(
                params=ALL, generators=clip_generators(3, 2), num_frames=23, shape=Windows(10, 6), prompt=prompt
            )
            chunks = list(code_chunks(runner, request, chunk_frames=size))
            assert torch.equal(torch.cat(chunks, dim=-1), whole)
            assert size > 3 or max(chunk.shape[-1] for chunk in chunks[1:]) <= size
