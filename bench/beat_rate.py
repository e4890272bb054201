"""Rate against quality, from one token a beat up to an EnCodec's codebooks: rows and docs/img/beat_rate.png.

    python bench/beat_rate.py --data NAME --codec beat=SIGNATURE --codec encodec=SIGNATURE [--time beats] [--json FILE]

Every codec plays the same held-out clips at each number of its codebooks. Rate is what a token store would hold,
log2(card) bits a code; a beat's bits become bits a second at the clip's own tempo. Quality is the log-mel distance in
true Hz: in beat time the rate of a clip is that of its tempo.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import IMAGES, Row, bench_parser, finish, say

if TYPE_CHECKING:
    import torch

    from micro_musicgen.contracts import Codec
    from micro_musicgen.data.manifest import Track

FRAMES_PER_BEAT = 16
CLIP_BEATS = 16
MAX_CLIPS = 32
COLOURS = ("#1f77b4", "#d95f02", "#7570b3", "#1b9e77", "#e7298a", "#7f7f7f")


@dataclass(frozen=True)
class HeldOut:
    """A clip that no codec was trained on. wav: float32 [1, L] at the codecs' nominal rate.

    bpm: its tempo. samples_per_beat: of `wav`, a fixed number in beat time, rate * 60 / bpm in clock time.
    """

    wav: torch.Tensor
    bpm: float
    samples_per_beat: float

    @property
    def heard_rate(self) -> float:
        """The sample rate in Hz that the clip has when it is played at its tempo."""
        return self.samples_per_beat * self.bpm / 60


@dataclass(frozen=True)
class RatePoint:
    """A codec at some number of codebooks; means over clips. mel: the distance of each clip, in nats."""

    codec: str
    num_codebooks: int
    bits_per_beat: float
    bits_per_second: float
    mel: tuple[float, ...]

    @property
    def mean_mel(self) -> float:
        """Gives the mean distance."""
        return sum(self.mel) / len(self.mel)


def rate_points(
    name: str, codec: Codec, clips: Sequence[HeldOut], numbers: Sequence[int] | None = None
) -> list[RatePoint]:
    """Gives a codec's points at its first N codebooks for each N in `numbers` (None for 1 to all of them).

    The codec has to be residual, as all of ours are: fewer codebooks are the first ones.
    """
    numbers = numbers or range(1, codec.num_codebooks + 1)
    codes = [codec.encode(clip.wav[None]) for clip in clips]
    points = []
    for number in numbers:
        per_sample = number * math.log2(codec.cardinality) / codec.hop_samples
        bits = [per_sample * clip.samples_per_beat for clip in clips]
        mel = tuple(_distance(codec, clip, found[:, :number]) for clip, found in zip(clips, codes, strict=True))
        a_second = [each * clip.bpm / 60 for each, clip in zip(bits, clips, strict=True)]
        points.append(RatePoint(name, number, _mean(bits), _mean(a_second), mel))
    return points


def latent_point(name: str, codec: Codec, clips: Sequence[HeldOut]) -> RatePoint:
    """Gives what a codec would reach with unlimited bits: its decoder on the encoder's own latents; 0 codebooks."""
    mel = []
    for clip in clips:
        heard = codec.decode_latents(codec.encode_latents(clip.wav[None]))
        mel.append(_mel(heard, clip, codec.sample_rate))
    return RatePoint(name, 0, math.inf, math.inf, tuple(mel))


def _distance(codec: Codec, clip: HeldOut, codes: torch.Tensor) -> float:
    return _mel(codec.decode(codes), clip, codec.sample_rate)


def _mel(heard: torch.Tensor, clip: HeldOut, nominal_rate: float) -> float:
    from micro_musicgen.audio.mel import at_rate
    from micro_musicgen.metrics.spectral import MEL, log_mel_distance

    scale = at_rate(MEL, clip.heard_rate, nominal_rate)
    return log_mel_distance(heard[..., : clip.wav.shape[-1]].cpu(), clip.wav[None], clip.heard_rate, scale=scale)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def rate_rows(points: Sequence[RatePoint]) -> list[Row]:
    """Gives a row for each point: its distance, with its rate in the note; spread: 95 % of the mean, over clips."""
    from micro_musicgen.metrics.bootstrap import bootstrap

    rows = []
    for point in points:
        found = bootstrap(point.mel)
        spread = None if found.low is None or found.high is None else (round(found.low, 4), round(found.high, 4))
        rate = f"{point.bits_per_beat:.4g} bit a beat, {point.bits_per_second:.4g} bit/s"
        rows.append(
            Row(
                name=f"beat_rate_{point.codec.replace(' ', '_')}_{point.num_codebooks or 'latents'}",
                value=round(point.mean_mel, 4),
                unit="nat",
                spread=spread,
                n=len(point.mel),
                note=rate if point.num_codebooks else "the encoder's latents, not quantised",
            )
        )
    return rows


def rate_table(points: Sequence[RatePoint]) -> str:
    """Gives the points as a Markdown table for the documents, fewest bits first."""
    lines = ["| codec | codebooks | bit a beat | bit/s | log-mel distance |", "|---|--:|--:|--:|--:|"]
    for point in sorted(points, key=lambda point: (point.bits_per_second, point.mean_mel)):
        if point.num_codebooks:
            rate = f"{point.bits_per_beat:.0f} | {point.bits_per_second:.0f}"
            lines.append(f"| {point.codec} | {point.num_codebooks} | {rate} | {point.mean_mel:.3f} |")
        else:
            lines.append(f"| {point.codec} | latents | | | {point.mean_mel:.3f} |")
    return "\n".join(lines)


def draw_rate(points: Sequence[RatePoint], path: Path | None = None, *, title: str = "") -> Path:
    """Gives the plot: distance over bits a second; shaded: 95 % over clips; dashed: the codec's own latents."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from micro_musicgen.metrics.bootstrap import bootstrap

    figure, axes = pyplot.subplots(figsize=(6.5, 4.2), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    for index, name in enumerate(dict.fromkeys(point.codec for point in points)):
        colour = COLOURS[index % len(COLOURS)]
        mine = sorted((p for p in points if p.codec == name and p.num_codebooks), key=lambda p: p.num_codebooks)
        rates = [point.bits_per_second for point in mine]
        axes.plot(rates, [point.mean_mel for point in mine], "o-", color=colour, label=name, markersize=4)
        found = [bootstrap(point.mel) for point in mine]
        if all(each.low is not None for each in found):
            axes.fill_between(rates, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.12, lw=0)
        for point in (p for p in points if p.codec == name and not p.num_codebooks):
            axes.axhline(point.mean_mel, color=colour, linestyle="--", linewidth=0.9)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("bit/s at each clip's tempo (dashed: latents, not quantised)")
    axes.set_ylabel("log-mel distance, nat")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    path = path or IMAGES / "beat_rate.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def beat_clips(
    tracks: Sequence[Track], *, frames_per_beat: int = FRAMES_PER_BEAT, beats: int = CLIP_BEATS, most: int = MAX_CLIPS
) -> list[HeldOut]:
    """Gives clips of `beats` beats in beat time, of tracks whose tempo is known; the first ones of every track."""
    import torch

    from micro_musicgen.data.beat_grid import BeatGrid
    from micro_musicgen.data.beat_view import BeatView

    steps = BeatGrid(frames_per_beat=frames_per_beat).samples()
    length = beats * steps.per_beat
    found = []
    for track in tracks:
        assert track.tempo is not None and track.tempo.bpm is not None, track
        wav = torch.from_numpy(BeatView.of(track, steps, length).whole())[None]
        found += [HeldOut(clip, track.tempo.bpm, float(steps.per_beat)) for clip in _cut(wav, length)]
    return _spread(found, most)


def clock_clips(
    tracks: Sequence[Track], sample_rate: int, *, beats: int = CLIP_BEATS, most: int = MAX_CLIPS
) -> list[HeldOut]:
    """Gives clips of about `beats` beats in clock time, of tracks whose tempo is known."""
    import torch

    from micro_musicgen.audio.io import load_mono

    found = []
    for track in tracks:
        assert track.tempo is not None and track.tempo.bpm is not None, track
        per_beat = sample_rate * 60 / track.tempo.bpm
        wav = torch.from_numpy(load_mono(track.path, sample_rate))[None]
        found += [HeldOut(clip, track.tempo.bpm, per_beat) for clip in _cut(wav, round(beats * per_beat))]
    return _spread(found, most)


def _cut(wav: torch.Tensor, length: int) -> Iterator[torch.Tensor]:
    """Yields whole clips, or a shorter track as it is."""
    for start in range(0, max(1, wav.shape[-1] // length) * length, length):
        yield wav[:, start : start + length]


def _spread(clips: Sequence[HeldOut], most: int) -> list[HeldOut]:
    step = max(1, math.ceil(len(clips) / most))
    return list(clips[::step])


def compare(codecs: Mapping[str, Any], clips: Sequence[HeldOut]) -> list[RatePoint]:
    """Gives the points of codecs by name, each with its latents' behind them."""
    points: list[RatePoint] = []
    for name, codec in codecs.items():
        say(f"{name}: {codec.num_codebooks} codebooks of {codec.cardinality}, {len(clips)} clips")
        points += [*rate_points(name, codec, clips), latent_point(name, codec, clips)]
    return points


def main(argv: Sequence[str] | None = None) -> int:
    """Measures codecs on the held-out split of a data set; gives the exit code."""
    parser = bench_parser(__doc__)
    parser.add_argument("--data", required=True, help="name of a prepared data set")
    parser.add_argument("--codec", action="append", default=[], metavar="LABEL=REFERENCE", help="may be repeated")
    parser.add_argument("--time", choices=("beats", "clock"), default="beats", help="which the codecs were trained in")
    parser.add_argument("--frames-per-beat", type=int, default=FRAMES_PER_BEAT)
    parser.add_argument("--plot", type=Path, help="default: docs/img/beat_rate.png")
    given = parser.parse_args(argv)
    from micro_musicgen import paths
    from micro_musicgen.codec.resolve import load_codec
    from micro_musicgen.data.beat_tempos import Tempos, with_tempos
    from micro_musicgen.data.manifest import read_manifest

    tracks = Tempos.of(with_tempos(read_manifest(paths.manifests_dir(given.data) / "valid"))).tracks
    codecs = {}
    for text in given.codec:
        label, _, reference = text.partition("=")
        codecs[label] = load_codec(reference, given.device)
    if not codecs:
        parser.error("no codec given; add --codec LABEL=REFERENCE")
    most = 6 if given.quick else MAX_CLIPS
    rate = next(iter(codecs.values())).sample_rate
    if given.time == "beats":
        clips = beat_clips(tracks, frames_per_beat=given.frames_per_beat, most=most)
    else:
        clips = clock_clips(tracks, rate, most=most)
    points = compare(codecs, clips)
    say(f"drawn: {draw_rate(points, given.plot, title=f'{given.data}: {len(clips)} held-out clips')}")
    print(rate_table(points))
    return finish(rate_rows(points), given)


if __name__ == "__main__":
    sys.exit(main())
