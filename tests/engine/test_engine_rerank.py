"""The best of several candidates: which are made, which is chosen, and what a failing scorer costs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import fixtures_models as models
import pytest
import torch
from tiny_clap import make_tiny_clap

from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.engine.clips import ClipRequest, write_clips
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.engine.inputs import UpstreamConditioner
from micro_musicgen.engine.rerank import candidate_generators, generate_best, pick
from micro_musicgen.engine.sampler import clip_generators
from micro_musicgen.engine.written import Scores
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.metrics.clap import Clap

TEXTS = ["dark", "bright"]


class Heard:
    """A scorer that remembers what it was given."""

    name = "heard"

    def __init__(self, rule: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.rule, self.calls = rule, []

    def score(self, wavs: torch.Tensor, sample_rate: int, texts: Sequence[str]) -> torch.Tensor:
        self.calls.append((wavs, sample_rate, list(texts)))
        return self.rule(wavs)


def _level(wavs: torch.Tensor) -> torch.Tensor:
    return wavs.double().square().mean(dim=(1, 2))


@pytest.fixture(scope="module")
def model() -> MicroMusicGen:
    config = models.text_lm_config()
    lm = models.make_lm(config)
    codec = EncodecCodec(models.make_codec_model(), models.codec_config())
    made = MicroMusicGen(
        config,
        {name: value for name, value in lm.state_dict().items() if not name.startswith("condition_provider")},
        codec,
        window_s=models.WINDOW_S,
        device="cpu",
        conditioner=UpstreamConditioner(lm.condition_provider),
    )
    made.set_generation_params(duration=0.2, seed=7)
    return made


def test_candidate_0_is_the_clip_without_candidates_and_the_best_is_returned(model: MicroMusicGen) -> None:
    plain = model.codes(2, descriptions=TEXTS)
    scorer = Heard(_level)
    best = generate_best(model, TEXTS, num_candidates=3, scorer=scorer)
    assert best.scores.shape == (2, 3) and best.scores.dtype == torch.float64 and best.fault is None
    assert best.wavs.shape == (2, 1, 6400) and best.codes.shape == plain.shape
    assert [texts for _, _, texts in scorer.calls] == [["dark"] * 3, ["bright"] * 3]
    for clip, (wavs, rate, _) in enumerate(scorer.calls):
        assert rate == model.sample_rate and len({wav.sum().item() for wav in wavs}) == 3
        torch.testing.assert_close(wavs[0], model.decode(plain[clip : clip + 1])[0])
        assert torch.equal(best.scores[clip], _level(wavs)) and best.chosen[clip] == _level(wavs).argmax()
        assert torch.equal(best.wavs[clip], wavs[best.chosen[clip]])
        torch.testing.assert_close(best.wavs[clip], model.decode(best.codes[clip : clip + 1])[0])
    worst = generate_best(model, TEXTS, num_candidates=3, scorer=Heard(lambda wavs: -_level(wavs)))
    torch.testing.assert_close(worst.scores, -best.scores)
    assert (worst.chosen != best.chosen).all()


def test_one_candidate_is_what_generate_gives(model: MicroMusicGen) -> None:
    best = generate_best(model, TEXTS, num_candidates=1, scorer=Heard(_level))
    assert torch.equal(best.codes, model.codes(2, descriptions=TEXTS)) and best.chosen.tolist() == [0, 0]


def test_candidates_do_not_depend_on_the_batch(model: MicroMusicGen) -> None:
    both = generate_best(model, TEXTS, num_candidates=3, scorer=Heard(_level))
    second = generate_best(model, TEXTS[1:], num_candidates=3, scorer=Heard(_level), first_clip=1)
    assert torch.equal(second.codes[0], both.codes[1])
    torch.testing.assert_close(second.scores[0], both.scores[1])
    more = generate_best(model, TEXTS, num_candidates=4, scorer=Heard(_level))
    torch.testing.assert_close(more.scores[:, :3], both.scores)


def test_generators_are_functions_of_seed_clip_and_candidate() -> None:
    def draws(found: list[torch.Generator]) -> list[int]:
        return [int(torch.randint(2**60, (), generator=generator)) for generator in found]

    made = draws(candidate_generators(5, 4, 6))
    assert len(set(made)) == 24
    assert made[::6] == draws(clip_generators(5, 4))
    assert draws(candidate_generators(5, 1, 6, first_clip=2)) == made[12:18]
    assert [made[i] for i in (12, 13)] == draws(candidate_generators(5, 1, 2, first_clip=2))
    assert not set(made) & set(draws(candidate_generators(6, 4, 6)))


def test_ties_go_to_the_first_and_nan_to_nobody() -> None:
    nan, inf = math.nan, math.inf
    for scores, wanted in (
        ([1.0, 1.0, 0.0], 0),
        ([0.0, 2.0, 2.0], 1),
        ([nan, -5.0, nan], 1),
        ([nan, nan], 0),
        ([nan, -inf], 1),
        ([0.5, nan, inf], 2),
    ):
        assert pick(torch.tensor(scores, dtype=torch.float64)) == wanted


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda wavs: 1 / 0, "division by zero"),
        (lambda wavs: torch.zeros(1), r"shape \(1,\) for 3 candidates"),
        (lambda wavs: None, ""),
    ],
)
def test_a_failing_scorer_costs_nothing(
    model: MicroMusicGen, caplog: pytest.LogCaptureFixture, rule: Callable, words: str
) -> None:
    with caplog.at_level(logging.WARNING):
        found = generate_best(model, TEXTS, num_candidates=3, scorer=Heard(rule))
    assert found.chosen.tolist() == [0, 0] and found.scores.isnan().all() and found.fault
    assert torch.equal(found.codes, model.codes(2, descriptions=TEXTS))
    assert len(caplog.records) == 2 and "its first candidate is kept" in caplog.text


def test_one_clip_that_cannot_be_scored_does_not_harm_the_others(model: MicroMusicGen) -> None:
    calls = iter([_level, lambda wavs: 1 / 0])
    found = generate_best(model, TEXTS, num_candidates=3, scorer=Heard(lambda wavs: next(calls)(wavs)))
    assert found.scores[0].isfinite().all() and found.scores[1].isnan().all() and found.chosen[1] == 0


def test_a_continuation_begins_with_its_prompt(model: MicroMusicGen) -> None:
    prompt = torch.arange(2 * 4 * 3).reshape(2, 4, 3)
    found = generate_best(model, TEXTS, num_candidates=2, scorer=Heard(_level), prompt=prompt)
    assert torch.equal(found.codes[..., :3], prompt)


def test_bad_input_is_named(model: MicroMusicGen) -> None:
    scorer = Heard(_level)
    for texts, count, words in (
        (TEXTS, 0, "0 candidates for a clip; ask for 1 to"),
        (TEXTS, 10**6, "1000000 candidates"),
        (["dark", None], 2, "clip 1 has no text, and candidates are chosen by their text"),
        (["dark", " "], 2, "clip 1 has no text"),
        ([], 2, "0 clips were asked for"),
        ("dark", 2, r"write \['dark'\]"),
    ):
        with pytest.raises(MicroMusicGenError, match=words):
            generate_best(model, texts, num_candidates=count, scorer=scorer)
    assert not scorer.calls


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return make_tiny_clap(tmp_path_factory.mktemp("clap"), TEXTS)


@pytest.fixture
def request_(home: Path, tmp_path: Path, clap_folder: Path) -> ClipRequest:
    models.write_codec_run()
    models.write_lm_run(config=models.text_lm_config())
    return ClipRequest(
        release="jungle",
        num_clips=3,
        out=tmp_path / "clips",
        duration_s=0.2,
        seed=5,
        texts=("dark",),
        candidates=3,
        clap=str(clap_folder),
        batch_size=6,
    )


def test_files_are_the_best_candidates_and_their_scores_lie_beside_them(request_: ClipRequest, tmp_path: Path) -> None:
    written = write_clips(request_)
    assert sorted(path.name for path in request_.out.iterdir()) == [
        *(f"jungle_5_00{i}.wav" for i in range(3)),
        "jungle_5_scores.json",
    ]
    plain = written.plain()
    assert json.loads((request_.out / "jungle_5_scores.json").read_text()) == plain
    assert plain["scorer"].startswith("clap-") and len(plain["clips"]) == 3
    for clip, line in zip(plain["clips"], written.lines(), strict=False):
        assert len(clip["scores"]) == 3 and clip["scores"][clip["chosen"]] == max(clip["scores"])
        assert f"score {max(clip['scores']):.3f}, best of 3 from {min(clip['scores']):.3f} up" in line
    alone = write_clips(replace(request_, out=tmp_path / "alone", batch_size=1))
    assert [path.read_bytes() for path in alone.files] == [path.read_bytes() for path in written.files]
    without = write_clips(replace(request_, out=tmp_path / "without", candidates=1, clap=None))
    assert without.plain().keys() == {"seed", "files", "clips", "cfg_coef"}
    for clip, with_, plain_ in zip(plain["clips"], written.files, without.files, strict=True):
        assert (with_.read_bytes() == plain_.read_bytes()) == (clip["chosen"] == 0)
    assert any(clip["chosen"] for clip in plain["clips"])


def test_clap_alone_scores_without_choosing(request_: ClipRequest) -> None:
    (clip,) = write_clips(replace(request_, candidates=1, num_clips=1)).clips
    assert clip.scores is not None and len(clip.scores.values) == 1 and ", best of" not in clip.line()


def test_a_scorer_that_fails_leaves_all_files(request_: ClipRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clap, "score", lambda *_: 1 / 0)
    written = write_clips(request_)
    assert all(path.is_file() for path in written.files) and "not scored" in written.lines()[0]
    assert written.plain()["clips"][0]["scores"] == [None, None, None]


def test_scores_that_exist_are_kept(request_: ClipRequest) -> None:
    request_.out.mkdir()
    (request_.out / "jungle_5_scores.json").write_text("mine")
    with pytest.raises(MicroMusicGenError, match="jungle_5_scores.json exists; choose another --seed or --out"):
        write_clips(request_)


def test_bad_candidates_are_refused_before_a_model_is_loaded(
    request_: ClipRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes, words in (
        ({"candidates": 0}, "0 candidates for a clip"),
        ({"clap": None}, "3 candidates need a CLAP model to choose by; add --clap with its folder or Hub id"),
        ({"texts": ()}, "CLAP compares clips with a text, and there is none; add --text"),
    ):
        with pytest.raises(MicroMusicGenError, match=words):
            replace(request_, **changes)
    monkeypatch.setattr(MicroMusicGen, "get_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(MissingFileError, match="there is no folder ./nowhere with a CLAP model"):
        write_clips(replace(request_, clap="./nowhere"))


def test_scores_for_people() -> None:
    assert Scores((0.25, math.nan, 0.5), 2).line() == "score 0.500, best of 3 from 0.250 up"
    assert Scores((math.nan, math.nan), 0).line() == "not scored"
    assert Scores((math.nan, 0.5), 1).plain() == {"scores": [None, 0.5], "chosen": 1}
