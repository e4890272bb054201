"""The judge of the conditioning bench: says which attributes a clip of labelled drums has, and how often it is right.

It learns from real loops only, as they are and after a trip through the codec (that colour is no attribute), and is
examined on loops of another seed before it may judge anything. Nothing that a model generated is ever learned from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common import say

if TYPE_CHECKING:
    import torch

    from micro_musicgen.audio.labelled import LabelledTrack
    from micro_musicgen.contracts import Codec

WINDOW_S = 2.4
"""All that it listens to: about as long as one bar of the slowest loop."""
NUM_TRACKS, EXAM_TRACKS, TRACK_S = 384, 96, 6.0
CROPS_PER_TRACK = 4
STEPS, BATCH, LR, NOISE = 800, 64, 2e-3, 0.2
LEAST_ACCURACY = 0.97
"""On held-out loops, each attribute by itself: below it, the judge is not asked."""
BANDS, HOP_S = 40, 0.01
_PART = 32
"""Clips at once: larger tensors cost more to be had than to be filled."""


@dataclass(frozen=True)
class Judge:
    """A small network of convolutions over `features`. values: attribute -> its values, in the order of the outputs."""

    values: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, torch.Tensor]
    sample_rate: int

    def judge(self, wavs: torch.Tensor) -> list[dict[str, str]]:
        """Gives the attributes of clips [B, 1, L], of which the first `WINDOW_S` seconds are heard."""
        import torch

        with torch.no_grad():
            found = _outputs(self.weights, features(wavs, self.sample_rate), self.values)
        places = {name: logits.argmax(dim=1).tolist() for name, logits in found.items()}
        return [{name: self.values[name][places[name][row]] for name in self.values} for row in range(len(wavs))]


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A judge and the share of held-out clips of which it was right: real ones, and the same after the codec."""

    judge: Judge
    real: Mapping[str, float]
    coded: Mapping[str, float]

    @property
    def is_fit(self) -> bool:
        """Says whether it may judge: `LEAST_ACCURACY` on real clips in every attribute."""
        return min(self.real.values()) >= LEAST_ACCURACY


def examined_judge(
    folder: Path,
    codec: Codec,
    *,
    sample_rate: int,
    num_kits: int,
    num_tracks: int = NUM_TRACKS,
    exam_tracks: int = EXAM_TRACKS,
) -> Examined:
    """Gives the judge for a codec, learned and examined where `folder` has none yet.

    Raises:
        WorkerFailure: it fails its examination.
    """
    from pool import WorkerFailure

    kept = folder / f"judge-{_key(codec, sample_rate, num_kits, num_tracks, exam_tracks)}"
    found = _read(kept)
    if found is None:
        say("teaching the judge on real loops")
        found = _learn(codec, sample_rate=sample_rate, num_kits=num_kits, sizes=(num_tracks, exam_tracks))
        _write(kept, found)
    if not found.is_fit:
        raise WorkerFailure(f"the judge knows real loops too badly to be asked: {dict(found.real)}")
    return found


def _learn(codec: Codec, *, sample_rate: int, num_kits: int, sizes: tuple[int, int]) -> Examined:
    import torch
    from conditioning_home import EXAM_SEED, JUDGE_SEED

    from micro_musicgen.allocator import keep_freed_memory
    from micro_musicgen.audio.labelled import synthesise_labelled

    keep_freed_memory()  # or a third of the time goes into asking the system for it again and again

    def clips_of(seed: int, num_tracks: int) -> tuple[torch.Tensor, list[dict[str, str]]]:
        tracks = synthesise_labelled(seed, num_tracks, TRACK_S, sample_rate, num_kits=num_kits)
        return crops_of(tracks, CROPS_PER_TRACK, seed)

    clips, said = clips_of(JUDGE_SEED, sizes[0])
    judge = train_judge(torch.cat([clips, through_codec(codec, clips)]), [*said, *said], sample_rate)
    clips, said = clips_of(EXAM_SEED, sizes[1])
    coded = accuracy(judge, through_codec(codec, clips), said)
    return Examined(judge=judge, real=accuracy(judge, clips, said), coded=coded)


def _key(codec: Codec, *facts: int) -> str:
    import sys

    from conditioning_home import code_hash

    from micro_musicgen.audio import labelled, mel, synth, voices

    told = json.dumps([codec.content_hash, *facts])
    return code_hash(told, sys.modules[__name__], labelled, synth, voices, mel)


def _write(path: Path, found: Examined) -> None:
    from safetensors.torch import save_file

    from micro_musicgen import storage

    path.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in found.judge.weights.items()}, path / "judge.safetensors")
    told = {"values": dict(found.judge.values), "sample_rate": found.judge.sample_rate}
    storage.write_json(path / "exam.json", {**told, "real": dict(found.real), "coded": dict(found.coded)})


def _read(path: Path) -> Examined | None:
    from safetensors.torch import load_file

    if not (path / "exam.json").is_file():
        return None
    told = json.loads((path / "exam.json").read_text(encoding="utf-8"))
    values = {name: tuple(found) for name, found in told["values"].items()}
    judge = Judge(values, load_file(path / "judge.safetensors"), told["sample_rate"])
    return Examined(judge=judge, real=told["real"], coded=told["coded"])


def features(wavs: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Gives what the judge hears of clips [B, 1, L]: log mel levels, fp32 [B, BANDS, frames], of `WINDOW_S` seconds.

    All relative to the clip's own loudness.
    """
    import torch

    from micro_musicgen.audio.mel import MelScale, magnitudes, mel_filters

    length = round(WINDOW_S * sample_rate)
    wavs = torch.nn.functional.pad(wavs[..., :length].float(), (0, max(0, length - wavs.shape[-1])))
    wavs = 0.1 * wavs / wavs.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-4)
    scale = MelScale(n_fft=1024, hop_samples=round(HOP_S * sample_rate), n_mels=BANDS)
    filters = mel_filters(scale, sample_rate).float()
    found = [torch.log(magnitudes(part, scale).transpose(1, 2) @ filters + 1e-3) for part in wavs.split(_PART)]
    return torch.cat(found).transpose(1, 2)


def crops_of(tracks: Sequence[LabelledTrack], per_track: int, seed: int) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """Gives clips [N, 1, L] of `WINDOW_S` seconds from random places of tracks, and what each of them is."""
    import numpy as np
    import torch

    rng = np.random.default_rng(seed)
    clips, said = [], []
    for track in tracks:
        length = round(WINDOW_S * track.sample_rate)
        for _ in range(per_track):
            start = int(rng.integers(len(track.wav) - length + 1))
            clips.append(torch.from_numpy(track.wav[start : start + length])[None])
            said.append(dict(track.attributes))
    return torch.stack(clips), said


def through_codec(codec: Codec, clips: torch.Tensor, batch: int = 8) -> torch.Tensor:
    """Gives clips [N, 1, L] encoded and decoded."""
    import torch

    with torch.no_grad():
        found = [codec.decode(codec.encode(part)) for part in clips.split(batch)]
    return torch.cat(found)[..., : clips.shape[-1]].cpu()


def train_judge(
    clips: torch.Tensor, said: Sequence[Mapping[str, str]], sample_rate: int, *, steps: int = STEPS, seed: int = 0
) -> Judge:
    """Gives a judge that has learned from clips [N, 1, L] of which `said` tells the attributes."""
    import torch
    from torch.nn import functional

    values = {name: tuple(sorted({each[name] for each in said})) for name in said[0]}
    targets = {name: torch.tensor([found.index(each[name]) for each in said]) for name, found in values.items()}
    known = features(clips, sample_rate)
    generator = torch.Generator().manual_seed(seed)
    spread = known.std((0, 2), keepdim=True)[0]
    weights = {"mean": known.mean((0, 2), keepdim=True)[0], "scale": 1 / spread}
    learned = _layers(sum(map(len, values.values())), generator)
    optimizer = torch.optim.AdamW([each.requires_grad_() for each in learned.values()], lr=LR, weight_decay=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / steps)
        rows = torch.randint(len(known), (BATCH,), generator=generator)
        noise = NOISE * spread * torch.randn(known[rows].shape, generator=generator)
        found = _outputs({**weights, **learned}, known[rows] + noise, values)
        loss = sum(functional.cross_entropy(found[name], targets[name][rows]) for name in values)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return Judge(values, {**weights, **{name: each.detach() for name, each in learned.items()}}, sample_rate)


def _layers(width: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Gives fresh weights: convolutions over time, then two linear maps."""
    import torch

    shapes = [(48, 2 * BANDS, 9), (48, 48, 9), (64, 48, 15), (64, 64, 15), (96, 128), (width, 96)]
    made = {}
    for index, shape in enumerate(shapes):
        fan_in = torch.Size(shape[1:]).numel()
        made[f"w{index}"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        made[f"b{index}"] = torch.zeros(shape[0])
    return made


def accuracy(judge: Judge, clips: torch.Tensor, said: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Gives the share of clips of which the judge says what they are, by attribute."""
    found = [verdict for part in clips.split(256) for verdict in judge.judge(part)]
    return {
        name: sum(f[name] == s[name] for f, s in zip(found, said, strict=True)) / len(said) for name in judge.values
    }


def _outputs(
    weights: Mapping[str, torch.Tensor], known: torch.Tensor, values: Mapping[str, tuple[str, ...]]
) -> dict[str, torch.Tensor]:
    """Gives logits by attribute. Heard are levels and attacks; mean and maximum over time make the clip's own place
    in its bar no matter."""
    import torch
    from torch.nn import functional

    levels = (known - weights["mean"]) * weights["scale"]
    attacks = functional.pad(3 * known.diff(dim=-1).clamp(min=0), (0, 1))
    x = torch.cat([levels, attacks], dim=1)
    for index, stride in enumerate((2, 2, 1, 1)):
        kernel = weights[f"w{index}"]
        x = functional.conv1d(x, kernel, weights[f"b{index}"], stride=stride, padding=kernel.shape[-1] // 2).relu()
    x = torch.cat([x.mean(-1), x.amax(-1)], dim=1)
    x = functional.linear(x, weights["w4"], weights["b4"]).relu()
    split = functional.linear(x, weights["w5"], weights["b5"]).split([len(each) for each in values.values()], dim=1)
    return dict(zip(values, split, strict=True))
