"""The codec solver through Dora, on synthesised breaks: phases, the valid stage, exact resume, adversaries."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from solver_runs import losses

from micro_musicgen import checkpoints, references
from micro_musicgen.codec.builder import build_codec_model, codec_config
from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.solvers.codec import QUANTISED, REFIT, WARMUP, CodecSolver
from micro_musicgen.train import get_solver, main, run_xp

DEBUG = ["solver=compression/debug", "dset=audio/toy", "num_threads=1"]
FOUR_EPOCHS = [*DEBUG, "optim.epochs=4", "generate.every=never"]


def checkpoint(folder: Path) -> dict[str, Any]:
    return checkpoints.load(folder / references.CHECKPOINT_NAME)


def test_a_run_goes_through_its_phases_and_says_how_codes_are_used(
    toy_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = []
    reconstruct = CodecSolver._reconstruct

    def noting(self: CodecSolver, wav: torch.Tensor) -> Any:
        phases.append(self.phase)
        return reconstruct(self, wav)

    monkeypatch.setattr(CodecSolver, "_reconstruct", noting)
    folder = run_xp([*DEBUG, "seed=3"])
    assert phases == [WARMUP] * 2 + [QUANTISED] * 5 + [REFIT] * 3
    state = checkpoint(folder)
    valid = state["history"][-1]["valid"]
    assert {"mel", "si_sdr", "entropy_min"} <= set(valid)
    assert all(0 < valid[f"{kind}_q{k}"] <= 1 for kind in ("usage", "entropy") for k in range(1, 5))
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "0001_0.wav",
        "0002_0.wav",
        "original_0.wav",
    ]
    assert (folder / "loss.png").is_file()


def test_encoder_and_codebooks_stand_still_after_the_refit(toy_home: Path) -> None:
    xp = main.experiment([*DEBUG, "seed=4"])
    with xp.enter():
        solver = get_solver(xp.cfg)
        for step in range(8):
            solver.train_step(step)
        assert solver.phase == REFIT
        before = {name: value.clone() for name, value in solver.model.state_dict().items()}
        solver.train_step(8)
        changed = {
            name.split(".")[0]
            for name, value in solver.model.state_dict().items()
            if not torch.equal(value, before[name])
        }
    assert changed == {"decoder"}


@pytest.mark.parametrize("ema", ["optim.ema.use=false", "optim.ema.use=true"])
def test_what_is_played_has_the_codebooks_that_were_fitted_to_its_encoder(ema: str, toy_home: Path) -> None:
    folder = run_xp([*FOUR_EPOCHS, ema])
    state = checkpoint(folder)
    played, trained = state["best"]["model"], state["model"]
    still = [name for name in played if not name.startswith("decoder")]
    assert all(torch.equal(played[name], trained[name]) for name in still)
    assert state["best"]["epoch"] == 4, "the last model is the one to play"


SLOW = pytest.mark.slow


@pytest.mark.parametrize("killed_at", [pytest.param(n, marks=SLOW) for n in (1, 8, 15)] + [4, 19])
def test_killed_and_resumed_is_bit_equal_to_not_killed(
    killed_at: int, toy_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*FOUR_EPOCHS, "optim.ema.use=true"]
    folder = run_xp(argv)
    whole = checkpoint(folder)
    shutil.rmtree(folder)
    train_step = CodecSolver.train_step

    def dying(self: CodecSolver, step: int) -> Any:
        if step == killed_at:
            raise KeyboardInterrupt
        return train_step(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(CodecSolver, "train_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run_xp(argv)
    torch.manual_seed(99)
    run_xp(argv)
    again = checkpoint(folder)
    assert losses(again["history"]) == losses(whole["history"])
    assert all(torch.equal(again["model"][name], value) for name, value in whole["model"].items())


@pytest.mark.slow
def test_with_quantiser_dropout_the_decoder_learns_from_fewer_codebooks_and_from_none(toy_home: Path) -> None:
    xp = main.experiment([*DEBUG, "rvq.q_dropout=true"])
    main.init_xp(xp)
    with xp.enter():
        solver = get_solver(xp.cfg)
    quantizer = solver.model.quantizer
    for layer in quantizer.vq.layers:
        layer._codebook.inited.fill_(1)
        layer._codebook.embed.normal_()
    latents = torch.randn(64, quantizer.dimension, 3)
    torch.manual_seed(0)
    made = solver._final_latents(latents)
    codes = quantizer.encode(latents)
    allowed = [*(quantizer.decode(codes[:, :number]) for number in range(1, 5)), latents]
    kept = [[torch.equal(clip, whole[index]) for whole in allowed] for index, clip in enumerate(made)]
    assert all(sum(row) == 1 for row in kept) and all(any(column) for column in zip(*kept, strict=True))
    torch.manual_seed(0)
    assert torch.equal(solver._final_latents(latents), made), "a step's draws follow its seed"


def test_adversaries_train_and_resume(toy_home: Path) -> None:
    tiny = [f"msstftd.{key}=[128]" for key in ("n_ffts", "win_lengths")] + ["msstftd.hop_lengths=[32]"]
    argv = [*DEBUG, "adversarial.adversaries=[msstftd]", "msstftd.filters=2", *tiny, "losses.adv=1", "losses.feat=1"]
    whole = checkpoint(run_xp([*argv, "generate.every=never"]))
    assert whole["history"][-1]["train"]["feat"] > 0
    names = whole["training"]["extra"]["adversaries"]
    assert any(name.startswith("msstftd.adversary") for name in names)
    xp = main.experiment([*argv, "generate.every=never"])
    with xp.enter():
        solver = get_solver(xp.cfg)
        assert solver.restore()
        for name, value in solver.adversaries.state_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, names[name])


def test_an_interrupted_warmup_leaves_a_codec_that_can_be_played(toy_home: Path) -> None:
    argv = [*DEBUG, "quantiser.warmup=1", "quantiser.refit=0", "optim.epochs=1"]
    valid = checkpoint(run_xp(argv))["history"][0]["valid"]
    assert valid["usage_q1"] > 0.05


def test_the_checkpoint_is_a_plain_audiocraft_model(toy_home: Path) -> None:
    state = checkpoint(run_xp(FOUR_EPOCHS))
    config = codec_config(OmegaConf.create(state["config"]))
    model = build_codec_model(config)
    model.load_state_dict(state["best"]["model"])
    codec = EncodecCodec(model, config)
    wav = torch.randn(1, 1, 6400, generator=torch.Generator().manual_seed(0))
    assert codec.decode(codec.encode(wav)).shape == wav.shape


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("losses.adv=1", "add adversarial.adversaries=[msstftd]"),
        ("losses.mel=1", "losses.mel=1 is upstream's only"),
        ("+losses.speed=1", "unknown key losses.speed"),
        ("quantiser.refit=0.9", "warmup + refit = 1.1"),
        ("+quantiser.speed=1", "unknown key quantiser.speed"),
    ],
)
def test_bad_config_is_refused_in_one_line(override: str, message: str, toy_home: Path) -> None:
    with pytest.raises(MicroMusicGenError) as caught:
        run_xp([*DEBUG, override])
    assert message in str(caught.value) and "\n" not in str(caught.value)
