"""bench/beat_rate: rates by hand, fewer codebooks, the plot and the table."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[1] / "codec"))

import beat_rate  # noqa: E402
from beat_rate import HeldOut, RatePoint, compare, draw_rate, rate_points, rate_rows, rate_table  # noqa: E402


class Steps:
    """A codec of two codebooks: sixteen steps of level, then sixteen finer ones; a frame is 512 samples."""

    num_codebooks, cardinality, hop_samples, sample_rate = 2, 16, 512, 32_000

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        level = wav.unfold(-1, 512, 512).abs().amax(dim=-1)[:, 0].clamp(0, 0.999) * 256
        return torch.stack([level // 16, level % 16], dim=1).long()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        level = codes[:, 0] * 16 + (codes[:, 1] if codes.shape[1] > 1 else 8)
        return (level / 256).repeat_interleave(512, dim=-1)[:, None]

    def encode_latents(self, wav: torch.Tensor) -> torch.Tensor:
        return wav.unfold(-1, 512, 512).abs().amax(dim=-1)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.repeat_interleave(512, dim=-1)


def clips() -> list[HeldOut]:
    levels = torch.linspace(0.1, 0.9, 8).repeat_interleave(512)[None]
    return [HeldOut(levels, 120.0, 16_000.0), HeldOut(levels.flip(-1), 60.0, 8_000.0)]


def test_rates_are_those_of_a_hand_calculation_and_more_codebooks_come_nearer() -> None:
    one, two = rate_points("steps", Steps(), clips())
    assert one.bits_per_beat == pytest.approx((4 * 16_000 / 512 + 4 * 8_000 / 512) / 2)
    assert one.bits_per_second == pytest.approx((4 * 16_000 / 512 * 2 + 4 * 8_000 / 512) / 2)
    assert two.bits_per_beat == 2 * one.bits_per_beat
    assert two.mean_mel < one.mean_mel
    assert clips()[0].heard_rate == 32_000


def test_rows_table_and_plot_say_the_same(tmp_path: Path) -> None:
    points = compare({"steps": Steps()}, clips())
    assert [point.num_codebooks for point in points] == [1, 2, 0]
    assert points[-1].mean_mel == pytest.approx(0, abs=1e-6) and math.isinf(points[-1].bits_per_beat)
    rows = rate_rows(points)
    assert [row.name for row in rows] == ["beat_rate_steps_1", "beat_rate_steps_2", "beat_rate_steps_latents"]
    assert rows[0].value == round(points[0].mean_mel, 4) and "94 bit a beat" in rows[0].note.replace("93.75", "94")
    assert "| steps | 2 | 188 | 312 |" in rate_table(points)
    assert draw_rate(points, tmp_path / "rate.png", title="steps").stat().st_size > 1000


def test_clips_are_cut_whole_and_spread() -> None:
    wav = torch.zeros(1, 1000)
    assert [clip.shape[-1] for clip in beat_rate._cut(wav, 300)] == [300, 300, 300]
    assert [clip.shape[-1] for clip in beat_rate._cut(wav, 3000)] == [1000]
    many = [HeldOut(wav, 120.0, float(index)) for index in range(10)]
    assert [clip.samples_per_beat for clip in beat_rate._spread(many, 4)] == [0, 3, 6, 9]


def test_a_beat_codec_takes_the_place_of_any_other() -> None:
    from test_codec_beat_vqvae import BEAT, codec, sounds

    found = codec()
    clip = HeldOut(sounds(1, 60)[0], 3000.0, float(BEAT))  # heard at the codec's 3200 Hz
    points = rate_points("beat", found, [clip])
    assert [point.bits_per_beat for point in points] == [4, 8]
    assert isinstance(points[0], RatePoint) and math.isfinite(points[0].mean_mel)


def test_clips_come_in_either_time(tmp_path: Path) -> None:
    import numpy as np

    from micro_musicgen.audio.io import write_wav
    from micro_musicgen.data.manifest import Track, TrackTempo

    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 4 * 16_000)).astype(np.float32)
    write_wav(tmp_path / "loop.wav", noise, 16_000)
    track = Track(str(tmp_path / "loop.wav"), 4.0, 16_000, tempo=TrackTempo(120.0, "given", 8.0, True))
    in_beats = beat_rate.beat_clips([track], beats=4)
    assert [clip.wav.shape for clip in in_beats] == [(1, 40_960)] * 2
    assert in_beats[0].heard_rate == 20_480
    in_clock = beat_rate.clock_clips([track], 16_000, beats=4)
    assert [clip.wav.shape for clip in in_clock] == [(1, 32_000)] * 2 and in_clock[0].heard_rate == 16_000
