"""Tiny diffusion decoders with random weights for the tiny codecs of `fixtures_models`, and runs that hold them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from micro_musicgen import checkpoints, paths, references, storage
from micro_musicgen.codec import codebooks
from micro_musicgen.codec.resolve import read_codec
from micro_musicgen.codec.wrapping import state_hash
from micro_musicgen.diffusion.builder import build_diffusion
from micro_musicgen.diffusion.code_condition import condition_width
from micro_musicgen.diffusion.model import LatentDiffusion

LATENT_DIM = 16
WINDOW_FRAMES = 17
SIGNATURE = "d1ff0000"


@contextlib.contextmanager
def home_at(folder: Path) -> Iterator[Path]:
    """A data home for all tests of a file: making models takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(paths.HOME_VARIABLE, str(folder))
        yield folder


def codec_hashes(codec: str) -> list[str]:
    """Those of the first 1, 2, .. codebooks of a codec's run."""
    parts = read_codec(codec)
    counts = range(1, parts.config["rvq"]["n_q"] + 1)
    cut = [codebooks.first(parts, number) for number in counts]
    return [state_hash(one.state, one.config) for one in cut]


def decoder_config(
    codec: str = "c0dec000", *, objective: str = "v", counts: Sequence[int] = (1, 2, 4), **sampling: Any
) -> dict[str, Any]:
    """What a decoder of the codec run `codec` is told about itself; a window that is no multiple of the stride 2."""
    return {
        "frames": {"target": "codec", "condition": "codes"},
        "decoder": {"codebooks": list(counts)},
        "diffusion": {
            "num_timesteps": 20,
            "schedule": "cosine",
            "objective": objective,
            "loss_weight": "uniform",
            "condition_dropout": 0.1,
            "channels": LATENT_DIM,
            "condition_channels": condition_width(LATENT_DIM, counts),
            "text_channels": 0,
        },
        "denoiser": {
            "name": "dit",
            "dit": {
                "dim": 8,
                "depth": 1,
                "num_heads": 2,
                "head_dim": 4,
                "num_kv_heads": 1,
                "mlp_dim": 8,
                "dropout": 0.0,
                "patch_size": 2,
                "hierarchy": False,
                "text": "none",
                "time_embedding": "sinusoidal",
                "rope_base": 10000,
            },
        },
        "sampling": {"sampler": "dpm", "steps": 3, "guidance": 1.5, "noise_scale": 1.0, "spacing": None, "seed": 0}
        | sampling,
        "codec_hashes": codec_hashes(codec),
        "window_frames": WINDOW_FRAMES,
    }


def make_decoder(config: dict[str, Any], *, fitted: bool = True) -> LatentDiffusion:
    """A model whose every weight is drawn at random, so that all that it hears matters."""
    model = build_diffusion(config)
    lot = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=lot))
    if fitted:
        for normaliser in (model.normaliser, model.condition_normaliser):
            assert normaliser is not None
            normaliser.fit([0.2 + 0.5 * torch.randn(1, normaliser.mean.numel(), 50, generator=lot)])
    return model.eval()


def random_codes(num_clips: int, num_codebooks: int, num_frames: int, *, seed: int = 1) -> torch.Tensor:
    """Codes below 64, [B, K, T]."""
    lot = torch.Generator().manual_seed(seed)
    return torch.randint(64, (num_clips, num_codebooks, num_frames), generator=lot)


def write_decoder_run(config: dict[str, Any] | None = None, *, signature: str = SIGNATURE) -> Path:
    """Gives the folder of a run as the solver leaves it in the data home; its codec's run has to be there."""
    config = config or decoder_config()
    facts = {key: config[key] for key in ("codec_hashes", "window_frames")}
    run = {key: value for key, value in config.items() if key not in facts}
    folder = paths.xp_dir(signature)
    state = {
        "solver": "diffusion_decoder",
        "signature": signature,
        "config": yaml.safe_dump({**run, "solver": "diffusion_decoder", "seed": 7}),
        "model": {},
        "best": {"score": 0.5, "epoch": 1, "model": make_decoder(config).state_dict()},
        "training": {"updates_done": 9, "extra": {"decoder": facts}},
        "history": [],
        "provenance": {},
    }
    checkpoints.save(state, folder / references.CHECKPOINT_NAME)
    storage.write_json(folder / "summary.json", {"solver": "diffusion_decoder", "dataset": "jungle"})
    return folder
