"""Keeping the codebooks of a residual quantiser in use while a codec trains.

audiocraft's quantiser fills its codebooks from the first batch and moves them by moving averages. On little data that
ends with a quarter of the first codebook in use. Here the codebooks are served from outside: filled by k-means over
many batches once the latents mean something, dead codes given a new place among recent latents, and at the end, with
the encoder frozen, fitted once more to the whole data. Only the quantiser's own buffers change, so a model trained
this way is an ordinary audiocraft model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from micro_musicgen.errors import MicroMusicGenError

CHUNK = 1 << 24
"""Distances held at once: 64 MiB."""


@dataclass(frozen=True, kw_only=True)
class QuantiserConfig:
    """The Hydra section `quantiser`, checked.

    warmup: share of a run before the first quantised step, the autoencoder alone. refit: share of a run after the
    last fit, during which the encoder and the codebooks stand still and the decoder learns the final codes.
    commit: pull of the latents towards their codes, relative to the latents' variance.
    bank_vectors_per_code: latents per code that k-means sees. bank_segment_s: seconds of the clips they come from.
    bank_shifts: samples by which all these clips are heard later (or earlier) once more, one shift after the other, as
    long as latents are too few: the same sounds at other times keep codebooks from learning a small set by heart.
    kmeans_iters: rounds of k-means. restart_every: steps between looks for dead codes. restart_below: a code is dead
    when it is used less than this share of the mean. reservoir_vectors: recent latents that dead codes move to.
    """

    warmup: float
    refit: float
    commit: float
    bank_vectors_per_code: int
    bank_segment_s: float
    bank_shifts: tuple[int, ...]
    kmeans_iters: int
    restart_every: int
    restart_below: float
    reservoir_vectors: int

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> QuantiserConfig:
        """Gives the config that the Hydra section describes.

        Raises:
            MicroMusicGenError: unknown or missing keys, or a value out of range: all at once.
        """
        names = {f.name for f in fields(cls)}
        faults = [f"unknown key quantiser.{key}" for key in sorted(set(section) - names)]
        faults += [f"missing key quantiser.{key}" for key in sorted(names - set(section))]
        if not faults:
            whole = ("bank_vectors_per_code", "kmeans_iters", "restart_every", "reservoir_vectors")
            faults += [f"quantiser.{key}={section[key]} must be 1 or more" for key in whole if section[key] < 1]
            faults += [
                f"quantiser.{key}={section[key]} must lie in [0, 1]"
                for key in ("warmup", "refit", "restart_below")
                if not 0 <= section[key] <= 1
            ]
            if not section["warmup"] + section["refit"] <= 1:
                faults.append(f"quantiser.warmup + refit = {section['warmup'] + section['refit']:g} must not exceed 1")
            if section["commit"] < 0:
                faults.append(f"quantiser.commit={section['commit']} is negative")
            if not section["bank_segment_s"] > 0:
                faults.append(f"quantiser.bank_segment_s={section['bank_segment_s']} must be above 0 seconds")
            if not all(isinstance(shift, int) for shift in section["bank_shifts"]):
                faults.append(f"quantiser.bank_shifts={section['bank_shifts']} must be whole numbers of samples")
        if faults:
            raise MicroMusicGenError("; ".join(faults))
        return cls(**{**section, "bank_shifts": tuple(section["bank_shifts"])})


class CodebookKeeper:
    """Serves the codebooks of an audiocraft `ResidualVectorQuantizer`.

    Invariant: given the quantiser's buffers and `state_dict`, what happens next is a function of the latents seen.
    """

    def __init__(self, quantizer: Any, config: QuantiserConfig, *, seed: int) -> None:
        self.quantizer = quantizer
        self.config = config
        self._generator = torch.Generator().manual_seed(seed)
        self._reservoir = torch.zeros(config.reservoir_vectors, quantizer.dimension)
        self._seen = 0
        self._steps = 0

    @property
    def codebooks(self) -> list[Any]:
        """The codebook of each level, coarse to fine."""
        return [layer._codebook for layer in self.quantizer.vq.layers]

    @torch.no_grad()
    def fit(self, latents: torch.Tensor) -> float:
        """Gives the share of the variance of `latents` [N, D] that stays unexplained after fitting every level to them.

        Each level is fitted by k-means to what the levels before it leave. Fewer latents than codes are made up for by
        copies with a little noise.
        """
        assert latents.ndim == 2 and len(latents), f"latents of shape {tuple(latents.shape)}"
        residual = latents.float()
        variance = (residual - residual.mean(dim=0)).square().sum().clamp(min=1e-20)
        for codebook in self.codebooks:
            centres, counts = kmeans(
                residual, codebook.codebook_size, iterations=self.config.kmeans_iters, generator=self._generator
            )
            # The weight of a step's worth of latents, which is what the moving averages are in equilibrium with.
            counts = counts.clamp(min=0.1) * (self._latents_per_step() / len(latents))
            codebook.embed.copy_(centres)
            codebook.cluster_size.copy_(counts)
            codebook.embed_avg.copy_(centres * counts[:, None])
            codebook.inited.fill_(1)
            residual = residual - centres[nearest(residual, centres)[0]]
        return float(residual.square().sum() / variance)

    @torch.no_grad()
    def observe(self, latents: torch.Tensor) -> int:
        """Gives the number of codes that were restarted after a quantised training step on `latents` [B, D, T]."""
        self._steps += 1
        self._remember(latents.detach().transpose(1, 2).flatten(0, 1).float().cpu())
        if self._steps % self.config.restart_every or self._seen < len(self._reservoir):
            return 0
        return self._restart_dead()

    def _latents_per_step(self) -> float:
        return self._seen / self._steps if self._steps else 2.0 * self.codebooks[0].codebook_size

    def _remember(self, vectors: torch.Tensor) -> None:
        """Puts `vectors` [N, D] where the oldest ones are."""
        size = len(self._reservoir)
        vectors = vectors[-size:]
        places = (self._seen + torch.arange(len(vectors))) % size
        self._reservoir[places] = vectors
        self._seen += len(vectors)

    def _restart_dead(self) -> int:
        restarted = 0
        residual = self._reservoir.to(self.codebooks[0].embed.device)
        for codebook in self.codebooks:
            mean_size = codebook.cluster_size.mean()
            dead = (codebook.cluster_size < self.config.restart_below * mean_size).nonzero()[:, 0]
            if len(dead):
                _, error = nearest(residual, codebook.embed)
                # Where the error is large a new code helps most. It starts with a mean share of the usage, or it
                # would be found dead again before it had a chance.
                moved = residual[_draw(error, len(dead), self._generator)]
                codebook.embed[dead] = moved
                codebook.cluster_size[dead] = mean_size
                codebook.embed_avg[dead] = moved * mean_size
                restarted += len(dead)
            residual = residual - codebook.embed[nearest(residual, codebook.embed)[0]]
        return restarted

    def state_dict(self) -> dict[str, Any]:
        """Gives what the next step depends on, apart from the quantiser's buffers."""
        return {
            "reservoir": self._reservoir,
            "seen": self._seen,
            "steps": self._steps,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self._reservoir.copy_(state["reservoir"])
        self._seen, self._steps = int(state["seen"]), int(state["steps"])
        self._generator.set_state(state["generator"])


def nearest(vectors: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives for each of `vectors` [N, D] the index [N] of the nearest of `centres` [K, D] and the squared distance."""
    pieces = []
    for piece in torch.split(vectors, max(1, CHUNK // len(centres))):
        # |v - c|^2 without its |v|^2, which decides nothing; the exact distance is taken afterwards.
        pieces.append((centres.square().sum(dim=1) - 2 * piece @ centres.T).argmin(dim=1))
    indices = torch.cat(pieces)
    return indices, (vectors - centres[indices]).square().sum(dim=1)


def kmeans(
    vectors: torch.Tensor, num_centres: int, *, iterations: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives centres [K, D] of `vectors` [N, D] and how many belong to each, [K].

    Lloyd's algorithm, with centres that almost nobody needs moved to where the error is largest in all but the last
    rounds. generator: on the CPU, whatever the device.
    """
    centres = _spread(vectors, num_centres, generator)
    for round_ in range(iterations):
        indices, error = nearest(vectors, centres)
        counts = torch.bincount(indices, minlength=num_centres)
        sums = torch.zeros_like(centres).index_add_(0, indices, vectors)
        used = counts > 0
        centres[used] = sums[used] / counts[used, None]
        if round_ < iterations - 3:
            rare = (counts < max(1.0, 0.1 * len(vectors) / num_centres)).nonzero()[:, 0]
            rare = rare[: len(vectors)]
            if len(rare):
                centres[rare] = vectors[_draw(error, len(rare), generator)]
    counts = torch.bincount(nearest(vectors, centres)[0], minlength=num_centres)
    return centres, counts.float()


def _spread(vectors: torch.Tensor, num_centres: int, generator: torch.Generator) -> torch.Tensor:
    """Gives centres [K, D] to start from: their number doubles, each time where the error is large.

    (A parallel form of k-means++; Bahmani et al. 2012.) Where vectors run out, copies with a little noise make up.
    """
    start = int(torch.randint(len(vectors), (1,), generator=generator))
    centres = vectors[start : start + 1].clone()
    while len(centres) < min(num_centres, len(vectors)):
        wanted = min(len(centres), num_centres - len(centres), len(vectors) - len(centres))
        centres = torch.cat([centres, vectors[_draw(nearest(vectors, centres)[1], wanted, generator)]])
    missing = num_centres - len(centres)
    if missing:
        copies = torch.randint(len(centres), (missing,), generator=generator).to(vectors.device)
        noise = torch.randn(missing, vectors.shape[1], generator=generator).to(vectors)
        spread = vectors.std(dim=0, unbiased=False).mean()
        centres = torch.cat([centres, centres[copies] + 1e-2 * spread * noise])
    return centres


def _draw(weights: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Gives `count` different indices, likelier where `weights` [N] are large (Gumbel top-k); all of them if N < count.

    (torch.multinomial takes at most 2^24 weights and fails when too few of them are above 0.)
    """
    uniform = torch.rand(len(weights), generator=generator).clamp(min=1e-12).to(weights.device)
    keys = (weights.clamp(min=1e-30)).log() - (-uniform.log()).log()
    chosen = keys.topk(min(count, len(weights))).indices
    return chosen.repeat(math.ceil(count / len(chosen)))[:count]
