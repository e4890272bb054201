"""Prompts, labels, sounds and clips: what goes into an evaluation."""

import json

import numpy as np
import pytest
import torch

from micro_musicgen import paths
from micro_musicgen.audio.io import write_wav
from micro_musicgen.data.manifest import Track, write_manifest
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.evaluation.prompts import Prompt, asked_labels, read_prompts
from micro_musicgen.evaluation.request import EvaluationRequest
from micro_musicgen.evaluation.sounds import SoundSet, cut_clips, find_sounds, track_labels

RATE = 16000


def _ramp(path, duration_s):
    write_wav(path, np.linspace(-0.5, 0.5, round(duration_s * RATE), dtype=np.float32), RATE)
    return Track(str(path), duration_s, RATE)


def test_prompts_are_lines_or_objects(tmp_path):
    file = tmp_path / "prompts.jsonl"
    known = json.dumps({"description": "a slow pad", "mood": "calm", "genre": "ambient"})
    file.write_text(f"a fast techno beat\n\n{known}\n", encoding="utf-8")
    assert read_prompts(file, "mood") == [Prompt("a fast techno beat"), Prompt("a slow pad", "calm")]
    request = EvaluationRequest(release="x", texts=("one",), prompts_file=file, label="genre")
    assert [prompt.label for prompt in request.prompts()] == [None, None, "ambient"]
    for text, said in (("", "no prompt"), ("{", "no JSON"), ('{"genre": "x"}', "says no text")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(MicroMusicGenError, match=said):
            read_prompts(file, "genre")
    with pytest.raises(MissingFileError, match="does not exist"):
        read_prompts(tmp_path / "none", "genre")


def test_a_label_is_stated_or_the_only_one_named():
    prompts = [Prompt("Dub techno"), Prompt("some TECHNO!"), Prompt("technology"), Prompt("a beat", "dub")]
    assert asked_labels(prompts, ["dub", "techno"]) == [None, "techno", None, "dub"]


def test_clips_lie_one_after_the_other_and_short_tracks_are_looped(tmp_path):
    tracks = (_ramp(tmp_path / "long.wav", 2.5), _ramp(tmp_path / "short.wav", 0.4))
    found = cut_clips(SoundSet("x", tracks, (2, 2.9)), RATE, 1.0)
    assert found.wavs.shape == (3, 1, RATE) and found.wavs.dtype == torch.float32 and found.tracks == (0, 0, 1)
    assert found.wavs[0, 0, -1] < found.wavs[1, 0, 0] < found.wavs[1, 0, -1]
    short = found.wavs[2, 0]
    assert torch.equal(short[:6400], short[6400:12800])


def test_a_data_set_is_found_by_name_and_cut_to_its_minutes(home):
    tracks = [Track(f"/x/{i}.wav", 60.0, RATE) for i in range(10)]
    write_manifest(paths.manifests_dir("beats") / "train", tracks)
    write_manifest(paths.manifests_dir("beats") / "valid", tracks[:2])
    assert len(find_sounds("beats", split="valid", max_minutes=30, seed=0).tracks) == 2
    assert len(find_sounds("beats", split="both", max_minutes=30, seed=0).tracks) == 10
    some = find_sounds("beats", split="train", max_minutes=3, seed=0)
    assert (
        len(some.tracks) == 3 and some.total == (10, 600.0) and "3 tracks, 3.0 min of 10 (10.0 min)" in some.describe()
    )
    assert some == find_sounds("beats", split="train", max_minutes=3, seed=0)
    assert some.tracks == tuple(sorted(some.tracks, key=lambda track: track.path))
    with pytest.raises(MissingFileError, match="known: beats"):
        find_sounds("beat", split="train", max_minutes=3, seed=0)


def test_unreadable_files_of_a_folder_are_named(tmp_path):
    _ramp(tmp_path / "good.wav", 1.0)
    (tmp_path / "bad.wav").write_bytes(b"RIFF no")
    found = find_sounds(str(tmp_path), split="valid", max_minutes=1, seed=0)
    assert len(found.tracks) == 1 and "bad.wav" in found.skipped[0]


def test_labels_come_from_the_csv_or_from_the_data_set(tmp_path):
    tracks = (
        Track("/music/a.wav", 1.0, RATE, info={"genre": ["dub", "roots"]}),
        Track("/music/b.wav", 1.0, RATE, info={"genre": []}),
        Track("/music/c.wav", 1.0, RATE),
    )
    sounds = SoundSet("x", tracks, (3, 3.0))
    assert track_labels(sounds, "genre", None) == ["dub", None, None]
    table = tmp_path / "labels.csv"
    table.write_text("file,genre,mood\na.wav,house,\nb,jungle,wild\n/music/c.wav,dub,calm\n", encoding="utf-8")
    assert track_labels(sounds, "genre", table) == ["house", "jungle", "dub"]
    assert track_labels(sounds, "mood", table) == [None, "wild", "calm"]
    with pytest.raises(MicroMusicGenError, match="cannot read labels"):
        track_labels(sounds, "genre", tmp_path / "none.csv")
