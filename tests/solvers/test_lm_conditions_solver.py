"""Training with conditions through Dora: what crops are told, frozen encoders, clips, resume, refusals."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_models import write_codec_run
from solver_runs import losses
from tiny_text import make_tiny_t5, words_of

from micro_musicgen import checkpoints, paths, references
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.lm import LMSolver
from micro_musicgen.train import get_solver, main, run_xp

pytest.importorskip("transformers")

TEXTS = ("a slow dark break", "a fast bright break with bass")
DEBUG = ("solver=musicgen/debug", "dset=audio/told", "compression_model_checkpoint=//sig/c0dec000", "num_threads=1")


@pytest.fixture(scope="module")
def told_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data home with the data set `told`: long tracks with descriptions; and a tiny T5 that knows their words."""
    from micro_musicgen.audio.io import write_wav
    from micro_musicgen.audio.synth import synthesise
    from micro_musicgen.data.prepare import prepare

    root = tmp_path_factory.mktemp("told")
    kept = os.environ.get(paths.HOME_VARIABLE), main.dora.dir
    os.environ[paths.HOME_VARIABLE] = str(root / "home")
    main.dora.dir = paths.runs_dir()
    loops = synthesise(3, minutes=0.5)
    for index in range(4):
        sound = torch.from_numpy(loops[index % len(loops)].wav).repeat(3)[: 9 * 32000]
        write_wav(root / "sounds" / f"track{index}.wav", sound[None].numpy(), 32000)
        if index != 3:
            info = {"description": TEXTS[index % 2], "genre": "jungle"}
            (root / "sounds" / f"track{index}.json").write_text(json.dumps(info))
    prepare(root / "sounds", "told", valid_fraction=0.3)
    (root / "mute").mkdir()
    for path in (root / "sounds").glob("*.wav"):
        shutil.copy(path, root / "mute" / path.name)
    prepare(root / "mute", "mute", valid_fraction=0.3)
    make_tiny_t5(root / "t5", words_of(*TEXTS, "genre: jungle. jungle"))
    write_codec_run()
    yield root
    if kept[0] is None:
        del os.environ[paths.HOME_VARIABLE]
    else:
        os.environ[paths.HOME_VARIABLE] = kept[0]
    main.dora.dir = kept[1]


def overrides(conditioner: str, root: Path, *more: str) -> list[str]:
    encoder = [f"conditioners.description.text.encoder={root / 't5'}"] if "text" in conditioner else []
    lengths = ["conditioners.description.text.max_length=12"] if encoder else []
    return [*DEBUG, f"conditioner={conditioner}", *encoder, *lengths, *more]


def built(argv: list[str]) -> LMSolver:
    xp = main.experiment(argv)
    main.init_xp(xp)
    with xp.enter():
        solver = get_solver(xp.cfg)
    assert isinstance(solver, LMSolver)
    return solver


@pytest.mark.parametrize("conditioner", ["text_cross", "text_prefix", "audio_prompt", "text_audio"])
def test_every_conditioner_trains_plays_and_keeps_its_encoder_out(conditioner: str, told_home: Path) -> None:
    folder = run_xp(overrides(conditioner, told_home))
    history = json.loads((folder / "history.json").read_text())
    assert len(history) == 2 and history[-1]["valid"]["ce"] < 5
    names = sorted(path.name for path in (folder / "samples").glob("0002_*.wav"))
    if "text" in conditioner:
        assert "0002_0_a_fast_techno_beat_with_a_synth_lead.wav" in names and len(names) >= 3
    if conditioner in ("audio_prompt", "text_audio"):
        assert "0002_like_valid_0.wav" in names
    state = checkpoints.load(folder / references.CHECKPOINT_NAME)
    ours = [name for name in state["model"] if name.startswith("condition_provider.")]
    assert ours and not any("encoder" in name or "t5" in name for name in ours)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["conditions"]["names"] == (
        ["description"] * ("text" in conditioner) + ["audio_prompt"] * ("audio" in conditioner)
    )


def test_killed_and_resumed_is_bit_equal(told_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = overrides("text_audio", told_home, "generate.every=never", "label=killed")
    folder = run_xp(argv)
    whole = checkpoints.load(folder / references.CHECKPOINT_NAME)
    shutil.rmtree(folder)
    train_step = LMSolver.train_step

    def dying(self: LMSolver, step: int) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return train_step(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(LMSolver, "train_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run_xp(argv)
    run_xp(argv)
    again = checkpoints.load(folder / references.CHECKPOINT_NAME)
    assert losses(again["history"]) == losses(whole["history"])
    assert all(torch.equal(again["model"][name], value) for name, value in whole["model"].items())


def test_what_is_said_is_dropped_in_training_and_never_in_validation(told_home: Path) -> None:
    argv = overrides("text_audio", told_home, "classifier_free_guidance.training_dropout=0.5", "dataset.batch_size=8")
    solver = built(argv)
    assert solver.conditions is not None
    none = {"description": 0, "audio_prompt": 0}
    both = total = 0
    for step in range(40):
        crops = solver.crops["train"].crops(step, 8, prompt_frames=solver.prompt_frames)
        said = solver.conditions.said(crops, "train")
        described = [solver.conditions.descriptions["train"].text(track, 0) is not None for track in crops.tracks]
        for index, has_text in enumerate(described):
            missing = {name for name in said if said[name][index] is None}
            both += len(missing) == 2
            total += 1
            for name in missing if has_text else ():
                none[name] += 1
    assert 0.35 < both / total < 0.65 and all(0.4 < count / total for count in none.values())
    for crops in solver._valid_crops(8):
        said = solver.conditions.said(crops, "valid")
        wanted = [solver.conditions.descriptions["valid"].text(track, -1) for track in crops.tracks]
        assert said["description"] == wanted and said["audio_prompt"] == list(crops.prompts)


def test_the_encoder_stays_frozen_and_in_eval_mode(told_home: Path) -> None:
    solver = built(overrides("text_cross", told_home))
    provider = solver.model.condition_provider
    encoder = provider.conditioners["description"].encoder
    before = {name: value.clone() for name, value in encoder._loaded()[1].state_dict().items()}
    solver.model.train()
    solver.train_step(0)
    after = encoder._loaded()[1]
    assert not after.training and not any(p.requires_grad for p in after.parameters())
    assert all(torch.equal(value, before[name]) for name, value in after.state_dict().items())
    known = {id(p) for p in solver.model.parameters()}
    assert not any(id(p) in known for p in after.parameters())
    grouped = {id(p) for group in solver.descent.optimizer.param_groups for p in group["params"]}
    assert id(provider.conditioners["description"].projection.weight) in grouped


@pytest.mark.parametrize("conditioner", ["audio_prompt", "text_audio"])
def test_evaluate_says_how_much_the_conditions_say(conditioner: str, told_home: Path) -> None:
    solver = built(overrides(conditioner, told_home, "label=evaluated", "dataset.evaluate.num_samples=2"))
    solver.model.eval()
    with torch.no_grad():
        found = solver.evaluate()
        assert found["ce_untold"] > 0 and found["frechet"] >= 0
        assert found["ce"] == pytest.approx(solver.valid()["ce"])


def test_a_relative_encoder_is_known_by_its_whole_path(told_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(told_home)
    argv = [*DEBUG, "conditioner=text_cross", "conditioners.description.text.encoder=t5", "label=relative"]
    solver = built(argv)
    assert solver.cfg.conditioners.description.text.encoder == str(told_home / "t5")


def test_a_data_set_without_words_is_refused_for_text(told_home: Path) -> None:
    argv = [a.replace("audio/told", "audio/mute") for a in overrides("text_cross", told_home)]
    with pytest.raises(MicroMusicGenError, match="none of the .* training files has a description"):
        built(argv)


def test_audiocrafts_own_conditioners_are_refused_in_one_line(told_home: Path) -> None:
    argv = [
        *DEBUG,
        "fuser.cross=[description]",
        "conditioners={description: {model: lut, lut: {n_bins: 8, dim: 4, tokenizer: noop, pad_idx: 0}}}",
    ]
    with pytest.raises(MicroMusicGenError, match="audiocraft's, which this solver does not train"):
        built(argv)
