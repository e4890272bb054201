"""Feeds the .tiaf readers with inputs that coverage guides; anything but beats or one clear error ends it.

    python bench/fuzz_tiaf.py [SECONDS]      (needs atheris; 180 seconds when not given)

A third of the inputs are taken as they are. A third are given right checksums, which would else keep almost all of them
from the code behind. A third say which fields of a whole header hold what instead.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["micro_musicgen.audio", "json"]):
    from micro_musicgen.audio import tiaf, tiaf_header
    from micro_musicgen.audio.warp import TempoMap
from micro_musicgen.errors import UnreadableAudioError

PREFIX_BYTES = tiaf_header.PREFIX.size
SEEDS = (
    {"tempo": 120.0, "dtype": "int16", "channels": 1},
    {"tempo": TempoMap((0.0, 1.5), (90.0, 120.0)), "dtype": "float32", "channels": 2, "loops": True},
)
outcomes: Counter[str] = Counter()
scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / "fuzzed.tiaf"


def seed_file(number: int) -> bytes:
    """Gives a small file that is whole."""
    import numpy as np

    head = tiaf_header.TiafHeader(
        samples_per_beat=4, valid_samples=7, peak=1.0, source_sample_rate=8000, source_num_samples=99,
        metadata={"name": "seed"}, **SEEDS[number],
    )  # fmt: skip
    file = io.BytesIO()
    with tiaf.TiafWriter(file, head) as writer:
        for beat in np.linspace(-1, 1, 8 * head.channels, dtype=np.float32).reshape(2, 4, head.channels):
            writer.write_beat(beat)
    return file.getvalue()


def with_right_checksums(data: bytes) -> bytes:
    """Gives the input with magic, length of the header and all checksums put right."""
    text, _, rest = data.partition(b"\0")
    start = struct.pack("<4sHHI", b"TIAF", 1, 0, len(text))
    head = start + struct.pack("<I", zlib.crc32(text, zlib.crc32(start))) + text
    try:
        header, crc = tiaf_header.parse_head(head[:PREFIX_BYTES], text, "seed")
    except UnreadableAudioError:
        return head + rest
    size, blocks = header.block_bytes - 4, []
    for index in range(min(header.num_beats, 8)):
        stored = rest[index * size : (index + 1) * size].ljust(size, b"\0") if size < 4096 else rest
        blocks.append(stored + zlib.crc32(stored, (crc + index) & 0xFFFFFFFF).to_bytes(4, "little"))
    return head + b"".join(blocks)


def with_odd_fields(data: bytes) -> bytes:
    """Gives a whole file some fields of which hold numbers, texts and lists that the input names."""
    told = atheris.FuzzedDataProvider(data)
    whole = seed_file(told.ConsumeIntInRange(0, len(SEEDS) - 1))
    text_bytes = struct.unpack("<I", whole[8:12])[0]
    plain = json.loads(whole[PREFIX_BYTES:][:text_bytes])
    for _ in range(told.ConsumeIntInRange(1, 3)):
        plain[told.PickValueInList(list(plain))] = odd_value(told)
    text = json.dumps(plain, ensure_ascii=told.ConsumeBool()).encode("utf-8", "replace").replace(b"\0", b"")
    return with_right_checksums(text + b"\0" + whole[PREFIX_BYTES + text_bytes :])


def odd_value(told: Any, depth: int = 0) -> Any:
    """Gives some JSON."""
    kind = told.ConsumeIntInRange(0, 9 if depth < 3 else 6)
    if kind == 7:
        return [odd_value(told, depth + 1) for _ in range(told.ConsumeIntInRange(0, 4))]
    if kind == 8:
        steps = [told.ConsumeIntInRange(0, 9) / 2 for _ in range(told.ConsumeIntInRange(0, 4))]
        return {"beats": [0, *itertools.accumulate(steps)], "bpms": [odd_value(told, 3) for _ in range(len(steps) + 1)]}
    if kind == 9:
        return {told.ConsumeUnicode(6): odd_value(told, depth + 1) for _ in range(told.ConsumeIntInRange(0, 3))}
    simple = (told.ConsumeInt(9), told.ConsumeFloat(), told.ConsumeIntInRange(-2, 70), told.ConsumeBool(), None)
    return (*simple, told.ConsumeUnicode(8), told.ConsumeIntInRange(20, 300) + 0.5)[kind]


def read_stream(data: bytes) -> str:
    """Gives what came of reading the input as a stream."""
    try:
        for beat in tiaf.TiafReader(io.BytesIO(data)):  # type: ignore[attr-defined]
            assert beat.dtype == "float32"
    except UnreadableAudioError:
        return "refused"
    return "read"


def read_map(data: bytes) -> str:
    """Gives what came of reading the input as a file."""
    scratch.write_bytes(data)
    try:
        with tiaf.TiafFile(scratch) as file:
            file.verify()
            assert file.read().beats.shape == file.beats.shape
    except UnreadableAudioError:
        return "refused"
    return "read"


def one_input(data: bytes) -> None:
    """Reads one input in each way."""
    way = data[0] % 3 if data else 0
    made = (bytes, with_right_checksums, with_odd_fields)[way](data[1:])
    found = read_stream(made), read_map(made)
    assert found[0] == found[1] or found == ("read", "refused"), found  # a file may not be longer than it says
    outcomes[f"{('raw', 'mended', 'odd')[way]} {found[0]}"] += 1


def main() -> int:
    """Fuzzes for as long as it was told; gives 0 when nothing was found."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 180
    corpus = scratch.parent / "corpus"
    corpus.mkdir()
    for number in range(len(SEEDS)):
        whole = seed_file(number)
        (corpus / f"raw{number}").write_bytes(b"\0" + whole)
        text_bytes = struct.unpack("<I", whole[8:12])[0]
        text, rest = whole[PREFIX_BYTES:][:text_bytes], whole[PREFIX_BYTES + text_bytes :]
        (corpus / f"odd{number}").write_bytes(b"\2" + bytes(range(64 * number, 64 * number + 64)))
        (corpus / f"mended{number}").write_bytes(b"\1" + text + b"\0" + rest)
    began, child = time.monotonic(), os.fork()
    if not child:
        fuzz(seconds, corpus)
    _, status = os.waitpid(child, 0)
    counted = (
        (scratch.parent / "outcomes").read_text() if (scratch.parent / "outcomes").exists() else "no count: it broke"
    )
    print(f"{counted} in {time.monotonic() - began:.0f} s; {'nothing found' if not status else 'FOUND SOMETHING'}")
    shutil.rmtree(scratch.parent)
    return 1 if status else 0


def fuzz(seconds: int, corpus: Path) -> None:
    """Runs in a process of its own: libFuzzer ends it."""
    last = [time.monotonic()]

    def counted(data: bytes) -> None:
        one_input(data)
        if time.monotonic() - last[0] > 1:
            last[0] = time.monotonic()
            (scratch.parent / "outcomes").write_text(f"{sum(outcomes.values())} inputs: {dict(outcomes)}")

    limits = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-rss_limit_mb=1024",
        "-timeout=10",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], counted)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
