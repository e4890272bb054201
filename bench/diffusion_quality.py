"""How near decoded clips are to their originals, and how little it costs to take few steps of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from common import Row, say

if TYPE_CHECKING:
    import numpy as np
    import torch

    from micro_musicgen.contracts import Codec
    from micro_musicgen.engine.diffusion_codec import DiffusionCodec

CLIP_S = 4.0
PLAIN, TWIN, OURS, BOUND = "plain", "regression", "diffusion", "latents"
"""Ways from codes to sound: the codec's decoder, the regression twin, the diffusion decoder; and the encoder's own
latents, which none of them is told, through the codec's decoder: what decoder and twin learn to give.
"""
MUST_WIN = (1, 2)
"""Numbers of codebooks at which the plain decoder has to be beaten."""
NUM_RESAMPLES = 200


@dataclass(frozen=True)
class Clips:
    """Sounds [N, 1, L] with their codes [N, K, T] and latents [N, D, T]. name: of the set that they are from."""

    name: str
    wav: torch.Tensor
    codes: torch.Tensor
    latents: torch.Tensor
    sample_rate: int


@dataclass(frozen=True)
class Scores:
    """How near N clips are to their originals. mel: log-mel distance of each. rows: embedded, [N, R, W]; wanted: the
    originals', likewise.
    """

    mel: tuple[float, ...]
    rows: np.ndarray
    wanted: np.ndarray

    @property
    def mean_mel(self) -> float:
        """Gives the mean of `mel`."""
        return sum(self.mel) / len(self.mel)

    @property
    def frechet(self) -> float:
        """Gives the Frechet distance of all rows."""
        return frechet_of(self.rows, self.wanted)


Table = Mapping[tuple[str, int], Scores]
"""(way, number of codebooks) -> scores. The bound stands under 0 codebooks."""


def frechet_of(rows: np.ndarray, wanted: np.ndarray) -> float:
    """Gives the Frechet distance of embedded clips [N, R, W] and [M, R', W]."""
    from micro_musicgen.metrics.frechet import frechet_distance

    return frechet_distance(rows.reshape(-1, rows.shape[-1]), wanted.reshape(-1, wanted.shape[-1]))


def held_out(codec: Codec, dataset: str, number: int, length_s: float = CLIP_S, split: str = "valid") -> Clips:
    """Gives at most `number` clips of a split, spread over it; shorter sounds are looped."""
    import torch

    from micro_musicgen import paths
    from micro_musicgen.data.crops import AudioCrops
    from micro_musicgen.data.manifest import read_manifest

    tracks = read_manifest(paths.manifests_dir(dataset) / split)
    crops = AudioCrops(tracks, sample_rate=codec.sample_rate, segment_s=length_s, seed=0)
    wav = torch.cat(list(crops.valid_batches(8, number)))
    with torch.inference_mode():
        codes = torch.cat([codec.encode(some) for some in wav.split(8)])
        latents = torch.cat([codec.encode_latents(some) for some in wav.split(8)])
    return Clips(dataset, wav, codes, latents, codec.sample_rate)


def halves(clips: Clips) -> tuple[Clips, Clips]:
    """Gives every other clip, to choose settings on, and the others, to measure on."""
    parts = []
    for first in (0, 1):
        taken = {name: getattr(clips, name)[first::2] for name in ("wav", "codes", "latents")}
        parts.append(replace(clips, **taken))
    return parts[0], parts[1]


def open_decoder(codec: Codec, reference: str, device: str = "cpu") -> DiffusionCodec:
    """Gives the decoder (or twin) of a run, around `codec`, to be played as its config says."""
    from micro_musicgen.engine.diffusion_codec import DiffusionCodec
    from micro_musicgen.release.decoder import read_decoder
    from micro_musicgen.release.decoder_model import build_decoder

    parts = read_decoder(reference)
    return DiffusionCodec(codec, build_decoder(parts, device), parts.config, source=reference)


def embed(wav: torch.Tensor, sample_rate: int) -> np.ndarray:
    """Gives rows [N, R, W] of clips [N, 1, L]."""
    from micro_musicgen.metrics.embedders import make_embedder

    found = make_embedder("log_mel").embed(wav.cpu(), sample_rate)
    return found.reshape(len(wav), -1, found.shape[-1])


def score(made: torch.Tensor, clips: Clips) -> Scores:
    """Gives the scores of clips [N, 1, L] that were made of `clips`."""
    from micro_musicgen.metrics.spectral import log_mel_distance

    wav, rate = clips.wav[..., : made.shape[-1]], clips.sample_rate
    made = made.cpu()[..., : wav.shape[-1]]
    pairs = zip(made.split(1), wav.split(1), strict=True)
    mel = tuple(log_mel_distance(found, wanted, rate) for found, wanted in pairs)
    return Scores(mel, embed(made, rate), embed(wav, rate))


def compare(codec: Codec, decoders: Mapping[str, Any], clips: Clips) -> Table:
    """Gives the scores of every way at every number of codebooks. decoders: `OURS` and `TWIN`."""
    found = {(BOUND, 0): score(_in_parts(codec.decode_latents, clips.latents), clips)}
    for number in range(1, clips.codes.shape[1] + 1):
        for way, each in {PLAIN: codec, **decoders}.items():
            found[way, number] = score(decoded(each, clips, number), clips)
        say(f"{clips.name}: decoded {len(clips.codes)} clips of {number} codebooks in {1 + len(decoders)} ways")
    return found


def decoded(codec: Any, clips: Clips, number: int) -> torch.Tensor:
    """Gives the sound [N, 1, L] of the first `number` codebooks of clips."""
    return _in_parts(codec.decode, clips.codes[:, :number])


def _in_parts(decode: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        return torch.cat([decode(some).cpu() for some in given.split(8)])


def table_rows(table: Table, name: str, resamples: int = NUM_RESAMPLES) -> list[Row]:
    """Gives the rows of one data set. name: empty for the one that the bench is about."""
    end = f"_{name}" if name else ""
    counts = sorted({number for way, number in table if way == OURS})
    rows = []
    for number in counts:
        for way in (OURS, TWIN):
            ours, plain = table[way, number], table[PLAIN, number]
            stem = "decoder" if way == OURS else "regression"
            aim = "ratio >= 1" if way == OURS and number in MUST_WIN else None
            rows.append(_mel_row(f"{stem}_mel_k{number}{end}", ours, plain, aim))
            rows.append(_frechet_row(f"{stem}_frechet_k{number}{end}", ours, plain, aim, resamples))
    bound, note = table[BOUND, 0], "the encoder's own latents, which decoder and twin learn to give"
    rows.append(_mel_row(f"latents_mel{end}", bound, None, None, note))
    rows.append(_frechet_row(f"latents_frechet{end}", bound, None, None, 0, note))
    return rows


def _mel_row(name: str, ours: Scores, plain: Scores | None, aim: str | None, note: str = "") -> Row:
    """Gives a row whose spread is the 95 % interval by the bootstrap over clips; the note has that of the gain."""
    from micro_musicgen.metrics.bootstrap import bootstrap

    interval = bootstrap(ours.mel)
    if plain is not None:
        gain = bootstrap([theirs - own for own, theirs in zip(ours.mel, plain.mel, strict=True)])
        note = f"nearer by {gain.value:.3f}" + ("" if gain.low is None else f", 95 % {gain.low:.3f} to {gain.high:.3f}")
    spread = None if interval.low is None or interval.high is None else (interval.low, interval.high)
    return distance_row(
        name, ours.mean_mel, None if plain is None else plain.mean_mel, PLAIN_DECODER, aim=aim, spread=spread,
        n=len(ours.mel), note=note,
    )  # fmt: skip


def _frechet_row(name: str, ours: Scores, plain: Scores | None, aim: str | None, resamples: int, note: str = "") -> Row:
    """Gives a row whose note has the interval of the ratio over clips drawn again, the same for both ways: distances
    of so few clips are all too great, and by about as much.
    """
    if plain is not None and resamples and len(ours.mel) > 1:
        low, high = ratio_interval(ours, plain, resamples)
        note = f"ratio 95 % {low:.2f} to {high:.2f} over clips"
    theirs = None if plain is None else plain.frechet
    return distance_row(name, ours.frechet, theirs, PLAIN_DECODER, aim=aim, n=len(ours.mel), note=note)


PLAIN_DECODER = "plain decoder"


def distance_row(
    name: str,
    value: float,
    peer_value: float | None,
    peer: str,
    *,
    aim: str | None = None,
    spread: tuple[float, float] | None = None,
    n: int = 0,
    note: str = "",
) -> Row:
    """Gives the row of a distance: less is better."""
    return Row(
        name=name,
        value=float(f"{value:.6g}"),
        unit="distance",
        aim=aim,
        peer=None if peer_value is None else peer,
        peer_value=None if peer_value is None else float(f"{peer_value:.6g}"),
        ratio=None if not peer_value or not value else float(f"{peer_value / value:.6g}"),
        spread=None if spread is None else (float(f"{spread[0]:.6g}"), float(f"{spread[1]:.6g}")),
        n=n,
        note=note,
    )


def ratio_interval(ours: Scores, plain: Scores, resamples: int) -> tuple[float, float]:
    """Gives the 95 % interval of plain over ours in Frechet distance, by drawing clips again, pairs together."""
    import numpy as np

    rng, count = np.random.default_rng(0), len(ours.mel)
    found = []
    for _ in range(resamples):
        taken = rng.integers(count, size=count)
        found.append(
            frechet_of(plain.rows[taken], plain.wanted[taken]) / frechet_of(ours.rows[taken], ours.wanted[taken])
        )
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def print_table(title: str, table: Table) -> None:
    """Prints a line a number of codebooks: every way's mel and Frechet distance."""
    counts = sorted({number for way, number in table if way == OURS})
    bound = table[BOUND, 0]
    print(f"\n{title}: distance from the original, {len(bound.mel)} clips")
    print(f"{'':10}{'mel':>8}{'':24}{'Frechet':>10}")
    print(f"{'codebooks':10}" + 2 * f"{PLAIN:>8}{TWIN:>12}{OURS:>11}   ")
    for number in counts:
        scores = [table[way, number] for way in (PLAIN, TWIN, OURS)]
        mel = "".join(f"{each.mean_mel:{width}.3f}" for each, width in zip(scores, (8, 12, 11), strict=True))
        frechet = "".join(f"{each.frechet:{width}.2f}" for each, width in zip(scores, (8, 12, 11), strict=True))
        print(f"{number:<10}{mel}   {frechet}")
    print(f"{'latents':10}{bound.mean_mel:8.3f}{'':26}{bound.frechet:8.2f}")
