"""The numbers that say whether a trained model learned anything, on sounds that it was not trained on.

Each has a floor beside it: an untrained codec, the entropy of the codes, random codes; and the Frechet distance has a
ceiling too: other real sounds.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from micro_musicgen import checkpoints, paths, references
from micro_musicgen.audio.io import load_mono, write_wav
from micro_musicgen.codec.builder import build_codec_model
from micro_musicgen.codec.encodec import EncodecCodec
from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.data.manifest import read_manifest
from micro_musicgen.engine.engine import MicroMusicGen
from micro_musicgen.metrics.codes import unigram_entropy, usage_fraction
from micro_musicgen.metrics.frechet import codec_embeddings, frechet_distance
from micro_musicgen.metrics.spectral import log_mel_distance

Frames = npt.NDArray[np.float64]

NUM_FRECHET_CLIPS = 32
FRECHET_CLIP_S = 8.0
MAX_HELD_OUT_S = 120.0


def _sounds(split: str, sample_rate: int) -> list[torch.Tensor]:
    """Gives the split's files as [1, 1, L], the first `MAX_HELD_OUT_S` seconds of them in all."""
    found, seconds = [], 0.0
    for track in read_manifest(paths.manifests_dir("demo") / split):
        if seconds < MAX_HELD_OUT_S:
            wav = load_mono(track.path, sample_rate)
            found.append(torch.from_numpy(wav)[None, None])
            seconds += wav.size / sample_rate
    return found


def _latents(codec: Codec, wavs: list[torch.Tensor]) -> Frames:
    """Gives one embedding a frame, [N, D], of audio clips [B, 1, L]."""
    frames: Frames = np.concatenate([codec_embeddings(codec, wav) for wav in wavs])
    return frames


def _mel_distance(codec: Codec, wavs: list[torch.Tensor]) -> float:
    distances = [
        float(log_mel_distance(codec.decode(codec.encode(wav))[..., : wav.shape[-1]], wav, codec.sample_rate))
        for wav in wavs
    ]
    return float(np.average(distances, weights=[wav.shape[-1] for wav in wavs]))


def _untrained(codec: EncodecCodec, wavs: list[torch.Tensor]) -> EncodecCodec:
    """Gives the codec as it was before training; its codebooks are filled from the sounds, as k-means would start."""
    torch.manual_seed(0)
    model = build_codec_model(codec.config)
    with torch.no_grad():
        model.train()
        for wav in wavs[:4]:
            model.quantizer(model.encoder(wav), model.frame_rate)
    return EncodecCodec(model, codec.config)


def _random_codes_like(codec: Codec, num_frames: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(codec.cardinality, (1, codec.num_codebooks, num_frames), generator=generator)


def measure(run: Path, release: Path, round_trips: Path, *, seed: int) -> dict[str, Any]:
    """Gives the table of the demo page; writes held-out sounds, through the codec and back, to `round_trips`."""
    player = MicroMusicGen.get_pretrained(str(release))
    codec = load_codec(str(release))
    assert isinstance(codec, EncodecCodec)
    held_out, trained_on = (_sounds(split, codec.sample_rate) for split in ("valid", "train"))
    for number, wav in enumerate(held_out[:4]):
        back = codec.decode(codec.encode(wav))[0]
        write_wav(round_trips / f"held_out_{number}.wav", back.numpy(), codec.sample_rate)
    codes = torch.cat([codec.encode(wav) for wav in held_out], dim=-1)
    state = checkpoints.load(run / references.CHECKPOINT_NAME)
    best = state["history"][state["best"]["epoch"] - 1]["valid"]
    entropy = unigram_entropy(codes, codec.cardinality)
    return {
        "codec": {
            "mel_distance_untrained": _mel_distance(_untrained(codec, held_out), held_out),
            "mel_distance": _mel_distance(codec, held_out),
            "usage": [float(v) for v in usage_fraction(codes, codec.cardinality)],
            "entropy_ratio": [float(v) / math.log(codec.cardinality) for v in entropy],
            "cardinality": codec.cardinality,
        },
        "lm": {
            "unigram_entropy": [float(v) for v in entropy],
            "cross_entropy": [best[f"ce_q{k + 1}"] for k in range(codec.num_codebooks)],
            "updates": state["training"]["updates_done"],
        },
        "frechet": _frechet(player, codec, held_out, trained_on, seed),
        "sizes": {
            "codec_parameters": sum(p.numel() for p in codec.model.parameters()),
            "language_model_parameters": player.num_parameters,
            "release_bytes": sum(path.stat().st_size for path in release.iterdir()),
        },
    }


def _frechet(
    player: MicroMusicGen, codec: Codec, held_out: list[torch.Tensor], trained_on: list[torch.Tensor], seed: int
) -> dict[str, float]:
    player.set_generation_params(duration=FRECHET_CLIP_S, seed=seed)
    generated = player.generate_unconditional(NUM_FRECHET_CLIPS).cpu()
    generator = torch.Generator().manual_seed(seed)
    random_codes = _random_codes_like(codec, round(NUM_FRECHET_CLIPS * FRECHET_CLIP_S * codec.frame_rate), generator)
    sets = {
        "generated": _latents(codec, list(generated[:, None])),
        "random_codes": _latents(codec, [codec.decode(random_codes).cpu()]),
        "real_train": _latents(codec, trained_on),
    }
    reference = _latents(codec, held_out)
    # The distance shrinks with the number of frames, so every set gets the same number, drawn evenly over it.
    num_frames = min(len(reference), *(len(frames) for frames in sets.values()))

    def thinned(frames: Frames) -> Frames:
        kept: Frames = frames[np.linspace(0, len(frames) - 1, num_frames).astype(int)]
        return kept

    distances = {name: float(frechet_distance(thinned(frames), reference)) for name, frames in sets.items()}
    return {"num_frames": num_frames, "num_clips": NUM_FRECHET_CLIPS, **distances}
