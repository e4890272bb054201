"""Tiny models with random weights and the run folders that training would have left behind."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from micro_musicgen import checkpoints, paths, references, storage
from micro_musicgen.codec.builder import build_codec_model
from micro_musicgen.data.manifest import Track, write_manifest
from micro_musicgen.engine.runner import Runner
from micro_musicgen.engine.transformer_lm import make_network
from micro_musicgen.lm.builder import build_lm

SAMPLE_RATE = 32000
HOP = 640
CARD = 64
NUM_CODEBOOKS = 4
WINDOW_S = 1.0


def codec_config(
    *, bins: int = CARD, n_q: int = NUM_CODEBOOKS, n_filters: int = 2, dimension: int = 16
) -> dict[str, Any]:
    """Facts of an EnCodec config: stride 640 as the published 32 kHz model, everything else as small as it gets."""
    return {
        "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": SAMPLE_RATE,
            "channels": 1,
            "causal": False,
            "renormalize": False,
        },
        "seanet": {
            "dimension": dimension,
            "channels": 1,
            "causal": False,
            "n_filters": n_filters,
            "n_residual_layers": 1,
            "ratios": [8, 5, 4, 4],
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": "weight_norm",
            "norm_params": {},
            "kernel_size": 7,
            "residual_kernel_size": 3,
            "last_kernel_size": 7,
            "dilation_base": 2,
            "pad_mode": "constant",
            "true_skip": True,
            "compress": 2,
            "lstm": 2,
            "disable_norm_outer_blocks": 0,
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None},
            "encoder": {},
        },
        "rvq": {
            "n_q": n_q,
            "q_dropout": False,
            "bins": bins,
            "decay": 0.99,
            "kmeans_init": True,
            "kmeans_iters": 2,
            "threshold_ema_dead_code": 2,
            "orthogonal_reg_weight": 0.0,
            "orthogonal_reg_active_codes_only": False,
        },
        "sample_rate": SAMPLE_RATE,
        "channels": 1,
    }


def lm_config(
    *, dim: int = 32, num_heads: int = 2, num_layers: int = 2, card: int = CARD, n_q: int = NUM_CODEBOOKS
) -> dict[str, Any]:
    """Facts of a MusicGen LM config without conditions, nano-like."""
    return {
        "lm_model": "transformer_lm",
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": list(range(n_q)), "flatten_first": 0, "empty_initial": 0},
        },
        "transformer_lm": {
            "dim": dim,
            "num_heads": num_heads,
            "num_layers": num_layers,
            "hidden_scale": 4,
            "n_q": n_q,
            "card": card,
            "dropout": 0.0,
            "emb_lr": None,
            "activation": "gelu",
            "norm": "layer_norm",
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "bias_proj": False,
            "past_context": None,
            "causal": True,
            "custom": False,
            "memory_efficient": True,
            "attention_as_float32": False,
            "layer_scale": None,
            "positional_embedding": "sin",
            "xpos": False,
            "checkpointing": "none",
            "weight_init": "gaussian",
            "depthwise_init": "current",
            "zero_bias_init": True,
            "cross_attention": False,
            "qk_layer_norm": False,
            "qk_layer_norm_cross": False,
            "attention_dropout": None,
            "kv_repeat": 1,
            "two_step_cfg": False,
        },
        "classifier_free_guidance": {"training_dropout": 0, "inference_coef": 1},
        "attribute_dropout": {"text": {}, "wav": {}},
        "fuser": {"sum": [], "prepend": [], "cross": [], "input_interpolate": []},
        "conditioners": None,
    }


def text_lm_config() -> dict[str, Any]:
    """An LM that listens to words through a look-up table: text without a text encoder."""
    config = lm_config()
    config["fuser"] = {**config["fuser"], "cross": ["description"], "cross_attention_pos_emb": False,
                       "cross_attention_pos_emb_scale": 1}  # fmt: skip
    config["conditioners"] = {
        "description": {"model": "lut", "lut": {"n_bins": 32, "dim": 8, "tokenizer": "noop", "pad_idx": 0}}
    }
    config["classifier_free_guidance"] = {"training_dropout": 0.1, "inference_coef": 3.0}
    return config


def make_codec_model(config: dict[str, Any] | None = None, *, seed: int = 0) -> nn.Module:
    """An untrained codec whose codebooks are filled with latents of noise, so that different sounds differ in code."""
    torch.manual_seed(seed)
    model = build_codec_model(config or codec_config()).eval()
    with torch.no_grad():
        latents = model.encoder(0.3 * torch.randn(1, 1, model.cardinality * HOP))[0].t()  # [card, D]
        for level, layer in enumerate(model.quantizer.vq.layers):
            codebook = layer._codebook
            codebook.embed.copy_(latents if level == 0 else 0.5**level * (latents - latents.roll(level, 0)))
            codebook.embed_avg.copy_(codebook.embed)
            codebook.inited.fill_(1)
    return model


def make_lm(config: dict[str, Any] | None = None, *, seed: int = 0) -> nn.Module:
    """An untrained language model. Its output is close to uniform over the codes."""
    torch.manual_seed(seed)
    return build_lm(config or lm_config(), window_s=WINDOW_S).eval()


def make_runner(config: dict[str, Any] | None = None, *, lm: nn.Module | None = None, **changes: Any) -> Runner:
    """The engine around the weights of `lm`, or of `make_lm(config)`."""
    config = config or lm_config()
    network = make_network(config, (lm or make_lm(config)).state_dict(), **changes)
    return Runner(network, config["codebooks_pattern"])


def attributes(count: int) -> list[Any]:
    """audiocraft's conditions of clips that say nothing in two words, a and b."""
    from micro_musicgen.upstream import audiocraft_module

    made = audiocraft_module("modules.conditioners").ConditioningAttributes
    return [made(text={"a": None, "b": None}) for _ in range(count)]


def write_run(
    signature: str, solver: str, config: dict[str, Any], model: nn.Module, *, dataset: str = "jungle", steps: int = 7
) -> Path:
    """Gives the folder of a run as a solver leaves it in the data home."""
    folder = paths.xp_dir(signature)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = {
        "solver": solver,
        "signature": signature,
        "config": yaml.safe_dump(config),
        "model": {name: torch.zeros_like(value) for name, value in weights.items()},  # best, not last, is played
        "best": {"score": 1.5, "epoch": 2, "model": weights},
        "training": {"updates_done": steps, "rng": torch.get_rng_state()},
        "plan": {"updates_per_epoch": steps, "segments": [steps]},
        "history": [{"valid": {"ce": 2.0}}, {"valid": {"ce": 1.5}}],
        "provenance": {"seed": 2036, "packages": {"torch": str(torch.__version__)}},
    }
    checkpoints.save(state, folder / references.CHECKPOINT_NAME)
    storage.write_json(folder / "summary.json", {"solver": solver, "signature": signature, "dataset": dataset})
    return folder


def write_codec_run(signature: str = "c0dec000", **changes: int) -> Path:
    """A compression run with random weights."""
    config = codec_config(**changes)
    full = {**deepcopy(config), "solver": "compression", "dataset": {"segment_duration": 1.0}, "seed": 2036}
    return write_run(signature, "compression", full, make_codec_model(config))


def write_lm_run(
    signature: str = "abcd0123", *, codec: str = "//sig/c0dec000", config: dict[str, Any] | None = None
) -> Path:
    """A language model's run on a codec, with a data set of three files beside it."""
    config = config or lm_config()
    manifests = paths.manifests_dir("jungle")
    write_manifests(manifests)
    full = {
        **deepcopy(config),
        "solver": "musicgen",
        "sample_rate": SAMPLE_RATE,
        "channels": 1,
        "compression_model_checkpoint": codec,
        "compression_model_n_q": None,
        "dataset": {"segment_duration": WINDOW_S},
        "datasource": {"train": str(manifests / "train"), "valid": str(manifests / "valid")},
        "seed": 2036,
    }
    return write_run(signature, "musicgen", full, make_lm(config))


def write_manifests(folder: Path) -> None:
    """Manifests of two training files and one validation file, 90 s in all."""
    for split, durations in (("train", [30.0, 40.0]), ("valid", [20.0])):
        tracks = [Track(f"/music/{split}{i}.wav", d, 44100) for i, d in enumerate(durations)]
        write_manifest(folder / split, tracks)


def write_models() -> tuple[Path, Path]:
    """Gives the run folders of a language model and of its codec."""
    codec = write_codec_run()
    return write_lm_run(), codec
