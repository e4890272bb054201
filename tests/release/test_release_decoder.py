"""A diffusion decoder travels with its model: exported, moved, pushed, described, and never mixed up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_hub
import fixtures_decoders as decoders
import fixtures_models as models
import pytest
import torch

from micro_musicgen import MicroMusicGen, checkpoints, cli, paths, references, storage
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.release.decoder import DecoderParts, read_decoder
from micro_musicgen.release.decoder_model import build_decoder
from micro_musicgen.release.export import export
from micro_musicgen.release.hub import _check_release, pull, push
from micro_musicgen.release.info import describe


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A release of a model with its decoder, and their runs in the data home."""
    folder = tmp_path_factory.mktemp("decoder")
    with decoders.home_at(folder / "home"):
        models.write_models()
        decoders.write_decoder_run()
        yield export("abcd0123", folder / "r", decoder=decoders.SIGNATURE)


@pytest.fixture
def release(made: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(made, tmp_path / "r"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the decoder's run that may be spoiled."""
    return Path(shutil.copytree(paths.xp_dir(decoders.SIGNATURE), tmp_path / "run"))


def sound(reference: str | Path, **asked: Any) -> torch.Tensor:
    model = MicroMusicGen.get_pretrained(reference, device="cpu", **asked)
    model.set_generation_params(duration=0.5, seed=0)
    return model.generate_unconditional(1)


def changed(release: Path, change: Any) -> None:
    path = release / "config.json"
    config = json.loads(path.read_text())
    change(config["decoder"])
    path.write_text(json.dumps(config))


def test_it_plays_the_same_from_the_run_the_release_and_another_machine(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(path.name for path in release.iterdir())
    assert names == ["README.md", "codec.safetensors", "config.json", "decoder.safetensors", "model.safetensors"]
    wanted, plain = sound("abcd0123", decoder=decoders.SIGNATURE), sound("abcd0123")
    assert torch.equal(sound(release, decoder="diffusion"), wanted)
    assert torch.equal(sound("abcd0123", decoder=release), wanted)
    assert not torch.equal(plain, wanted) and torch.equal(sound(release, decoder="plain"), plain)
    moved = shutil.move(release, tmp_path / "elsewhere")
    monkeypatch.setenv("MICRO_MUSICGEN_HOME", str(tmp_path / "empty"))
    assert torch.equal(sound(moved, decoder="diffusion"), wanted)


def test_exporting_a_release_again_keeps_its_decoder(release: Path, tmp_path: Path) -> None:
    again = export(release, tmp_path / "again")
    assert storage.file_hash(again / "decoder.safetensors") == storage.file_hash(release / "decoder.safetensors")
    assert (
        json.loads((again / "config.json").read_text())["decoder"]
        == json.loads((release / "config.json").read_text())["decoder"]
    )
    plain = export(release, tmp_path / "plain", decoder="plain")
    assert not (plain / "decoder.safetensors").exists()
    assert json.loads((plain / "config.json").read_text())["decoder"] is None
    assert export(release, tmp_path / "again", overwrite=True).is_dir()
    with pytest.raises(MicroMusicGenError, match="has no diffusion decoder of its own"):
        export(plain, tmp_path / "no", decoder="diffusion")


def test_audiocrafts_form_has_no_place_for_it(release: Path, tmp_path: Path) -> None:
    with pytest.raises(MicroMusicGenError, match="audiocraft has no diffusion decoder .*--decoder plain"):
        export(release, tmp_path / "u", form="audiocraft")
    assert not (tmp_path / "u").exists()
    assert export(release, tmp_path / "u", form="audiocraft", decoder="plain").is_dir()


def test_a_decoder_of_another_codec_is_not_shipped(tmp_path: Path) -> None:
    models.write_codec_run("c0dec001", bins=32)
    decoders.write_decoder_run(decoders.decoder_config("c0dec001"), signature="d1ff0001")
    with pytest.raises(MicroMusicGenError, match="was trained on another codec"):
        export("abcd0123", tmp_path / "r", decoder="d1ff0001")
    assert not (tmp_path / "r").exists()


def test_weights_that_were_changed_or_are_gone(release: Path) -> None:
    _check_release(release)
    path = release / "decoder.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\0\1")
    for check in (lambda: sound(release, decoder="diffusion"), lambda: _check_release(release)):
        with pytest.raises(MicroMusicGenError, match="decoder.safetensors is not the file that was released"):
            check()
    assert sound(release).shape == (1, 1, 16000)  # who does not ask for it does not read it
    path.unlink()
    with pytest.raises(MissingFileError, match="decoder.safetensors is missing"):
        sound(release, decoder="diffusion")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("diffusion"), "no section diffusion"),
        (lambda c: c.update(window_frames=0), "window_frames 0 is not in"),
        (lambda c: c.update(codec_hashes=None), "no codec_hashes"),
        (lambda c: c["decoder"].update(codebooks=[]), "decoder.codebooks"),
        (lambda c: c["decoder"].update(codebooks=[1, 2]), "trained with 1, 2 codebooks, and the codes have 4"),
        (lambda c: c["diffusion"].update(channels=8), "gives 8 channels from 19, and this codec needs 16 from 19"),
        (lambda c: c["denoiser"]["dit"].update(dim=10**6), "dim 1000000 is more than"),
        (lambda c: c["denoiser"]["dit"].update(depth=10**6), "depth 1000000 is more than"),
        (lambda c: c["denoiser"]["dit"].update(mlp_dim=4), "does not hold the model that its config describes"),
        (lambda c: c["denoiser"].update(name="perceptron"), "unknown denoiser 'perceptron'"),
        (lambda c: c["diffusion"].update(schedule="sigmoid"), "unknown noise schedule 'sigmoid'"),
        (lambda c: c["diffusion"].pop("num_timesteps"), "num_timesteps"),
        (lambda c: c["diffusion"].update(text_channels=4), "listens to texts"),
        (lambda c: c["sampling"].update(steps=0), "sampling.steps=0"),
    ],
)
def test_configs_that_cannot_be_played(release: Path, change: Any, words: str) -> None:
    changed(release, change)
    with pytest.raises(MicroMusicGenError, match=words) as found:
        sound(release, decoder="diffusion")
    assert "\n" not in str(found.value)


def test_building_draws_nothing_from_torchs_own_lot(run: Path) -> None:
    before = torch.get_rng_state()
    model = build_decoder(read_decoder(run))
    assert torch.equal(torch.get_rng_state(), before) and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_no_decoder(run: Path, tmp_path: Path) -> None:
    plain = export("abcd0123", tmp_path / "plain")
    with pytest.raises(MicroMusicGenError, match="holds no diffusion decoder"):
        read_decoder(plain)
    with pytest.raises(MicroMusicGenError, match="is a run of solver=musicgen, no diffusion decoder"):
        read_decoder("abcd0123")
    path = run / references.CHECKPOINT_NAME
    state = checkpoints.load(path)
    state["training"]["extra"] = {}
    checkpoints.save(state, path)
    with pytest.raises(MicroMusicGenError, match="does not say what it was trained on"):
        read_decoder(run)


def test_a_run_of_frames_that_are_no_codes_can_be_read_but_not_played(run: Path) -> None:
    path = run / references.CHECKPOINT_NAME
    state = checkpoints.load(path)
    state["config"] = state["config"].replace("condition: codes", "condition: mel_32k")
    checkpoints.save(state, path)
    found = read_decoder(run)
    assert isinstance(found, DecoderParts) and describe(run)["condition"] == "mel_32k"
    with pytest.raises(MicroMusicGenError, match="makes codec frames of mel_32k"):
        sound("abcd0123", decoder=run)


def test_there_and_back_through_the_hub(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with fake_hub.serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        push(made, "me/jungle")
        assert hub.repos["me/jungle"]["decoder.safetensors"] == (made / "decoder.safetensors").read_bytes()
        pulled = pull("me/jungle", tmp_path / "pulled")
        wanted = sound(made, decoder="diffusion")
        assert torch.equal(sound(pulled, decoder="diffusion"), wanted)
        hub.seen.clear()
        assert torch.equal(sound("abcd0123", decoder="me/jungle"), wanted)
        assert not any("model.safetensors" in line for line in hub.seen if "resolve" in line)


def test_info_and_card_say_what_it_is(run: Path, release: Path) -> None:
    facts = describe(run)
    assert facts["kind"] == "diffusion decoder" and facts["where"] == str(run / references.CHECKPOINT_NAME)
    assert facts["network"] == "dit" and facts["codebooks"] == "1, 2, 4" and facts["window_frames"] == 17
    assert facts["signature"] == decoders.SIGNATURE and facts["updates"] == 9
    whole = describe(release)
    assert whole["kind"] == "language model" and whole["decoder.parameters"] == facts["parameters"]
    assert whole["decoder.steps"] == 3 and whole["decoder.objective"] == "v"
    assert not any(key.startswith("decoder.") for key in describe("abcd0123"))
    lines = [line for line in (release / "README.md").read_text().splitlines() if "diffusion decoder" in line]
    assert lines == [
        f"| diffusion decoder (`--decoder diffusion`) | dit, {facts['parameters']:,} parameters, v, 3 steps of dpm, "
        "codebooks 1, 2, 4 |"
    ]


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["micro-musicgen", *map(str, arguments)])
        try:
            cli.run()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    folder, clip = tmp_path / "release", ("-n", 1, "--duration", 0.2, "--seed", 1)
    code, out, _ = call("export", "abcd0123", "--decoder", decoders.SIGNATURE, "--out", folder)
    assert code == 0 and "decoder.safetensors" in out
    assert call("generate", folder, *clip, "--out", tmp_path / "a", "--decoder", "diffusion")[0] == 0
    assert call("generate", folder, *clip, "--out", tmp_path / "b", "--decoder", "plain")[0] == 0
    fewer = ("--decoder", decoders.SIGNATURE, "--decoder-steps", 1, "--decoder-guidance", 2)
    assert call("generate", folder, *clip, "--out", tmp_path / "c", *fewer)[0] == 0
    made = {(tmp_path / name / "release_1_000.wav").read_bytes() for name in "abc"}
    assert len(made) == 3
    code, _, err = call("generate", folder, *clip, "--out", tmp_path / "d", "--decoder-steps", 4)
    assert code == 2 and len(err.strip().splitlines()) == 1 and "choose a decoder" in err
    code, _, err = call("generate", folder, *clip, "--out", tmp_path / "d", "--decoder", "diffusion",
                        "--decoder-steps", 21)  # fmt: skip
    assert code == 2 and len(err.strip().splitlines()) == 1 and "sampling.steps=21" in err
    code, _, err = call("export", "abcd0123", "--decoder", "c0dec000", "--out", tmp_path / "e")
    assert code == 2 and len(err.strip().splitlines()) == 1 and "no diffusion decoder" in err
    assert not (tmp_path / "d").exists() or not list((tmp_path / "d").iterdir())


def test_who_plays_through_the_codec_alone_does_not_wait_for_the_decoder(made: Path) -> None:
    heavy = "audiocraft hydra omegaconf transformers torchaudio matplotlib scipy torch._dynamo torch._inductor"
    program = (
        "import sys; from micro_musicgen import MicroMusicGen\n"
        "MicroMusicGen.get_pretrained(sys.argv[1], device='cpu')\n"
        "assert not [name for name in sys.modules if name.startswith('micro_musicgen.diffusion')]\n"
        "model = MicroMusicGen.get_pretrained(sys.argv[1], device='cpu', decoder='diffusion')\n"
        "model.set_generation_params(duration=0.1); model.generate_unconditional(1)\n"
        f"print('loaded:', sorted(set({heavy.split()!r}) & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(made)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "loaded: []" in ran.stdout
