"""Codecs that somebody published for transformers, from a folder and from a Hub on this machine.

They need the [codecs] extra.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_hub
import fixtures_models as models
import numpy as np
import pytest
import soundfile
import tiny_codecs
import torch

from micro_musicgen import storage
from micro_musicgen.codec.pretrained import KINDS, KNOWN
from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.data.encode import build_token_store
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.tokens import open_token_store
from micro_musicgen.engine.codec import playing
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.errors import MicroMusicGenError, MissingExtraError
from micro_musicgen.lm.builder import build_lm

transformers = pytest.importorskip("transformers")

MAKERS: dict[str, Callable[[Path], Path]] = {
    "encodec_32khz": tiny_codecs.save_encodec,
    "encodec_24khz": lambda folder: tiny_codecs.save_encodec(folder, **tiny_codecs.ENCODEC_24KHZ),
    "dac_44khz": tiny_codecs.save_dac,
    "dac_24khz": lambda folder: tiny_codecs.save_dac(folder, **tiny_codecs.DAC_24KHZ),
}
NUMBERS = {  # sample rate, frame rate, hop, K, card, D
    "encodec_32khz": (32000, 50.0, 640, 4, 64, 16),
    "encodec_24khz": (24000, 75.0, 320, 8, 64, 16),
    "dac_44khz": (44100, 44100 / 512, 512, 9, 64, 64),
    "dac_24khz": (24000, 75.0, 320, 6, 64, 64),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of one of MAKERS."""
    base = tmp_path_factory.mktemp("codecs")

    def folder(kind: str) -> Path:
        return base / kind if (base / kind).exists() else MAKERS[kind](base / kind)

    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_hub.FakeHub]:
    from huggingface_hub import constants

    with fake_hub.serve() as held:
        monkeypatch.setenv("HF_ENDPOINT", held.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield held


def publish(hub: fake_hub.FakeHub, folder: Path, name: str) -> None:
    hub.repos[name] = {path.name: path.read_bytes() for path in folder.iterdir()}


def noise(num_samples: int, num_clips: int = 2) -> torch.Tensor:
    return 0.3 * torch.randn(num_clips, 1, num_samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", MAKERS)
def test_it_keeps_the_contract(kind: str, saved: Callable[[str], Path]) -> None:
    codec = load_codec(saved(kind))
    assert isinstance(codec, Codec)
    rate, frame_rate, hop, num_codebooks, card, dim = NUMBERS[kind]
    assert (codec.sample_rate, codec.channels, codec.frame_rate, codec.hop_samples) == (rate, 1, frame_rate, hop)
    assert (codec.num_codebooks, codec.cardinality, codec.latent_dim) == (num_codebooks, card, dim)
    for num_samples in (10 * hop, 10 * hop - 1, 9 * hop + 1):  # whole frames and parts of one
        wav = noise(num_samples)
        codes = codec.encode(wav)
        assert codes.shape == (2, num_codebooks, 10) and codes.dtype == torch.int64
        assert 0 <= codes.min() and codes.max() < card
        assert codec.decode(codes).shape == (2, 1, 10 * hop)
        assert codec.encode_latents(wav).shape == codec.codes_to_latents(codes).shape == (2, dim, 10)
        assert torch.equal(codec.decode_latents(codec.codes_to_latents(codes)), codec.decode(codes))
    assert len(codes.unique()) > 8  # random weights that give one code would prove nothing


@pytest.mark.parametrize("kind", MAKERS)
def test_it_gives_what_transformers_gives(kind: str, saved: Callable[[str], Path]) -> None:
    codec, wav = load_codec(saved(kind)), noise(10 * NUMBERS[kind][2])
    model = getattr(transformers, KINDS[kind.split("_")[0]][0]).from_pretrained(saved(kind)).eval()
    with torch.inference_mode():
        if kind.startswith("dac"):
            codes = model.encode(wav).audio_codes
            audio = model.decode(audio_codes=codes).audio_values[:, None]
        else:
            codes = model.encode(wav, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0]
            audio = model.decode(codes[None], [None]).audio_values
    assert torch.equal(codec.encode(wav), codes)
    ours = codec.decode(codes)
    torch.testing.assert_close(ours[..., : audio.shape[-1]], audio)
    short = 8 if kind == "dac_24khz" else 0
    assert ours.shape[-1] - audio.shape[-1] == short and not ours[..., audio.shape[-1] :].any()


@pytest.mark.parametrize("kind", ["encodec_24khz", "dac_44khz"])
def test_the_first_codebooks_only(kind: str, saved: Callable[[str], Path]) -> None:
    whole, cut = load_codec(saved(kind)), load_codec(f"//pretrained/{saved(kind)}:4")
    wav = noise(10 * whole.hop_samples)
    assert cut.num_codebooks == 4 and cut.content_hash != whole.content_hash
    assert torch.equal(cut.encode(wav), whole.encode(wav)[:, :4])
    assert load_codec(f"{saved(kind)}:{whole.num_codebooks}").content_hash == whole.content_hash
    for number in (0, whole.num_codebooks + 1):
        with pytest.raises(MicroMusicGenError, match=f"has {whole.num_codebooks} codebooks, so .*:{number} can't be"):
            load_codec(f"{saved(kind)}:{number}")


@pytest.mark.parametrize(
    ("kind", "setting"), [("encodec_24khz", ("pad_mode", "constant")), ("dac_24khz", ("sampling_rate", 16000))]
)
def test_the_hash_names_weights_and_settings(
    kind: str, setting: tuple[str, object], saved: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    before = load_codec(saved(kind)).content_hash
    folder = Path(shutil.copytree(saved(kind), tmp_path / "changed"))
    config = json.loads((folder / "config.json").read_text())
    for key, value, is_same in (("transformers_version", "4.46.0", True), (*setting, False)):
        storage.write_json(folder / "config.json", {**config, key: value})
        assert (load_codec(folder).content_hash == before) == is_same
    storage.write_json(folder / "config.json", config)
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.startswith("decoder") and state[name].numel() > 1)
    state[name].view(-1)[0] += 1e-3
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_codec(folder).content_hash != before


@pytest.mark.slow
def test_another_process_finds_the_same_hash(saved: Callable[[str], Path]) -> None:
    folders = [str(saved(kind)) for kind in MAKERS]
    program = (
        f"from micro_musicgen.codec.resolve import load_codec\nfor f in {folders}: print(load_codec(f).content_hash)"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.split()[-len(folders) :] == [load_codec(folder).content_hash for folder in folders]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_token_store_is_built_from_it(kind: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    codec = load_codec(saved(kind))
    path = tmp_path / "break.wav"
    soundfile.write(path, noise(2 * codec.sample_rate)[0, 0].numpy(), codec.sample_rate)
    track = Track(str(path), 2.0, codec.sample_rate)
    build_token_store(tmp_path / "store", [track], codec, segment_s=1.0, window_s=1.0, overlap_s=0.5)
    store = open_token_store(tmp_path / "store")
    assert (store.codec_hash, store.card, store.frame_rate) == (codec.content_hash, 64, codec.frame_rate)
    codes = store.codes(0)
    assert codes.shape == (2 * codec.sample_rate // codec.hop_samples, codec.num_codebooks)
    assert codes.dtype == np.int16
    assert codec.decode(torch.from_numpy(codes.T.astype(np.int64))[None]).shape[-1] == len(codes) * codec.hop_samples


def test_the_engine_plays_a_model_of_its_codes(saved: Callable[[str], Path]) -> None:
    codec = load_codec(f"{saved('dac_44khz')}:4")
    config = models.lm_config(card=64, n_q=4)
    state = build_lm(config, window_s=1.0, device="cpu").state_dict()
    player = MicroMusicGen(config, state, playing(codec), window_s=1.0, device="cpu")
    player.set_generation_params(duration=0.5, seed=0, top_k=0)
    wav, codes = player.generate_unconditional(2, return_tokens=True)
    assert codes.shape == (2, 4, round(0.5 * 44100 / 512))
    torch.testing.assert_close(wav, codec.decode(codes))
    pieces = list(player.stream(duration=0.5, chunk_s=0.1))  # a codec that can't be cut: all of it at the end
    assert sum(piece.shape[-1] for piece in pieces) == wav.shape[-1]


def test_a_card_beyond_int16_is_refused(tmp_path: Path) -> None:
    codec = load_codec(tiny_codecs.save_dac(tmp_path / "dac", codebook_size=1 << 16, n_codebooks=1))
    with pytest.raises(MicroMusicGenError, match="card 65536 is above 32768, the limit of int16"):
        build_token_store(tmp_path / "store", [], codec, segment_s=1.0)


def test_the_hub_and_a_folder_give_the_same(hub: fake_hub.FakeHub, home: Path, saved: Callable[[str], Path]) -> None:
    publish(hub, saved("dac_44khz"), "some/dac")
    publish(hub, saved("encodec_24khz"), "facebook/encodec_24khz")
    assert load_codec("some/dac").content_hash == load_codec(saved("dac_44khz")).content_hash
    two = load_codec("//pretrained/facebook/encodec_24khz:2")
    assert two.content_hash == load_codec(f"{saved('encodec_24khz')}:2").content_hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize": True}, "some/encodec renormalises or chunks its audio"),
        ({"chunk_length_s": 1.0, "overlap": 0.01}, "some/encodec renormalises or chunks its audio"),
        ({"audio_channels": 2}, "some/encodec has 2 channels and music here has one; use a mono codec"),
    ],
)
def test_codecs_that_do_not_suit(
    changes: dict[str, object], message: str, hub: fake_hub.FakeHub, home: Path, tmp_path: Path
) -> None:
    publish(hub, tiny_codecs.save_encodec(tmp_path / "encodec", **changes), "some/encodec")
    with pytest.raises(MicroMusicGenError, match=message):
        load_codec("some/encodec")


def test_another_kind_of_model(hub: fake_hub.FakeHub, home: Path) -> None:
    hub.repos["some/bert"] = {"config.json": b'{"model_type": "bert"}'}
    with pytest.raises(
        MicroMusicGenError, match="some/bert is no encodec or dac codec but bert; use one like facebook/"
    ):
        load_codec("some/bert")


def test_missing_weights_are_not_made_up(saved: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = MAKERS["dac_24khz"](tmp_path / "dac")
    state = load_file(folder / "model.safetensors")
    del state["decoder.conv1.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MicroMusicGenError, match=r"lacks 1 of its weights, decoder\.conv1\.weight among them"):
        load_codec(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MicroMusicGenError, match="cannot be loaded as DacModel"):
        load_codec(folder)


def test_weights_of_published_files_have_older_names(saved: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(saved("encodec_24khz"), tmp_path / "older"))
    olden = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = load_file(folder / "model.safetensors")
    for new, old in olden.items():
        assert any(new in name for name in state)
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_codec(folder).content_hash == load_codec(saved("encodec_24khz")).content_hash


def test_a_hub_out_of_reach(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        MicroMusicGenError, match="fetch config.json and model.safetensors of descript/dac_44khz else"
    ) as e:
        load_codec("descript/dac_44khz")
    assert "\n" not in str(e.value) and not isinstance(e.value, MissingExtraError)


def test_licences_of_the_published_ones() -> None:
    assert KNOWN["facebook/encodec_32khz"] == "CC-BY-NC-4.0"
    assert all(name.split("/")[1].split("_")[0] in KINDS for name in KNOWN)
