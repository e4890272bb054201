"""Anything may stand in a file: a .tiaf reader gives beats or one clear error. bench/fuzz_tiaf.py tries far more."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from test_audio_tiaf import Dribble, beats_of, header, packed, with_header  # noqa: E402

from micro_musicgen.audio.tiaf import TiafFile, TiafReader, write_tiaf  # noqa: E402
from micro_musicgen.audio.tiaf_header import TiafHeader  # noqa: E402
from micro_musicgen.audio.warp import TempoMap  # noqa: E402
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError  # noqa: E402

WHOLE = packed(header(channels=1, valid_samples=17, metadata={}))
QUICK = settings(max_examples=300, deadline=None, database=None, derandomize=True)
numbers = st.one_of(st.integers(), st.floats(), st.integers(-(2**70), 2**70))
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=8), inner, max_size=4),
        st.fixed_dictionaries({"beats": st.lists(inner, max_size=4), "bpms": st.lists(inner, max_size=4)}),
    ),
    max_leaves=10,
)


def read_all(data: bytes) -> list[np.ndarray] | None:
    """Gives the beats, or None for a clear error."""
    try:
        beats = list(TiafReader(io.BytesIO(data)))
    except UnreadableAudioError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return None
    assert all(np.isfinite(beat).all() for beat in beats)
    return beats


@QUICK
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(data: bytes, has_magic: bool) -> None:
    assert read_all(b"TIAF\1\0\0\0" + data if has_magic else data) is None


@QUICK
@given(st.data())
def test_a_whole_file_with_anything_done_to_it(data: st.DataObject) -> None:
    broken = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(broken)))
        taken = data.draw(st.integers(0, 12))
        broken[place : place + taken] = data.draw(st.binary(max_size=12))
    if not bytes(broken).startswith(WHOLE):  # what follows the last beat belongs to somebody else
        assert read_all(bytes(broken)) is None


@QUICK
@given(st.dictionaries(st.sampled_from([*header().to_plain(), "x"]), plain, min_size=1, max_size=3))
def test_any_header_with_a_right_checksum(wrong: dict) -> None:
    text = json.dumps({**header().to_plain(), **wrong}).encode("utf-8", "replace")
    read_all(with_header(text, bytes(1000)))


@QUICK
@given(plain)
def test_any_json_for_a_header(value: object) -> None:
    assert read_all(with_header(json.dumps(value).encode("utf-8", "replace"))) is None


finite = {"allow_nan": False, "allow_infinity": False}
tempos = st.floats(20, 1000)
maps = st.lists(st.tuples(st.floats(0.01, 50), tempos), max_size=5).flatmap(
    lambda steps: st.builds(
        lambda first: TempoMap(
            (0.0, *np.cumsum([step for step, _ in steps]).tolist()), (first, *[bpm for _, bpm in steps])
        ),
        tempos,
    )
)
headers = st.builds(
    TiafHeader,
    samples_per_beat=st.integers(1, 30),
    channels=st.integers(1, 4),
    dtype=st.sampled_from(["float32", "int16"]),
    valid_samples=st.integers(1, 90),
    tempo=st.one_of(tempos, maps),
    source_sample_rate=st.integers(1, 1 << 22),
    source_num_samples=st.integers(1, 1 << 62),
    peak=st.floats(0, 1e6, width=32),
    beat_offset_s=st.floats(-86_400, 86_400),
    loops=st.booleans(),
    metadata=st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.floats(**finite)), max_size=3),
)


@QUICK
@given(headers)
def test_any_header_comes_back(head: TiafHeader) -> None:
    beats = beats_of(head)
    head = TiafHeader(**{**vars(head), "peak": float(np.abs(beats).max())})
    reader = TiafReader(Dribble(packed_with(head, beats)))  # type: ignore[arg-type]
    found = np.stack(list(reader))
    assert reader.header == head
    assert np.abs(found - beats).max() <= (0 if head.dtype == "float32" else head.peak / 32767 * 0.51)


def packed_with(head: TiafHeader, beats: np.ndarray) -> bytes:
    from micro_musicgen.audio.tiaf import TiafWriter

    file = io.BytesIO()
    with TiafWriter(file, head) as writer:
        for beat in beats:
            writer.write_beat(beat)
    return file.getvalue()


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(cut=st.integers(-400, 400), place=st.integers(0, 10_000), flipped=st.integers(0, 255))
def test_files_that_are_mapped(tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, flipped: int) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "fuzzed.tiaf"
    write_tiaf(path, header(), beats_of(header()))
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flipped
    data = data[:cut] if cut < 0 else data + bytes(cut)
    path.write_bytes(data)
    if cut or flipped:
        with pytest.raises(MicroMusicGenError), TiafFile(path) as file:
            file.verify()
    else:
        assert math.isfinite(TiafFile(path)[0].sum())
