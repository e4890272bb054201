"""Tiny models in beat time, and the sounds that tell whether they keep it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import fixtures_models as models
import torch

from micro_musicgen import paths
from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.contracts import BeatTime
from micro_musicgen.engine.engine import MicroMusicGen

TIME = BeatTime(frames_per_beat=16, beats_per_bar=4, bpm=172.0, bpm_range=(140.0, 180.0))
BAR = 64
WINDOW_BARS = 2
WINDOW_S = WINDOW_BARS * BAR / 50


def beat_model(codec: Any = None, time: BeatTime | None = TIME, **changes: Any) -> MicroMusicGen:
    """A model of two bars a window with random weights."""
    config = models.lm_config()
    codec = codec or EncodecCodec(models.make_codec_model(), models.codec_config())
    lm = models.make_lm(config)
    return MicroMusicGen(config, lm.state_dict(), codec, window_s=WINDOW_S, beat_time=time, device="cpu", **changes)


class PulseCodec:
    """Decodes every frame to a tone of its own code, one period a frame per code: sound that tells its codes."""

    sample_rate, channels, frame_rate, hop_samples = 32000, 1, 50.0, 640
    num_codebooks, cardinality, latent_dim = 4, 64, 2
    content_hash = "pulse"

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        at = torch.arange(self.hop_samples) / self.hop_samples
        tones = torch.sin(2 * torch.pi * (1 + codes[:, 0, :, None] % 8) * at)
        return 0.5 * tones.flatten(1)[:, None]

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        frames = -(-wav.shape[-1] // self.hop_samples)
        padded = torch.nn.functional.pad(wav[:, 0], (0, frames * self.hop_samples - wav.shape[-1]))
        peaks = torch.fft.rfft(padded.unflatten(-1, (frames, -1))).abs().argmax(-1) - 1
        return peaks.clamp(0, 63)[:, None].expand(-1, 4, -1)


def beat_section(**changes: Any) -> dict[str, Any]:
    """What a finished run's config says of its time."""
    section = {"time": "beats", "frames_per_beat": 16, "beats_per_bar": 4, "align": "bar", "bpm": 172.0}
    return {**section, "bpm_range": [140.0, 180.0], "codec_frames": 16, **changes}


def write_beat_runs() -> Path:
    """Gives the run of a language model in beat time, `beatab12`'s, with its codec's beside it."""
    codec = models.codec_config()
    full = {**deepcopy(codec), "solver": "compression", "dataset": {"segment_duration": 1.28}, "seed": 1}
    full["dset"] = beat_section()
    models.write_run("c0dec111", "compression", full, models.make_codec_model(codec), dataset="beaty")
    config = models.lm_config()
    manifests = paths.manifests_dir("beaty")
    models.write_manifests(manifests)
    plain = {
        **deepcopy(config),
        "solver": "musicgen",
        "sample_rate": 32000,
        "channels": 1,
        "compression_model_checkpoint": "//sig/c0dec111",
        "compression_model_n_q": None,
        "dataset": {"segment_duration": WINDOW_S},
        "datasource": {"train": str(manifests / "train"), "valid": str(manifests / "valid")},
        "dset": beat_section(),
        "seed": 1,
    }
    return models.write_run("beefab12", "musicgen", plain, models.make_lm(config), dataset="beaty")
