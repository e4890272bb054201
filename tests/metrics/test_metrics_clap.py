"""CLAP on tiny models in the real format: transformers' own numbers, nothing random, and what is refused."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from tiny_clap import SAMPLE_RATE, WINDOW_S, make_tiny_clap

from micro_musicgen import hub_client
from micro_musicgen.errors import MicroMusicGenError, MissingExtraError, MissingFileError
from micro_musicgen.metrics.clap import Clap, load_clap
from micro_musicgen.metrics.embedders import make_embedder

WORDS = ("a fast dark beat with no bass", "a slow bright beat with bass")
WINDOW = WINDOW_S * SAMPLE_RATE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clap(tmp_path_factory.mktemp("clap"), " ".join(WORDS).split(), seed=0)


@pytest.fixture(scope="module")
def clap(folder: Path) -> Clap:
    return load_clap(str(folder))


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_agrees_with_transformers(clap: Clap, folder: Path) -> None:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    model = ClapModel.from_pretrained(folder).eval()
    wav = _noise(2, WINDOW)
    inputs = ClapFeatureExtractor.from_pretrained(folder)(list(wav.numpy()), sampling_rate=32000, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(list(WORDS), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs, **tokens)
    torch.testing.assert_close(
        clap.embed_audio(wav[:, None], SAMPLE_RATE).float(), found.audio_embeds, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(clap.embed_text(WORDS).float(), found.text_embeds, atol=1e-5, rtol=0)
    cosines = (found.audio_embeds * found.text_embeds).sum(dim=-1)
    torch.testing.assert_close(clap.score(wav[:, None], SAMPLE_RATE, WORDS).float(), cosines, atol=1e-5, rtol=0)


def test_lengths_and_ranges(clap: Clap) -> None:
    for wav in (_noise(2, 1, 3 * WINDOW + 5), _noise(2, 1, 700), torch.zeros(2, 1, 100)):
        heard, scores = clap.embed_audio(wav, 32000), clap.score(wav, 32000, WORDS)
        assert heard.shape == (2, clap.width) and heard.dtype == scores.dtype == torch.float64
        torch.testing.assert_close(heard.norm(dim=1), torch.ones(2, dtype=torch.float64))
        assert scores.shape == (2,) and scores.abs().max() <= 1
    torch.testing.assert_close(clap.embed_text(WORDS).norm(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("length", [WINDOW + 1, 2 * WINDOW, 5 * WINDOW // 2])
def test_a_long_clip_is_the_mean_of_windows_that_cover_it(clap: Clap, length: int) -> None:
    wav = _noise(1, 1, length)
    count = -(-length // WINDOW)
    starts = [round(i * (length - WINDOW) / (count - 1)) for i in range(count)]
    parts = torch.cat([clap.embed_audio(wav[..., s : s + WINDOW], 32000) for s in starts])
    np.testing.assert_allclose(clap.embed(wav, 32000), parts, atol=1e-6)
    wanted = torch.nn.functional.normalize(parts.mean(dim=0), dim=-1)
    torch.testing.assert_close(clap.embed_audio(wav, 32000)[0], wanted, atol=1e-6, rtol=0)
    assert starts[0] == 0 and starts[-1] == length - WINDOW and max(np.diff(starts)) <= WINDOW


def test_a_short_clip_is_repeated_as_the_extractor_does(clap: Clap) -> None:
    short = _noise(1, 1, WINDOW // 4)
    torch.testing.assert_close(clap.embed_audio(short, 32000), clap.embed_audio(short.repeat(1, 1, 4), 32000))


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_is_random_and_no_clip_minds_its_neighbours(clap: Clap, tmp_path: Path, fused: bool) -> None:
    if fused:
        changes = {"enable_fusion": True, "fusion_type": "aff_2d"}
        clap = load_clap(str(make_tiny_clap(tmp_path / "fused", WORDS[0].split(), **changes)))
    wav, texts = _noise(4, 1, 2 * WINDOW + 100), [*WORDS, "beat", "a beat " * 20]
    np.random.seed(1)
    state, global_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = clap.score(wav, 32000, texts)
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], global_state)
    np.random.seed(2)
    again = torch.cat([clap.score(wav[i : i + 1], 32000, texts[i : i + 1]) for i in reversed(range(4))]).flip(0)
    assert torch.equal(first, again)


def test_another_rate_and_stereo_are_the_same_sound(clap: Clap) -> None:
    tone = [torch.sin(2 * torch.pi * 440 * torch.arange(2 * rate) / rate)[None, None] for rate in (32000, 48000)]
    here, there = clap.embed_audio(tone[0], 32000), clap.embed_audio(tone[1].expand(-1, 2, -1), 48000)
    assert float((here * there).sum()) > 0.999


def test_is_frozen_and_named_by_its_content(clap: Clap, folder: Path, tmp_path: Path) -> None:
    assert not clap.model.training and not any(p.requires_grad for p in clap.model.parameters())
    assert not clap.embed_audio(_noise(1, 1, 50), 32000).requires_grad
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    embedder = make_embedder("clap", reference=str(moved))
    assert embedder.name == clap.name and embedder.name.startswith("clap-")
    assert load_clap(str(make_tiny_clap(tmp_path / "other", WORDS[0].split(), seed=1))).name != clap.name
    extractor = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps({**extractor, "hop_length": 640}))
    assert load_clap(str(moved)).name != clap.name


def test_texts_of_any_length(clap: Clap) -> None:
    long = "a fast dark beat " * 2500
    assert torch.equal(clap.embed_text([long, long + "with no bass"])[0], clap.embed_text([long + "with no bass"])[0])
    assert clap.embed_text(["", "ÄÖ 音楽"]).isfinite().all()
    for texts in ([], "one string"):
        with pytest.raises(MicroMusicGenError, match="a list of one or more strings"):
            clap.embed_text(texts)
    with pytest.raises(MicroMusicGenError, match="1 texts for 2 clips"):
        clap.score(_noise(2, 1, 100), 32000, ["beat"])


def _refused(reference: Path | str, words: str, kind: type[MicroMusicGenError] = MicroMusicGenError) -> None:
    with pytest.raises(kind, match=words) as caught:
        load_clap(str(reference))
    assert "\n" not in str(caught.value)


def test_folders_that_will_not_do(folder: Path, tmp_path: Path) -> None:
    _refused(tmp_path / "none", "there is no folder .* with a CLAP model; give one, or a Hub id", MissingFileError)
    _refused("./none", "there is no folder", MissingFileError)
    _refused(tmp_path, "holds no config.json of a model and not a CLAP model")
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5"}')
    _refused(tmp_path / "t5", "holds a t5 and not a CLAP model; give one such as laion/")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model.safetensors", r"has no .safetensors file \(it lacks its weights\)"),
        ("preprocessor_config.json", "lacks preprocessor_config.json; fetch the model again"),
        ("tokenizer.json", "lacks tokenizer.json"),
    ],
)
def test_missing_files_are_named(folder: Path, tmp_path: Path, file: str, words: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / file).unlink()
    _refused(copy, words)


def test_pickled_weights_are_not_opened(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    _refused(
        copy, r"pytorch_model.bin is a pickle, which can run code\); give a CLAP model that is saved as safetensors"
    )


def test_damaged_and_incomplete_weights(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = {name: value.clone() for name, value in load_file(copy / "model.safetensors").items()}
    (copy / "model.safetensors").write_bytes(b"broken" * 100)
    _refused(copy, "cannot be loaded as a CLAP model")
    del weights["audio_projection.linear1.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    _refused(copy, "lacks 1 of its weights, audio_projection.linear1.weight among them")


def test_an_id_that_cannot_be_reached_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> Path:
        raise MicroMusicGenError("cannot reach the Hub for laion/clap (no route); check the network")

    monkeypatch.setattr(hub_client, "download_folder", unreachable)
    _refused("laion/clap", "cannot reach .*; or fetch config.json, preprocessor_config.json, model.safetensors and tok")


def test_an_id_is_fetched_without_pickles(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked: list[object] = []

    def fetch(repo_id: str, patterns: object) -> Path:
        asked.extend([repo_id, patterns])
        return folder

    monkeypatch.setattr(hub_client, "download_folder", fetch)
    assert load_clap("laion/tiny").width == 32
    assert asked[0] == "laion/tiny" and not any(str(name).endswith((".bin", ".py")) for name in asked[1])


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("micro_musicgen.metrics.clap_files.version", absent)
    _refused(folder, r"needs transformers; run: pip install 'micro-musicgen\[clap\]'", MissingExtraError)
