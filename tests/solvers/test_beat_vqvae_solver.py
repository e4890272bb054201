"""The beat VQ-VAE through the codec solver: it learns, its files load as any codec's, and an LM speaks its codes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_models import lm_config, make_lm
from omegaconf import OmegaConf
from solver_runs import LM_DEBUG, losses

from micro_musicgen import checkpoints, references
from micro_musicgen.codec import parts
from micro_musicgen.codec.beat_codec import BeatCodec
from micro_musicgen.codec.builder import build_codec_model, codec_config
from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.engine.codec import codec_of_parts
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.release.export import export
from micro_musicgen.release.info import describe
from micro_musicgen.release.load import load_release
from micro_musicgen.solvers.codec import CodecSolver
from micro_musicgen.train import get_solver, main, run_xp

DEBUG = ["solver=compression/beat_vqvae_debug", "dset=audio/toy", "num_threads=1"]
HOP = 10_240


def checkpoint(folder: Path) -> dict[str, Any]:
    return checkpoints.load(folder / references.CHECKPOINT_NAME)


@pytest.fixture(scope="module")
def run(toy_home: Path) -> Path:
    """The debug run, whose codec the other tests share."""
    folder: Path = run_xp(DEBUG)
    return folder


def wav(num_beats: int = 5) -> torch.Tensor:
    return 0.3 * torch.randn(2, 1, num_beats * HOP, generator=torch.Generator().manual_seed(0))


def test_a_debug_run_fills_codes_and_writes_sounds(run: Path) -> None:
    state = checkpoint(run)
    assert state["solver"] == "compression"
    valid = state["history"][-1]["valid"]
    assert all(0 < valid[f"usage_q{k}"] <= 1 for k in (1, 2))
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "0001_0.wav",
        "0002_0.wav",
        "original_0.wav",
    ]


def test_the_loss_falls_in_every_phase(toy_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wider = ["beat_vqvae.channels=[8,8,16,16]", "beat_vqvae.dimension=16", "beat_vqvae.outer_channels=4"]
    phases = ["quantiser.warmup=0.5", "quantiser.refit=0.25", "optim.epochs=16"]
    xp = main.experiment([*DEBUG, *wider, *phases])
    with xp.enter():
        solver = get_solver(xp.cfg)
        again = solver.crops["train"].batch(
            0, 2
        )  # the same sound at every step, so that only learning changes the loss
        monkeypatch.setattr(solver.crops["train"], "batch", lambda *_: again)
        found: dict[str, list[float]] = {}
        for step in range(80):
            solver.descent.set_rate(3e-3)
            loss = float(solver.train_step(step)["loss"])
            found.setdefault(solver.phase, []).append(loss)
    assert [len(losses) for losses in found.values()] == [40, 20, 20]
    assert all(min(losses[-3:]) < losses[0] for losses in found.values()), found
    assert found["warmup"][-1] < 0.95 * found["warmup"][0]


def test_killed_and_resumed_is_bit_equal_to_not_killed(
    run: Path, toy_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*DEBUG, "optim.epochs=3", "generate.every=never"]
    whole = checkpoint(run_xp([*argv, "label=whole"]))
    train_step = CodecSolver.train_step

    def dying(self: CodecSolver, step: int) -> Any:
        if step == 7:
            raise KeyboardInterrupt
        return train_step(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(CodecSolver, "train_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run_xp(argv)
    again = checkpoint(run_xp(argv))
    assert losses(again["history"]) == losses(whole["history"])
    assert all(torch.equal(again["model"][name], value) for name, value in whole["model"].items())


def test_checkpoint_engine_and_release_give_the_same_codes(run: Path, toy_home: Path, tmp_path: Path) -> None:
    codec = load_codec(run)
    assert isinstance(codec, BeatCodec)
    assert (codec.num_codebooks, codec.cardinality, codec.hop_samples, codec.frame_rate) == (2, 16, HOP, 3.125)
    state = checkpoint(run)
    model = build_codec_model(codec_config(OmegaConf.create(state["config"])))
    model.load_state_dict(state["best"]["model"])
    codes = codec.encode(wav())
    assert torch.equal(model.eval().quantizer.encode(model.encoder(wav())), codes)
    sounds = codec.decode(codes)

    playing = codec_of_parts(parts.from_checkpoint_file(run / references.CHECKPOINT_NAME), torch.device("cpu"))
    assert playing.content_hash == codec.content_hash and torch.equal(playing.decode(codes), sounds)
    first = load_codec(f"{run}:1")
    assert first.num_codebooks == 1 and torch.equal(first.encode(wav()), codes[:, :1])

    released = load_release(export(lm_run(run), tmp_path / "release")).codec
    assert isinstance(released, BeatCodec) and released.content_hash == codec.content_hash
    assert torch.equal(released.encode(wav()), codes) and torch.equal(released.decode(codes), sounds)
    facts = describe(tmp_path / "release")
    assert (facts["codec.hop_samples"], facts["codec.frame_rate"], facts["codec.codebooks"]) == (HOP, 3.125, 2)
    with pytest.raises(MicroMusicGenError, match="audiocraft has no codec beat_vqvae.*--format micro"):
        export(tmp_path / "release", tmp_path / "audiocraft", form="audiocraft")


def lm_run(codec: Path) -> Path:
    """An untrained LM's run on the codes of `codec`, two codebooks of 16."""
    from fixtures_models import WINDOW_S, write_run

    config = lm_config(card=16, n_q=2)
    full = {**config, "solver": "musicgen", "sample_rate": 32000, "channels": 1, "seed": 2036,
            "compression_model_checkpoint": str(codec), "compression_model_n_q": None,
            "dataset": {"segment_duration": 4 * WINDOW_S}}  # fmt: skip
    return write_run("beef0001", "musicgen", full, make_lm(config))


LM = [*LM_DEBUG, "transformer_lm.card=16", "transformer_lm.n_q=2", "codebooks_pattern.delay.delays=[0,1]"]


@pytest.mark.parametrize("store", [True, False])
def test_an_lm_learns_one_step_a_beat_and_plays(store: bool, run: Path, toy_home: Path, tmp_path: Path) -> None:
    from micro_musicgen import MicroMusicGen

    folder = run_xp(
        [*LM, f"compression_model_checkpoint={run}", "dataset.segment_duration=2.56", f"tokens.store={store}"]
    )
    state = checkpoint(folder)
    assert state["history"][-1]["valid"]["ce"] > 0
    assert [path for path in (folder / "samples").iterdir() if path.suffix == ".wav"]
    model = MicroMusicGen.get_pretrained(str(folder), device="cpu")
    model.set_generation_params(duration=2.56, seed=1)
    assert model.num_frames == 8 and model.frame_rate == 3.125
    whole = model.generate_unconditional(2)
    assert whole.shape == (2, 1, 8 * HOP)
    pieces = list(model.stream(duration=2.56, chunk_s=0.32))
    assert len(pieces) > 1 and sum(piece.shape[-1] for piece in pieces) == 8 * HOP
    model.set_generation_params(duration=5.12, seed=1)
    assert model.generate_unconditional(1).shape == (1, 1, 16 * HOP), "longer than the window"


def test_crops_that_hold_no_whole_beats_are_refused_in_one_line(toy_home: Path) -> None:
    with pytest.raises(MicroMusicGenError) as caught:
        run_xp([*DEBUG, "dataset.segment_duration=0.5"])
    assert "audio of 16000 samples is no whole number of frames of 10240 samples, a beat" in str(caught.value)
    assert "\n" not in str(caught.value)
