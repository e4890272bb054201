"""The 24 kHz model of the `encodec` package, from the file of weights that it publishes, without the package.

Its modules are the ancestors of audiocraft's and name their weights alike, so the codec is built like one of ours:
the engine streams it, and a release can hold it. With the package installed a test compares the two number by number.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen import storage
from micro_musicgen.checkpoints import TORN
from micro_musicgen.codec.parts import CodecParts
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    import torch

SUFFIX = ".th"
ORIGIN = {"made_by": "encodec", "license": "CC-BY-NC-4.0"}
"""encodec 0.1.1 on PyPI is under that licence as a whole; its later source code is MIT, which names no weights."""

_MARKS = {"encoder.model.0.conv.conv.bias", "quantizer.vq.layers.0._codebook.embed"}

CONFIG: dict[str, Any] = {
    "compression_model": "encodec",
    "encodec": {
        "autoencoder": "seanet",
        "quantizer": "rvq",
        "sample_rate": 24000,
        "channels": 1,
        "causal": True,
        "renormalize": False,
    },
    "seanet": {
        "dimension": 128,
        "channels": 1,
        "causal": True,
        "n_filters": 32,
        "n_residual_layers": 1,
        "ratios": [8, 5, 4, 2],
        "activation": "ELU",
        "activation_params": {"alpha": 1.0},
        "norm": "weight_norm",
        "norm_params": {},
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 7,
        "dilation_base": 2,
        "pad_mode": "reflect",
        "true_skip": False,
        "compress": 2,
        "lstm": 2,
        "disable_norm_outer_blocks": 0,
        "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None},
        "encoder": {},
    },
    "rvq": {
        "n_q": 32,
        "q_dropout": False,
        "bins": 1024,
        "decay": 0.99,
        "kmeans_init": True,
        "kmeans_iters": 50,
        "threshold_ema_dead_code": 2,
        "orthogonal_reg_weight": 0.0,
        "orthogonal_reg_active_codes_only": False,
    },
    "sample_rate": 24000,
    "channels": 1,
}
"""75 frames a second, 32 codebooks of 1024."""


def read(path: Path) -> CodecParts | None:
    """Gives the codec in `encodec_24khz-*.th`; None when `path` is another kind of file.

    Raises:
        MicroMusicGenError: it is the package's stereo model, or not the file that its name's checksum promises.
    """
    state = _state(path)
    if state is None:
        return None
    if "encoder.model.0.conv.norm.weight" in state:
        raise MicroMusicGenError(f"{path} is encodec's stereo model and music here has one channel; use encodec_24khz")
    promised = re.search(r"-([0-9a-f]{8})$", path.stem)
    if promised is not None and not storage.file_hash(path).startswith(promised[1]):
        raise MicroMusicGenError(
            f"{path} is not the file that was published (its sha256 does not begin with {promised[1]}); fetch it again"
        )
    copied = {name: tensor.clone() for name, tensor in state.items()}
    return CodecParts(source=str(path), config=CONFIG, state=copied, origin=ORIGIN)


def _state(path: Path) -> Mapping[str, torch.Tensor] | None:
    """Gives the weights of one of the package's models, still in the file; None when it holds something else."""
    import torch

    if path.suffix != SUFFIX:
        return None
    try:
        plain = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except TORN:
        return None  # whoever reads it as a checkpoint says what is wrong
    is_state = isinstance(plain, dict) and all(isinstance(value, torch.Tensor) for value in plain.values())
    return plain if is_state and set(plain) >= _MARKS else None
