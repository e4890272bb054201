"""Measures of models that are told something: CLAP score, likelihood under descriptions, recognised labels."""

import pytest
import torch
from conditioned_models import make_player, noise

from micro_musicgen.audio.io import write_wav
from micro_musicgen.data.manifest import Track
from micro_musicgen.evaluation.clips import made_clips
from micro_musicgen.evaluation.likelihood import clap_score, held_out_likelihood, track_nll
from micro_musicgen.evaluation.music import label_accuracy
from micro_musicgen.evaluation.request import EvaluationRequest
from micro_musicgen.evaluation.sounds import SoundSet
from micro_musicgen.evaluation.subject import NamedEmbedder, Subject
from micro_musicgen.metrics.embedders import make_embedder

RATE = 32000
GENRES = ("dark", "bright")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A model that hears words, asked for two genres in turn, and labelled real sounds of two colours."""
    folder = tmp_path_factory.mktemp("conditioned")
    tracks = []
    for number in range(8):
        wav = noise(0.5, seed=number)[0]
        if number % 2 == 0:
            wav = torch.nn.functional.avg_pool1d(wav[None], 16, stride=1, padding=8)[0, : len(wav)]
        path = folder / f"{number}.wav"
        write_wav(path, wav.numpy(), RATE)
        genre = GENRES[number % 2]
        tracks.append(Track(str(path), 0.5, RATE, info={"genre": genre, "description": f"a {genre} sound"}))
    texts = tuple(f"a {genre} beat" for genre in GENRES)
    request = EvaluationRequest(release="x", num_clips=4, duration_s=0.3, seed=1, texts=texts, out=folder / "out")
    model = make_player("text and sound")
    return Subject(
        request,
        model,
        made_clips(model, request, {"hash": "x"}),
        embedders=[NamedEmbedder("log_mel", make_embedder("log_mel"))],
        reference=SoundSet("labelled", tuple(tracks), (8, 4.0)),
    )


def test_clips_take_turns_with_the_texts(subject):
    assert [prompt.text for prompt in subject.made.prompts] == ["a dark beat", "a bright beat"] * 2
    alone = subject.model.codes(1, descriptions=["a dark beat"], first_clip=2)
    assert torch.equal(alone[0], subject.made.codes[2])


def test_a_description_changes_the_likelihood(subject):
    codes = subject.reference_codes[0]
    silent, told = (track_nll(subject.model, codes, text)[0] for text in (None, "a dark sound"))
    assert not torch.allclose(silent, told)
    rows = {row.name: row for row in held_out_likelihood(subject).rows}
    assert rows["nll_described"].beside_label == "told nothing"
    mean = sum(rows[f"nll_q{k + 1}"].value for k in range(4)) / 4
    assert rows["nll_described"].beside == pytest.approx(mean) != rows["nll_described"].value


def test_labels_that_were_asked_for_are_looked_for(subject):
    finding = label_accuracy(subject)
    details = finding.details["log_mel"]
    assert details["classes"] == {"bright": 4, "dark": 4} and details["real_cross_validated"] == 1
    assert sum(each["clips"] for each in details["confusion"]) == 4
    (row,) = finding.rows
    heard = sum(each["clips"] for each in details["confusion"] if each["asked"] == each["heard"])
    assert row.value == heard / 4 and row.beside == 1 and row.n == 4


def test_clap_score_is_that_of_the_scorer(subject, tmp_path):
    pytest.importorskip("transformers")
    from tiny_clap import make_tiny_clap

    from micro_musicgen.evaluation.findings import NotMeasured

    with pytest.raises(NotMeasured, match="no CLAP model"):
        clap_score(subject)
    folder = make_tiny_clap(tmp_path / "clap", ["dark", "bright", "beat"])
    clap = make_embedder("clap", reference=str(folder))
    heard = Subject(subject.request, subject.model, subject.made, embedders=[NamedEmbedder("clap", clap)])
    (row,) = clap_score(heard).rows
    own = [prompt.text for prompt in subject.made.prompts]
    wanted = clap.score(subject.made.wavs, RATE, own)
    other = clap.score(subject.made.wavs, RATE, own[1:] + own[:1])
    assert row.value == pytest.approx(float(wanted.mean())) and row.n == 4
    assert row.beside == pytest.approx(float(other.mean())) and row.low <= row.value <= row.high
