"""The models that are timed: random weights, written once in our form and in audiocraft's, the same in both.

Every engine gets the very same tensors, so that speed is compared and nothing else. A model lies in
`CACHE/NAME-KEY/{micro,audiocraft}`, where KEY is a hash of all that makes it; a finished folder is used again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf

from micro_musicgen import paths, storage

if TYPE_CHECKING:
    from torch import nn

    from micro_musicgen.contracts import LMSpec

WRITER_VERSION = 1
"""Part of the key: raise it when the same description is to give other weights."""

WINDOW_S = 30.0
SAMPLE_RATE = 32000
HOP = 640
NUM_CODEBOOKS = 4
TEXT_DIM = 768
"""Width of the random condition embeddings, as T5-base gives them to musicgen-small."""
TEXT_WORDS = 512
CONDITION_LENGTH = 32
"""Positions of the condition, about what a line of text gives."""


@dataclass(frozen=True)
class BenchModel:
    """A model by what makes it. overrides: Hydra overrides of the LM. codec: a file of config/model/encodec.

    num_words: rows of the look-up table whose random vectors stand in for a text encoder's output; 0 for no condition.
    """

    name: str
    overrides: tuple[str, ...]
    codec: str = "base_32khz"
    card: int = 2048
    num_words: int = 0
    seed: int = 0

    @property
    def is_conditioned(self) -> bool:
        """Says whether it listens to a condition through cross-attention."""
        return self.num_words > 0

    @property
    def key(self) -> str:
        """Gives 12 hex digits of everything that decides the weights."""
        facts = {**asdict(self), "writer": WRITER_VERSION, "window_s": WINDOW_S}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _scale(name: str) -> tuple[str, ...]:
    return (f"model/lm/model_scale={name}",)


SMALL_TOPOLOGY = ("transformer_lm.dim=1024", "transformer_lm.num_heads=16", "transformer_lm.num_layers=24")

MODELS: dict[str, BenchModel] = {
    "nano": BenchModel("nano", _scale("nano")),
    "nano_nanocodec": BenchModel("nano_nanocodec", _scale("nano"), codec="nano_32khz", card=256),
    "tiny": BenchModel("tiny", _scale("tiny")),
    "mini": BenchModel("mini", _scale("mini")),
    "midi": BenchModel("midi", _scale("midi")),
    "micro": BenchModel("micro", _scale("micro")),
    "small": BenchModel("small", SMALL_TOPOLOGY, num_words=TEXT_WORDS),
}


def cache_root(given: str | Path | None = None) -> Path:
    """Gives the folder of all that benches make: `given`, else `bench` in the data home."""
    return Path(given).expanduser().resolve() if given else paths.home() / "bench"


def lm_plain(model: BenchModel) -> dict[str, Any]:
    """Gives the LM's config as plain data, from the shipped Hydra tree."""
    from micro_musicgen.lm.builder import lm_config

    argv = [
        "solver=musicgen/micro_32khz",
        "conditioner=none",
        *model.overrides,
        f"transformer_lm.card={model.card}",
        f"transformer_lm.n_q={NUM_CODEBOOKS}",
    ]
    config = lm_config(_compose(argv))
    if model.is_conditioned:
        config["fuser"] = {
            **config["fuser"],
            "cross": ["description"],
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
        }
        table = {"n_bins": model.num_words, "dim": TEXT_DIM, "tokenizer": "noop", "pad_idx": 0}
        config["conditioners"] = {"description": {"model": "lut", "lut": table}}
        config["classifier_free_guidance"] = {"training_dropout": 0.1, "inference_coef": 3.0}
    return config


def codec_plain(codec: str) -> dict[str, Any]:
    """Gives the config of the codec in config/model/encodec/`codec`.yaml as plain data."""
    from micro_musicgen.codec.builder import codec_config

    return codec_config(_compose(["solver=compression/micro_32khz", f"model=encodec/{codec}"]))


def _compose(argv: list[str]) -> Any:
    from hydra import compose, initialize_config_dir

    import micro_musicgen.train  # noqa: F401  (registers the resolver that the tree uses)

    data = [f"datasource.{key}=nowhere" for key in ("train", "valid", "evaluate", "generate")]
    data += [f"datasource.max_sample_rate={SAMPLE_RATE}", "datasource.max_channels=1"]
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        return compose("config", [*argv, *data])


def build_bench_lm(model: BenchModel) -> nn.Module:
    """Gives the LM with random weights: upstream's gaussian initialisation, whose logits have a deviation near 1."""
    import torch

    from micro_musicgen.lm.builder import build_lm

    torch.manual_seed(model.seed)
    made: nn.Module = build_lm(lm_plain(model), window_s=WINDOW_S).eval()
    return made


def build_bench_codec(codec: str, *, seed: int = 0) -> nn.Module:
    """Gives the codec with random weights and, instead of the empty codebooks that training would fill, random ones."""
    import torch

    from micro_musicgen.codec.builder import build_codec_model

    torch.manual_seed(seed)
    model: Any = build_codec_model(codec_plain(codec)).eval()
    with torch.no_grad():
        for level, layer in enumerate(model.quantizer.vq.layers):
            codebook = layer._codebook
            codebook.embed.copy_(0.5**level * torch.randn_like(codebook.embed))
            codebook.embed_avg.copy_(codebook.embed)
            codebook.inited.fill_(1)
    made: nn.Module = model
    return made


def cached(model: BenchModel, cache: Path) -> Path:
    """Gives the folder that holds `model` in every form once it is made."""
    return cache / f"{model.name}-{model.key}"


def release_config(folder: Path) -> dict[str, Any]:
    """Gives what our release says of the model in `folder`."""
    plain = storage.read_json(folder / "micro" / "config.json")
    assert isinstance(plain, dict)
    return plain


def spec_of(folder: Path) -> LMSpec:
    """Gives the shape of the LM in `folder`."""
    from micro_musicgen.lm.builder import lm_spec

    return lm_spec(release_config(folder)["lm"])


def prepared(model: BenchModel, cache: Path) -> Path:
    """Gives the folder that holds `model` in every form, after making what is not there."""
    folder = cached(model, cache)
    if folder.is_dir():
        return folder
    scratch = storage.ensure_writable(folder.with_name(f".{folder.name}.{os.getpid()}.tmp"))
    try:
        write_forms(model, scratch)
        _share_codecs(scratch, cache)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def write_forms(model: BenchModel, folder: Path) -> None:
    """Fills `folder` with `micro` and `audiocraft`: the release forms of one model, made as `export` makes them."""
    from micro_musicgen.codec.parts import CodecParts
    from micro_musicgen.lm.builder import lm_spec
    from micro_musicgen.release.export import Export, write_audiocraft, write_micro
    from micro_musicgen.release.source import ModelParts

    lm, codec = build_bench_lm(model), build_bench_codec(model.codec, seed=model.seed)
    state = lm.state_dict()
    config = lm_plain(model)
    codec_parts = CodecParts(source="bench", config=codec_plain(model.codec), state=codec.state_dict())
    found = Export(
        name=model.name,
        parts=ModelParts(
            source="bench",
            name=model.name,
            lm=config,
            shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
            read_lm=lambda: state,
            codec=lambda: codec_parts,
            sample_rate=SAMPLE_RATE,
            window_s=WINDOW_S,
        ),
        codec=codec_parts,
        spec=lm_spec(config),
        lm_state=state,
        num_lm_parameters=sum(p.numel() for p in lm.parameters()),
        num_codec_parameters=sum(p.numel() for p in codec.parameters()),
        provenance={"weights": f"random, seed {model.seed}"},
    )
    for form, write in (("micro", write_micro), ("audiocraft", write_audiocraft)):
        (folder / form).mkdir(parents=True)
        write(found, folder / form)


def _share_codecs(folder: Path, cache: Path) -> None:
    """Keeps one copy of equal codec files on disk: the base codec is 227 MB in either form."""
    pool = storage.ensure_writable(cache / "codecs")
    for path in sorted(folder.glob("*/c*_*.bin")) + sorted(folder.glob("*/codec.safetensors")):
        held = pool / f"{storage.file_hash(path)[:16]}{path.suffix}"
        try:
            if held.exists():
                path.unlink()
                os.link(held, path)
            else:
                os.link(path, held)
        except OSError:  # no hard links here: then there are copies
            if not path.exists():
                shutil.copyfile(held, path)


def main() -> None:
    """Makes the models named on the command line and prints their folders as JSON. A process of its own, so that
    what is timed does not share one with what wrote it.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("names", nargs="+", choices=sorted(MODELS))
    given = parser.parse_args()
    folders = {}
    for name in given.names:
        print(f"preparing {name}", file=sys.stderr)
        folder = prepared(MODELS[name], given.cache)
        if hf.is_installed():
            hf.written(folder)
        folders[name] = str(folder)
    print(json.dumps(folders))


if __name__ == "__main__":
    main()
