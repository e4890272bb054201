import gzip
import json

import pytest

from micro_musicgen.data.manifest import Track, dataset_hash, read_manifest, write_manifest
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.upstream import audiocraft_module

TRACKS = [
    Track("/music/Schöne Klänge/a: b.wav", 1.5, 44_100, 0.9, audio_hash="aa"),
    Track("/music/b.flac", 0.25, 48_000, 0.5, weight=2.0, audio_hash="bb", info={"genre": "dub", "bpm": 140.0}),
]


def test_round_trip_and_equal_bytes(tmp_path):
    path = write_manifest(tmp_path / "train", TRACKS)
    assert path.name == "data.jsonl.gz"
    assert read_manifest(tmp_path / "train") == TRACKS
    before = path.read_bytes()
    assert write_manifest(tmp_path / "train", TRACKS).read_bytes() == before
    assert before[4:8] == bytes(4)  # no time in the gzip header


def test_audiocraft_reads_it(tmp_path):
    try:
        audio_dataset = audiocraft_module("data.audio_dataset")
    except (OSError, ImportError, MicroMusicGenError) as error:
        pytest.skip(f"audiocraft does not import here: {error}")
    write_manifest(tmp_path, TRACKS)
    loaded = audio_dataset.load_audio_meta(tmp_path / "data.jsonl.gz")
    facts = [(m.path, m.duration, m.sample_rate, m.amplitude, m.weight, m.info_path) for m in loaded]
    assert facts == [(t.path, t.duration, t.sample_rate, t.amplitude, t.weight, None) for t in TRACKS]
    dataset = audio_dataset.AudioDataset.from_meta(tmp_path)
    assert dataset.total_duration == 1.75


def test_a_plain_manifest_of_audiocraft_is_read(tmp_path):
    line = {"path": "/a.wav", "duration": 2.0, "sample_rate": 16000, "amplitude": None, "weight": None}
    (tmp_path / "data.jsonl").write_text(json.dumps({**line, "info_path": None, "other": 1}) + "\n\n")
    assert read_manifest(tmp_path) == [Track("/a.wav", 2.0, 16_000)]


def test_dataset_hash_names_sounds_and_not_places():
    moved = [Track("/elsewhere/x.wav", t.duration, t.sample_rate, audio_hash=t.audio_hash) for t in reversed(TRACKS)]
    assert dataset_hash(moved) == dataset_hash(TRACKS)
    assert dataset_hash(TRACKS[:1]) != dataset_hash(TRACKS)


def test_errors(tmp_path):
    with pytest.raises(MissingFileError, match="holds no data.jsonl.gz; run micro-musicgen prepare"):
        read_manifest(tmp_path)
    path = write_manifest(tmp_path, TRACKS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MicroMusicGenError, match="data.jsonl.gz is damaged"):
        read_manifest(tmp_path)
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(MicroMusicGenError, match="lists no files"):
        read_manifest(tmp_path)
    for line, message in (
        (b"[1]", "line 1 of .* is no track"),
        (b'{"path": "a"}', "line 1 of .* is no track"),
        (b'{"path": "a", "duration": 0, "sample_rate": 1}', "line 1 of .* has duration 0"),
    ):
        path.write_bytes(gzip.compress(line))
        with pytest.raises(MicroMusicGenError, match=message):
            read_manifest(tmp_path)
