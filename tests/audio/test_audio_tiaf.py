"""The .tiaf container: round trips, a frozen file, streams that dribble, and everything that can be wrong with one."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from micro_musicgen.audio import tiaf
from micro_musicgen.audio.tiaf import TiafFile, TiafReader, TiafWriter, decode_tiaf, encode_tiaf, write_tiaf
from micro_musicgen.audio.tiaf_header import PREFIX, TiafHeader
from micro_musicgen.audio.warp import TempoMap
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

GOLDEN = Path(__file__).parent / "golden.tiaf"


def header(**more: object) -> TiafHeader:
    known = dict(samples_per_beat=8, channels=2, dtype="int16", valid_samples=21, tempo=172.5, peak=0.75)
    known |= dict(source_sample_rate=100, source_num_samples=91, metadata={"name": "töne"})
    return TiafHeader(**{**known, **more})  # type: ignore[arg-type]


def beats_of(head: TiafHeader) -> np.ndarray:
    """Gives [N, samples_per_beat, C] between the peaks, zero from the last valid sample on."""
    size = head.num_beats * head.samples_per_beat * head.channels
    wave = head.peak * np.cos(np.arange(size) * 0.7)
    beats = wave.astype(np.float32).reshape(-1, head.channels)
    beats[head.valid_samples :] = 0
    return beats.reshape(head.num_beats, head.samples_per_beat, head.channels)


def packed(head: TiafHeader) -> bytes:
    file = io.BytesIO()
    with TiafWriter(file, head) as writer:
        for beat in beats_of(head):
            writer.write_beat(beat)
    return file.getvalue()


def with_header(plain: object, rest: bytes = b"") -> bytes:
    """Gives a file with any header whose checksum is right."""
    text = plain if isinstance(plain, bytes) else json.dumps(plain).encode()
    start = struct.pack("<4sHHI", b"TIAF", 1, 0, len(text))
    return start + struct.pack("<I", zlib.crc32(text, zlib.crc32(start))) + text + rest


class Dribble(io.RawIOBase):
    """A stream that can't seek and gives three bytes at a time at most."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        piece, self._left = self._left[: min(3, size)], self._left[min(3, size) :]
        return piece


class Trickle(io.RawIOBase):
    """A file that takes seven bytes at a time."""

    def __init__(self) -> None:
        self.got = b""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:  # type: ignore[override]
        self.got += bytes(data)[:7]  # type: ignore[call-overload]
        return min(7, len(data))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_what_is_written_is_read(tmp_path: Path, dtype: str, channels: int) -> None:
    head = header(dtype=dtype, channels=channels, tempo=TempoMap((0.0, 1.5), (90.0, 120.25)), loops=True)
    write_tiaf(tmp_path / "a.tiaf", head, beats_of(head))
    step = 0.0 if dtype == "float32" else 0.5 * head.peak / 32767 * 1.001
    with TiafFile(tmp_path / "a.tiaf") as file:
        assert file.header == head and len(file) == 3
        assert file.beats.shape == (3, 8, channels)
        assert np.abs(file.beats * file.scale - beats_of(head)).max() <= step
        assert np.abs(np.stack(list(file)) - beats_of(head)).max() <= step
        assert np.array_equal(file[-1], file[2]) and file[0].dtype == np.float32
        with pytest.raises(IndexError):
            file[3]
        found = file.read()
        assert found.valid_samples == 21 and np.array_equal(found.beats, np.stack(list(file)))
        file.verify()
    with open(tmp_path / "a.tiaf", "rb") as stream:
        assert np.array_equal(np.stack(list(TiafReader(stream))), np.stack(list(found.beats)))


def test_streams_that_dribble_and_files_that_trickle() -> None:
    data = packed(header())
    reader = TiafReader(Dribble(data + b"what follows"))  # type: ignore[arg-type]
    assert np.abs(np.stack(list(reader)) - beats_of(header())).max() < 2e-5
    slow = Trickle()
    with TiafWriter(slow, header()) as writer:  # type: ignore[arg-type]
        for beat in beats_of(header()):
            writer.write_beat(beat)
    assert slow.got == data


def test_golden_file_is_read_and_written_as_ever(tmp_path: Path) -> None:
    head = header(tempo=TempoMap((0.0, 1.5), (172.5, 90.25)), loops=True, beat_offset_s=0.125)
    assert GOLDEN.read_bytes() == packed(head)
    with TiafFile(GOLDEN) as file:
        assert file.header == head and file.beats[0, 0, 0] == 32767 and np.abs(file.beats.astype(int)).max() <= 32767
        assert file.beats.ctypes.data % 4 == 0


def test_int16_rounds_and_never_reaches_the_value_without_a_counterpart() -> None:
    head = header(channels=1, valid_samples=8, peak=1.0)
    values = np.array([-1, 1, 0.4 / 32767, 0.6 / 32767, -0.6 / 32767, 0.5, 1e-9, 0], np.float32)
    file = io.BytesIO()
    with TiafWriter(file, head) as writer:
        writer.write_beat(values[:, None])
    stored = np.frombuffer(file.getvalue()[-20:-4], "<i2")
    assert stored.tolist() == [-32767, 32767, 0, 1, -1, 16384, 0, 0]
    silent = header(channels=1, valid_samples=8, peak=0.0)
    file = io.BytesIO()
    with TiafWriter(file, silent) as writer:
        writer.write_beat(np.zeros((8, 1)))
    file.seek(0)
    assert not next(iter(TiafReader(file))).any()


def test_a_foreign_minus_32768_is_read_without_overflow(tmp_path: Path) -> None:
    head = header(channels=1, valid_samples=8, peak=1.0)
    start = head.head_bytes()
    stored = np.full(8, -32768, "<i2").tobytes()
    crc = zlib.crc32(stored, PREFIX.unpack(start[: PREFIX.size])[-1])
    (tmp_path / "a.tiaf").write_bytes(start + stored + struct.pack("<I", crc))
    with TiafFile(tmp_path / "a.tiaf") as file:
        assert file[0][0, 0] == pytest.approx(-32768 / 32767)


def test_every_cut_is_a_clear_error(tmp_path: Path) -> None:
    data, path = packed(header()), tmp_path / "cut.tiaf"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(UnreadableAudioError, match=r"cut.tiaf (is (cut off|empty)|is no .tiaf)"):
            TiafFile(path)
        with pytest.raises(UnreadableAudioError, match="cut off"):
            list(TiafReader(io.BytesIO(data[:size])))
    path.write_bytes(data + b"\0")
    with pytest.raises(UnreadableAudioError, match=f"states {len(data)} bytes and has {len(data) + 1}"):
        TiafFile(path)


def test_every_flipped_bit_is_a_clear_error(tmp_path: Path) -> None:
    data = packed(header(channels=1, valid_samples=9, metadata={}))
    for place in range(len(data)):
        for bit in range(8):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            with pytest.raises(UnreadableAudioError, match="damaged|cut off|no .tiaf|version"):
                list(TiafReader(io.BytesIO(bytes(broken))))


def test_beats_that_changed_places_or_files_are_damaged() -> None:
    data, head = packed(header()), header()
    start = len(head.head_bytes())
    blocks = [data[start + n * head.block_bytes :][: head.block_bytes] for n in range(3)]
    other = header(metadata={"name": "another"}).head_bytes()
    for broken in (data[:start] + blocks[1] + blocks[0] + blocks[2], other + b"".join(blocks)):
        with pytest.raises(UnreadableAudioError, match="checksum of beat 0 is wrong"):
            list(TiafReader(io.BytesIO(broken)))


NONSENSE = [
    ({"samples_per_beat": 1 << 60}, "samples_per_beat"),
    ({"samples_per_beat": 0}, "samples_per_beat"),
    ({"samples_per_beat": 8.0}, "samples_per_beat"),
    ({"channels": -1}, "channels"),
    ({"channels": True}, "channels"),
    ({"valid_samples": -21}, "valid_samples"),
    ({"valid_samples": 1 << 63}, "valid_samples"),
    ({"num_beats": 1 << 60}, "beats are stated"),
    ({"num_beats": -3}, "beats are stated"),
    ({"dtype": "float64"}, "float64"),
    ({"dtype": ["int16"]}, "dtype"),
    ({"tempo": float("nan")}, "NaN"),
    ({"tempo": float("inf")}, "Infinity"),
    ({"tempo": 0}, "BPM is no tempo"),
    ({"tempo": "fast"}, "tempo"),
    ({"tempo": {"beats": [0, 1], "bpms": [120]}}, "tempo map"),
    ({"tempo": {"beats": [1, 0], "bpms": [120, 120]}}, "must rise"),
    ({"peak": -1}, "peak"),
    ({"peak": 1e300}, "peak"),
    ({"source_sample_rate": 0}, "source_sample_rate"),
    ({"beat_offset_s": None}, "beat_offset_s"),
    ({"loops": 1}, "loops"),
    ({"metadata": []}, "metadata"),
    ({"more": 1}, "more"),
]


@pytest.mark.parametrize(("wrong", "message"), NONSENSE, ids=lambda value: str(value)[:40])
def test_a_header_that_lies_is_a_clear_error(tmp_path: Path, wrong: dict, message: str) -> None:
    data = with_header({**header().to_plain(), **wrong}, bytes(500))
    with pytest.raises(UnreadableAudioError, match=message):
        TiafReader(io.BytesIO(data))


@pytest.mark.parametrize(
    "text",
    [b"[" * 500_000, b'{"a":' * 100_000, b"{}", b"[]", b"7", b"\xff\xfe", b'"', b'{"tempo":1e999}', b"9" * 5000],
    ids=lambda text: repr(text[:12]),
)
def test_a_header_that_is_none_is_a_clear_error(text: bytes) -> None:
    with pytest.raises(UnreadableAudioError, match="cannot be used|is none"):
        TiafReader(io.BytesIO(with_header(text)))


def test_sizes_are_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    import tracemalloc

    huge = header(samples_per_beat=1 << 22, channels=64, dtype="float32", valid_samples=1 << 62)
    data = huge.head_bytes() + bytes(1000)
    (tmp_path / "huge.tiaf").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(UnreadableAudioError, match="cut off: it states 1"):
        TiafFile(tmp_path / "huge.tiaf")
    with pytest.raises(UnreadableAudioError, match="cut off in its beat 0 of 1099511627776"):
        list(TiafReader(io.BytesIO(data)))
    length = struct.pack("<4sHHII", b"TIAF", 1, 0, 0xFFFFFFFF, 0)
    with pytest.raises(UnreadableAudioError, match="a header of 4294967295 bytes"):
        TiafReader(io.BytesIO(length))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_samples_that_are_none_are_refused_both_ways() -> None:
    head = header(dtype="float32", channels=1, valid_samples=8)
    broken = np.zeros((8, 1), np.float32)
    broken[3] = np.nan
    for bad in (broken, np.full((8, 1), 0.76, np.float32)):
        with pytest.raises(MicroMusicGenError, match="beat 0 has a peak of"):
            TiafWriter(io.BytesIO(), head).write_beat(bad)
    stored, start = broken.astype("<f4").tobytes(), head.head_bytes()
    crc = zlib.crc32(stored, PREFIX.unpack(start[: PREFIX.size])[-1])
    with pytest.raises(UnreadableAudioError, match="NaN"):
        list(TiafReader(io.BytesIO(start + stored + struct.pack("<I", crc))))


def test_the_writer_counts(tmp_path: Path) -> None:
    with pytest.raises(MicroMusicGenError, match="2 of 3 beats were written"):
        write_tiaf(tmp_path / "a.tiaf", header(), beats_of(header())[:2])
    with pytest.raises(MicroMusicGenError, match="all 3 beats"):
        write_tiaf(tmp_path / "a.tiaf", header(), [*beats_of(header())] * 2)
    assert not list(tmp_path.iterdir())
    for bad in ({"x": float("nan")}, {"x": {1, 2}}, {"x": "y" * (1 << 20)}):
        with pytest.raises(MicroMusicGenError, match="metadata"):
            header(metadata=bad).head_bytes()


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    later = packed(header())[:4] + b"\2\0" + packed(header())[6:]
    for data, message in ((b"", "is empty"), (b"RIFF" + bytes(100), "is no .tiaf file"), (later, "is .tiaf version 2")):
        (tmp_path / "a.tiaf").write_bytes(data)
        with pytest.raises(UnreadableAudioError, match=message):
            TiafFile(tmp_path / "a.tiaf")
    for path, message in ((tmp_path / "none.tiaf", "does not exist"), (tmp_path, "cannot open")):
        with pytest.raises(UnreadableAudioError, match=message):
            TiafFile(path)


@pytest.mark.parametrize(("dtype", "at_least_db"), [("float32", 60), ("int16", 60)])
@pytest.mark.parametrize("loops", [True, False])
def test_sound_through_a_file(tmp_path: Path, dtype: str, at_least_db: float, loops: bool) -> None:
    rate, bpm = 22_050, 150.0
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal((2, round(4 * 0.4 * rate))))
    spectrum[:, int(0.9 * spectrum.shape[1]) :] = 0
    wav = np.fft.irfft(spectrum, round(4 * 0.4 * rate))
    wav = (0.5 * wav / np.abs(wav).max()).astype(np.float32)
    wav = wav if loops else wav[:, : round(3.3 * 0.4 * rate)]
    path = tmp_path / "a.tiaf"
    head = encode_tiaf(path, wav, rate, bpm, samples_per_beat=20_480, loops=loops, dtype=dtype, metadata={"x": 1})
    assert head.num_beats == 4 and head.peak >= 0.45 and head.mean_bpm == pytest.approx(150, rel=1e-4)
    again, again_rate = decode_tiaf(path)
    assert again.shape == wav.shape and again_rate == rate
    error = np.square(again.astype(float) - wav).sum()
    assert 10 * np.log10(np.square(wav.astype(float)).sum() / error) > at_least_db
    faster, _ = decode_tiaf(path, bpm=300, sample_rate=16_000)
    assert faster.shape[1] == pytest.approx(head.valid_samples / 20_480 * 0.2 * 16_000, abs=0.5)
    with TiafFile(path) as file:
        assert file.header == head and file.read().valid_samples == head.valid_samples


def test_a_long_sound_is_never_held_in_beat_time(tmp_path: Path) -> None:
    import tracemalloc

    wav = np.sin(np.arange(8000 * 60) / 5, dtype=np.float32)[None]
    tracemalloc.start()
    head = encode_tiaf(tmp_path / "a.tiaf", wav, 8000, 200.0)
    assert head.num_beats == 200 and tracemalloc.get_traced_memory()[1] < 16 << 20  # in beat time: 33 MB
    tracemalloc.stop()
    assert tiaf.SUFFIX == ".tiaf"
