"""bench/conditioning.py's parts: the tiny T5, the judge, the home. What models then do is not judged here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import conditioning  # noqa: E402
import conditioning_ask as asking  # noqa: E402
import conditioning_classifier as classifier  # noqa: E402
import conditioning_home as home_module  # noqa: E402
import conditioning_models as lms  # noqa: E402
import tiny_t5  # noqa: E402
from common import aim_met  # noqa: E402
from conditioning_home import FULL, Home, code_hash, codec_argv  # noqa: E402
from conditioning_plot import draw_sweep  # noqa: E402

from micro_musicgen.audio.labelled import combinations, synthesise_labelled  # noqa: E402
from micro_musicgen.audio.labelled_words import describe  # noqa: E402

RATE = 16000


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A tiny T5 of few steps, and how much it wrote back."""
    pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    texts = [describe(said, rng) for said in combinations(2) for _ in range(4)]
    folder = tmp_path_factory.mktemp("t5") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_t5, "BATCH", 16)
        return folder, tiny_t5.make(folder, texts, steps=60)


def test_the_tiny_t5_loads_as_the_real_ones_do_and_knows_every_word(encoder: tuple[Path, float]) -> None:
    from transformers import AutoTokenizer

    from micro_musicgen.conditioners.text_encoder import open_text_encoder

    folder, _ = encoder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "a fast dark breakbeat with bass on kit two"
    assert tokenizer.tokenize(text) == [f"▁{word}" for word in text.split()]
    assert tokenizer.unk_token_id not in tokenizer("bpm: 172. fast, slow")["input_ids"]
    opened = open_text_encoder(str(folder))
    features = opened.encode(text, 16, torch.device("cpu"))
    assert opened.width == tiny_t5.DIM and features.shape == (len(text.split()) + 1, tiny_t5.DIM)
    assert not torch.allclose(features, opened.encode(text.replace("two", "one"), 16, torch.device("cpu")))


def test_the_tiny_t5_learns_from_texts_alone(encoder: tuple[Path, float]) -> None:
    """A word in fifty by chance; orders and wordings leave some words open for good."""
    assert encoder[1] > 0.1


def test_equal_seeds_give_equal_encoders(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    files = []
    for name in ("a", "b"):
        tiny_t5.make(tmp_path / name, ["one two three", "two three one"], steps=2, seed=3)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_spans_are_cut_out_and_nothing_is_lost() -> None:
    pytest.importorskip("transformers")
    tokenizer = tiny_t5.make_tokenizer(["one two three four five six seven eight nine ten"])
    ids = tokenizer("one two three four five six seven eight nine ten")["input_ids"]
    sentinels = tiny_t5._sentinels(tokenizer)
    for seed in range(20):
        given, wanted = tiny_t5.corrupted([ids], np.random.default_rng(seed), tokenizer)
        pieces: dict[int, list[int]] = {}
        for token in wanted[0].tolist()[:-1]:
            if token in sentinels:
                spans = pieces.setdefault(token, [])
            else:
                spans.append(token)
        whole = [each for token in given[0].tolist() for each in pieces.get(token, [token])]
        assert whole == ids and pieces


@pytest.fixture(scope="module")
def judged() -> tuple[classifier.Judge, Any, Any]:
    """A judge that learned from few loops, and clips of a seed that it has not heard."""
    tracks = synthesise_labelled(1, 32, 5.0, RATE)
    clips, said = classifier.crops_of(tracks, 4, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "BATCH", 24)
        judge = classifier.train_judge(clips, said, RATE, steps=120)
    return judge, *classifier.crops_of(synthesise_labelled(2, 16, 5.0, RATE), 2, 1)


def test_the_judge_hears_attributes_in_loops_of_another_seed(judged: tuple[classifier.Judge, Any, Any]) -> None:
    """With a fifth of what it learns from in the bench; chance is a half."""
    judge, clips, said = judged
    found = classifier.accuracy(judge, clips, said)
    assert set(found) == {"kit", "tempo", "bass", "tone", "style"}
    assert min(found.values()) >= 0.75 and sum(found.values()) / 5 >= 0.9, found


def test_the_judge_is_deaf_to_loudness_and_to_what_comes_after_its_window(judged: Any) -> None:
    judge, clips, _ = judged
    longer = torch.cat([clips, torch.rand(len(clips), 1, RATE)], dim=-1)
    assert torch.equal(classifier.features(longer, RATE), classifier.features(clips, RATE))
    louder, plain = classifier.features(3 * clips, RATE), classifier.features(clips, RATE)
    torch.testing.assert_close(louder, plain, rtol=1e-3, atol=1e-3)


def test_a_kept_judge_says_the_same(judged: Any, tmp_path: Path) -> None:
    judge, clips, _ = judged
    exam = classifier.Examined(judge=judge, real={"kit": 0.99}, coded={"kit": 0.9})
    classifier._write(tmp_path / "judge", exam)
    found = classifier._read(tmp_path / "judge")
    assert found is not None and found.judge.judge(clips) == judge.judge(clips)
    assert found.is_fit and not replace(found, real={"kit": 0.99, "bass": 0.96}).is_fit
    assert classifier._read(tmp_path / "none") is None


def test_the_code_hash_follows_code_and_not_words_about_it(tmp_path: Path) -> None:
    def module(text: str) -> ModuleType:
        path = tmp_path / "made.py"
        path.write_text(text)
        import importlib.util
        import linecache

        linecache.clearcache()
        spec = importlib.util.spec_from_file_location("made", path)
        assert spec is not None
        return importlib.util.module_from_spec(spec)

    first = code_hash("x", module('"""A."""\ndef f():\n    """B."""\n    return 1\n'))
    assert first == code_hash("x", module("def f():\n    # why\n    return 1\n"))
    assert first != code_hash("x", module("def f():\n    return 2\n")) and first != code_hash(
        "y", module("def f():\n    return 1\n")
    )


def test_a_home_is_known_by_what_decides_it(tmp_path: Path) -> None:
    assert replace(FULL, threads=3).key == FULL.key != replace(FULL, num_tracks=3).key
    assert not Home(tmp_path).is_finished
    (tmp_path / "codec").write_text("c0dec000\n")
    assert Home(tmp_path).codec == "//sig/c0dec000"
    assert {"rvq.n_q=2", "rvq.bins=512", f"dset=audio/{home_module.DATASET}"} <= set(codec_argv(FULL))


class Obedient:
    """Stands where a model does: gives the loop that was asked for, whatever guidance is, and keeps what it is told."""

    window_s = classifier.WINDOW_S

    def __init__(self, clips: dict[str, torch.Tensor]) -> None:
        self.clips, self.told = clips, []  # type: ignore[var-annotated]

    def set_generation_params(self, **given: Any) -> None:
        self.told.append(given)

    def generate(self, texts: list[str | None], *, audio_prompts: Any, audio_sr: int | None) -> torch.Tensor:
        if audio_prompts is not None:
            return torch.stack(audio_prompts)
        return torch.stack([self.clips[str(text)] for text in texts])

    def generate_unconditional(self, size: int) -> torch.Tensor:
        return torch.zeros(size, 1, round(self.window_s * RATE))


def test_asking_pairs_what_was_asked_with_what_is_heard(judged: Any) -> None:
    judge, clips, said = judged
    heard = judge.judge(clips)
    model: Any = Obedient({str(index): clip for index, clip in enumerate(clips)})
    texts = [str(index) for index in range(len(clips))]
    found = asking.ask(model, judge, said, guidance=3.0, texts=texts, seed=5)
    assert list(found.heard) == heard and list(found.asked) == list(said)
    assert model.told[0] == {"cfg_coef": 3.0, "duration": classifier.WINDOW_S, "seed": 5}
    in_part = [{"kit": each["kit"], "tempo": each["tempo"]} for each in said]
    by_example = asking.ask(model, judge, in_part, guidance=1.0, sounds=list(clips))
    shares = [sum(h[n] == s[n] for n in s) / 2 for s, h in zip(in_part, heard, strict=True)]
    assert by_example.shares == shares and by_example.accuracy == pytest.approx(np.mean(shares))
    assert by_example.hits("tempo") == [s["tempo"] == h["tempo"] for s, h in zip(said, heard, strict=True)]
    assert by_example.hits("bass") == []
    assert len(set(map(str, asking.ask(model, judge, said, guidance=1.0).heard))) == 1


def test_the_opposite_differs_in_everything() -> None:
    known = combinations(2)
    for said in known:
        other = asking.opposite(said, known)
        assert all(said[name] != other[name] for name in said)


def answers(share: float) -> asking.Answers:
    asked = tuple({"kit": "one", "tempo": "slow"} for _ in range(20))
    right = round(20 * share)
    heard = tuple({"kit": "one", "tempo": "slow" if index < right else "fast"} for index in range(20))
    return asking.Answers(asked, heard)


def test_rows_have_names_aims_controls_and_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    found = {"w=3": answers(0.9), "w=1": answers(0.6), "wrong": answers(0.1), "nothing": answers(0.5)}
    rows = {row.name: row for row in conditioning.word_rows("", found)}
    assert set(rows) >= {"attribute_accuracy", "attribute_accuracy_unguided"}
    row = rows["attribute_accuracy"]
    assert row.value == pytest.approx(0.95) and aim_met(row) and row.n == 20
    assert row.spread is not None and row.spread[0] < 0.95 < row.spread[1]
    assert "opposite words 0.550" in row.note
    assert [row.name for row in conditioning.word_rows("text_cross", found)][0] == "attribute_accuracy_text_cross"
    rows = {row.name: row for row in conditioning.sound_rows({**found, "text": answers(0.8)})}
    assert set(rows) >= {"prompt_match", "prompt_match_wrong", "prompt_match_none"}
    assert rows["prompt_match"].peer_value == pytest.approx(0.55)
    exam: Any = SimpleNamespace(real={"kit": 1.0, "tempo": 0.99}, coded={"kit": 0.98, "tempo": 0.97})
    conditioning.print_attributes("a model", found, exam)
    said = capsys.readouterr().out
    assert "kit" in said and "0.90" in said and "0.10" in said
    sweep = {f"w={w:g}": answers(0.5) for w in conditioning.SWEEP}
    plot = draw_sweep({"words": {**sweep, "wrong": answers(0.1)}}, conditioning.SWEEP, tmp_path / "guidance.png")
    assert plot.stat().st_size > 5000


def test_models_differ_by_conditioner_alone(tmp_path: Path) -> None:
    (tmp_path / "codec").write_text("c0dec000\n")
    argv = {name: set(lms.overrides(name, Home(tmp_path), FULL, lms.Recipe())) for name in lms.CONDITIONERS}
    changed = {each.partition("=")[0] for a in argv.values() for b in argv.values() for each in a - b}
    assert changed == {
        "conditioner",
        "attribute_dropout.wav.audio_prompt",
        "conditioners.audio_prompt.audio_prompt.duration_s",
    }
    assert "codebooks_pattern.delay.delays=[0,1]" in argv["text_cross"]


@pytest.mark.parametrize("script", ["tiny_t5.py", "conditioning_home.py", "conditioning.py"])
def test_help_is_there_and_loads_no_torch(script: str) -> None:
    code = f"import sys, runpy; sys.argv = ['x', '--help']; sys.path.insert(0, {str(BENCH)!r})\n"
    code += f"try: runpy.run_path({str(BENCH / script)!r}, run_name='__main__')\n"
    code += "except SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
