"""Every way to name a codec gives the same codec; every wrong way gives one line."""

from __future__ import annotations

from pathlib import Path

import fixtures_models as models
import pytest
import torch
from hydra import compose, initialize_config_dir

from micro_musicgen import checkpoints, paths, references, storage
from micro_musicgen.codec import codebooks
from micro_musicgen.codec.builder import build_codec_model, codec_config
from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.codec.resolve import load_codec, read_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.errors import MicroMusicGenError, MissingExtraError, MissingFileError
from micro_musicgen.upstream.packages import write_package, write_pretrained_package


def noise(num_samples: int = 6400) -> torch.Tensor:
    return torch.randn(1, 1, num_samples, generator=torch.Generator().manual_seed(0)) * 0.1


def test_a_run_gives_the_codec_that_was_trained(home: Path) -> None:
    folder = models.write_codec_run()
    built = EncodecCodec(models.make_codec_model(), models.codec_config())
    for reference in (str(folder), "c0dec000", "//sig/c0dec000", "jungle", str(folder / references.CHECKPOINT_NAME)):
        codec = load_codec(reference)
        assert isinstance(codec, Codec)
        assert codec.content_hash == built.content_hash
        codes = codec.encode(noise())
        assert codes.shape == (1, 4, 10) and codes.dtype == torch.int64
        assert torch.equal(codes, built.encode(noise()))
        assert torch.equal(codec.decode(codes), built.decode(codes))
        assert codec.decode(codes).shape == (1, 1, 6400)


def test_latents_lead_to_the_same_audio_as_codes(home: Path) -> None:
    models.write_codec_run()
    codec = load_codec("c0dec000")
    codes = codec.encode(noise())
    latents = codec.codes_to_latents(codes)
    assert latents.shape == (1, codec.latent_dim, 10)
    assert codec.encode_latents(noise()).shape == latents.shape
    assert torch.allclose(codec.decode_latents(latents), codec.decode(codes), atol=1e-6)


def test_a_language_models_run_stands_for_its_codec(home: Path) -> None:
    run, codec = models.write_models()
    assert load_codec(str(run)).content_hash == load_codec(str(codec)).content_hash


def test_the_first_codebooks_only(home: Path) -> None:
    models.write_models()
    whole = load_codec("c0dec000")
    for reference in ("c0dec000:2", "//sig/c0dec000:2", f"{paths.xp_dir('c0dec000')}:2"):
        cut = load_codec(reference)
        assert cut.num_codebooks == 2 and cut.content_hash != whole.content_hash
        assert torch.equal(cut.encode(noise()), whole.encode(noise())[:, :2])
    assert load_codec("c0dec000:4").content_hash == whole.content_hash
    with pytest.raises(MicroMusicGenError, match="has 4 codebooks, so .*:5 can't be had; give 1 to 4"):
        load_codec("c0dec000:5")


def test_a_language_models_codec_may_have_a_number(home: Path) -> None:
    models.write_codec_run()
    models.write_lm_run("abcd0123", codec="//sig/c0dec000:2")
    assert load_codec("abcd0123").num_codebooks == 2
    assert load_codec("abcd0123:1").num_codebooks == 1


def test_a_pretrained_codec_keeps_its_number(home: Path) -> None:
    assert read_codec("facebook/encodec_24khz:8").pretrained == "facebook/encodec_24khz:8"
    assert read_codec("//pretrained/descript/dac_44khz:4").pretrained == "descript/dac_44khz:4"


def test_a_number_of_codebooks_needs_no_quotes() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    typed = "compression_model_checkpoint=//pretrained/facebook/encodec_24khz:8"
    assert OverridesParser.create().parse_override(typed).value() == "//pretrained/facebook/encodec_24khz:8"


def test_a_file_whose_name_ends_in_a_number(home: Path, tmp_path: Path) -> None:
    assert codebooks.split("a/b:8") == ("a/b", 8)
    (tmp_path / "b:8").touch()
    assert codebooks.split(str(tmp_path / "b:8")) == (str(tmp_path / "b:8"), None)
    assert codebooks.split("a/b") == ("a/b", None)


def test_references_in_a_circle_are_refused(home: Path) -> None:
    models.write_lm_run("abcd0123", codec="//sig/abcd0123")
    with pytest.raises(MicroMusicGenError, match="leads from one reference to the next"):
        load_codec("abcd0123")


def test_audiocrafts_package_gives_the_same_codec(home: Path, tmp_path: Path) -> None:
    run = models.write_codec_run()
    config = {**models.codec_config(), "device": "cpu", "solver": "compression", "optim": {"lr": 1e-3}}
    write_package(tmp_path / "compression_state_dict.bin", models.make_codec_model().state_dict(), config)
    for reference in (tmp_path, tmp_path / "compression_state_dict.bin"):
        assert load_codec(reference).content_hash == load_codec(run).content_hash


def test_a_pretrained_codec_is_known_by_name_alone(home: Path, tmp_path: Path) -> None:
    write_pretrained_package(tmp_path / "compression_state_dict.bin", "facebook/encodec_32khz")
    for reference in (tmp_path, "//pretrained/facebook/encodec_32khz", "facebook/encodec_32khz"):
        assert read_codec(reference).pretrained == "facebook/encodec_32khz"


def test_a_pretrained_codec_needs_an_extra(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("micro_musicgen.codec.pretrained.version", version)
    with pytest.raises(MissingExtraError, match=r"pip install 'micro-musicgen\[codecs\]'"):
        load_codec("//pretrained/facebook/encodec_32khz")


def test_a_codec_that_renormalises_loudness_is_refused() -> None:
    model = models.make_codec_model()
    model.renormalize = True
    with pytest.raises(MicroMusicGenError, match="renormalises loudness"):
        EncodecCodec(model, models.codec_config())


def test_a_rate_that_is_no_whole_number_of_frames_a_second() -> None:
    config = models.codec_config()
    config = {**config, "encodec": {**config["encodec"], "sample_rate": 44100}, "sample_rate": 44100}
    codec = EncodecCodec(build_codec_model(config), config)
    assert codec.hop_samples == 640 and codec.frame_rate == 44100 / 640
    assert codec.decode(codec.encode(noise())).shape == noise().shape


def test_a_folder_without_a_codec(home: Path, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "state_dict.bin")
    with pytest.raises(MissingFileError, match="holds no codec"):
        load_codec(tmp_path)


def test_somebody_elses_config(home: Path, tmp_path: Path) -> None:
    storage.write_json(tmp_path / "config.json", {"model_type": "bert"})
    with pytest.raises(MicroMusicGenError, match="holds no codec"):
        load_codec(tmp_path)


def test_weights_of_another_size(home: Path) -> None:
    folder = models.write_codec_run()
    path = folder / references.CHECKPOINT_NAME
    state = checkpoints.load(path)
    state["config"] = state["config"].replace("bins: 64", "bins: 128")
    checkpoints.save(state, path)
    with pytest.raises(MicroMusicGenError, match=r"c0dec000.* is \(64,\), expected \(128,\)"):
        load_codec(folder)


def test_an_absurd_depth_is_refused_before_anything_is_built(home: Path) -> None:
    folder = models.write_codec_run()
    path = folder / references.CHECKPOINT_NAME
    state = checkpoints.load(path)
    state["config"] = state["config"].replace("n_q: 4", "n_q: 4000000000")
    checkpoints.save(state, path)
    with pytest.raises(MicroMusicGenError, match="n_q 4000000000"):
        load_codec(folder)


def test_the_base_codec_has_the_published_size() -> None:
    """EnCodec 32 kHz mono, as audiocraft publishes it: 56,884,674 parameters, counted without allocating them."""
    import micro_musicgen.train  # noqa: F401  (registers the config's resolver)

    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        cfg = compose("config", ["solver=compression/micro_32khz", "model=encodec/base_32khz"])
    with torch.device("meta"):
        model = build_codec_model(codec_config(cfg), device="meta")
    assert sum(p.numel() for p in model.parameters()) == 56_884_674
