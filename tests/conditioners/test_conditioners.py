"""The conditioners that ship: shapes, masks, scales, and what is trained and what is not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch

from micro_musicgen import storage
from micro_musicgen.conditioners.audio_prompt import AudioPromptConditioner
from micro_musicgen.conditioners.base import Conditioner, Surroundings, conditioners
from micro_musicgen.conditioners.provider import ConditionProvider
from micro_musicgen.conditioners.text import TextConditioner
from micro_musicgen.errors import MicroMusicGenError

DIM, K, CARD, LENGTH = 256, 4, 64, 8
SURROUNDINGS = Surroundings(dim=DIM, num_codebooks=K, card=CARD, frame_rate=50.0)
WORDS = ("a", "fast", "slow", "techno", "beat", "piano")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return tiny_text.make_tiny_t5(tmp_path_factory.mktemp("t5") / "tiny", WORDS)


def text(t5: Path, **settings: Any) -> TextConditioner:
    torch.manual_seed(0)
    made = conditioners.get("text")({"encoder": str(t5), "max_length": LENGTH, **settings}, SURROUNDINGS)
    assert isinstance(made, TextConditioner)
    return made


def audio(**settings: Any) -> AudioPromptConditioner:
    torch.manual_seed(0)
    made = conditioners.get("audio_prompt")({"duration_s": 0.4, **settings}, SURROUNDINGS)
    assert isinstance(made, AudioPromptConditioner)
    return made


def codes(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(CARD, (K, frames), generator=torch.Generator().manual_seed(seed))


def assert_well_formed(made: Conditioner, raw: list[Any], valid: list[int]) -> torch.Tensor:
    embeddings, mask = made(made.prepare(raw))
    assert embeddings.shape == (len(raw), made.num_positions, DIM) and mask.shape == embeddings.shape[:2]
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == valid
    assert all(bool(mask[row, :count].all()) for row, count in enumerate(valid)), "valid positions come first"
    assert not embeddings[~mask].any()
    return embeddings


def test_text_is_padded_and_masked(t5: Path) -> None:
    raw = ["a fast techno beat", None, "", " \n\t", "piano", "techno " * 50]
    embeddings = assert_well_formed(text(t5, modality=True), raw, [5, 0, 0, 0, 2, LENGTH])
    assert (embeddings[0, 0] - embeddings[4, 0]).abs().max() > 0.1


def test_nothing_said_is_the_null_condition(t5: Path) -> None:
    for made in (text(t5, modality=True), audio()):
        for found, expected in zip(made(made.prepare([None, None])), made.null(2), strict=True):
            assert torch.equal(found, expected) and found.shape == expected.shape and found.dtype == expected.dtype


def test_a_text_does_not_depend_on_its_neighbours(t5: Path) -> None:
    made = text(t5)
    alone = made.prepare(["fast techno"])
    among = made.prepare(["a slow piano beat", "fast techno", None])
    assert torch.equal(alone.features[0], among.features[1])
    made.encoder.recent._held.clear()
    assert torch.equal(made.prepare(["piano", "fast techno"]).features[1], alone.features[0])


@pytest.mark.parametrize("settings", [{}, {"modality": True}])
def test_text_embeddings_start_at_size_one(t5: Path, settings: Mapping[str, Any]) -> None:
    embeddings, mask = text(t5, **settings)(text(t5).prepare(["a fast techno beat", "slow piano"]))
    assert embeddings[mask].pow(2).mean().sqrt().item() == pytest.approx(1.0, abs=0.15)


def test_text_embeddings_do_not_depend_on_the_encoders_scale(t5: Path) -> None:
    made = text(t5)
    prepared = made.prepare(["a fast techno beat"])
    louder = prepared._replace(features=10 * prepared.features)
    torch.testing.assert_close(made(louder)[0], made(prepared)[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_prompts_are_cut_padded_and_masked(positions: str) -> None:
    made = audio(positions=positions)
    assert made.num_positions == 20  # 0.4 s of 50 frames
    raw = [codes(20), codes(7), None, codes(35), codes(0)]
    embeddings = assert_well_formed(made, raw, [20, 7, 0, 20, 0])
    assert torch.equal(embeddings[0, :7], assert_well_formed(made, [codes(20)[:, :7]], [7])[0, :7])
    assert embeddings[0].pow(2).mean().sqrt().item() == pytest.approx(1.15, abs=0.2)


def test_every_codebook_and_every_place_of_a_prompt_is_heard() -> None:
    made = audio()
    base = codes(20)
    for level in range(K):
        changed = base.clone()
        changed[level, 3] = (changed[level, 3] + 1) % CARD
        difference = (made(made.prepare([base]))[0] - made(made.prepare([changed]))[0]).abs().amax(-1)[0]
        assert difference[3] > 0.1 and difference.sum() == difference[3]
    same = torch.full((K, 20), 5)
    embeddings = made(made.prepare([same]))[0][0]
    assert (embeddings[0] - embeddings[1]).abs().max() > 0.1, "equal frames differ by their place"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.zeros(K - 1, 5, dtype=torch.long), r"codes \[4, frames\].*\(3, 5\)"),
        (torch.zeros(1, K, 5, dtype=torch.long), r"\(1, 4, 5\)"),
        (torch.zeros(K, 5), "whole numbers"),
        (torch.full((K, 5), CARD), "0 to 63"),
        (torch.full((K, 5), -1), "from -1"),
        ([[1, 2]], "not list"),
    ],
)
def test_prompts_that_are_no_codes_of_this_codec(bad: Any, says: str) -> None:
    with pytest.raises(MicroMusicGenError, match=says):
        audio().prepare([bad])


def test_a_description_that_is_no_text(t5: Path) -> None:
    with pytest.raises(MicroMusicGenError, match="not 3"):
        text(t5).prepare([3])  # type: ignore[list-item]


def test_all_that_is_wrong_with_settings_is_said_at_once() -> None:
    with pytest.raises(MicroMusicGenError, match=r"'text'.*no 'lenght'.*encoder is missing.*modality is 'yes'"):
        conditioners.get("text")({"lenght": 3, "modality": "yes"}, SURROUNDINGS)
    with pytest.raises(MicroMusicGenError, match=r"duration_s -1.*positions 'none'"):
        audio(duration_s=-1, positions="none")


def test_only_what_is_ours_is_trained_and_stored(t5: Path) -> None:
    provider = ConditionProvider({"description": text(t5, modality=True), "audio_prompt": audio()})
    provider.prepare({"description": ["techno"]})  # so that the encoder's weights are there
    names = {name for name, _ in provider.named_parameters()}
    prefix = "conditioners.description."
    assert {name for name in names if name.startswith(prefix)} == {f"{prefix}projection.weight", f"{prefix}modality"}
    assert set(provider.state_dict()) == names
    provider.train()
    made = provider.conditioners["description"]
    assert isinstance(made, TextConditioner)
    _, encoder = made.encoder._loaded()
    assert not encoder.training
    copied = copy.deepcopy(provider).conditioners["description"]
    assert isinstance(copied, TextConditioner) and copied.encoder is made.encoder


def test_gradients_reach_all_that_is_trained_and_nothing_else(t5: Path) -> None:
    provider = ConditionProvider({"description": text(t5, modality=True), "audio_prompt": audio(positions="learned")})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tensors = provider(provider.prepare({"description": ["techno", None], "audio_prompt": [None, codes(20)]}))
    sum(embeddings.float().square().sum() for embeddings, _ in tensors.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in provider.parameters())
    made = provider.conditioners["description"]
    assert isinstance(made, TextConditioner)
    _, encoder = made.encoder._loaded()
    assert all(p.grad is None for p in encoder.parameters())


def test_features_come_in_fp32_under_autocast(t5: Path) -> None:
    made = text(t5)
    plain = made.prepare(["a fast piano"]).features
    made.encoder.recent._held.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made.prepare(["a fast piano"]).features, plain)


def test_a_given_width_spares_looking_at_the_encoder(t5: Path) -> None:
    made = text(Path("/nowhere/at/all"), width=32)
    assert made(made.prepare([None]))[0].shape == (1, LENGTH, DIM)
    with pytest.raises(MicroMusicGenError, match="no folder '/nowhere"):
        made.prepare(["techno"])
    with pytest.raises(MicroMusicGenError, match="32 wide.*trained on one of 33"):
        text(t5, width=33).prepare(["techno"])


def test_warming_encodes_once_and_for_the_next_run(t5: Path, tmp_path: Path, monkeypatch: Any) -> None:
    texts = ["techno", None, "piano", "techno", " "]
    seen: list[tuple[int, int]] = []
    made = text(t5)
    made.encoder.recent._held.clear()
    made.warm(texts, folder=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"features-{made.encoder.content_hash[:16]}-{LENGTH}"
    expected = made.prepare(["piano"]).features

    again = text(t5)
    again.encoder.recent._held.clear()
    monkeypatch.setattr(again.encoder, "_loaded", lambda: pytest.fail("the encoder was asked"))
    again.warm(texts, folder=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 2 and torch.equal(again.prepare(["piano"]).features, expected)


def test_a_folder_that_cannot_be_written_to_costs_no_run(t5: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def fail(path: Any) -> Any:
        raise MicroMusicGenError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(storage, "atomic_write", fail)
    made = text(t5)
    made.warm(["techno"], folder=tmp_path)
    assert made.prepare(["techno"]).mask.sum() == 2
