"""What is known about a sound: values brought into form, four places to look, rows and the files they mean."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from micro_musicgen.data.filters import Filters
from micro_musicgen.data.info import MAX_DESCRIPTION_CHARS, clean, field_name, musical_key
from micro_musicgen.data.licenses import is_among, license_id
from micro_musicgen.data.metadata import collect
from micro_musicgen.data.metadata_sources import read_name, read_sidecar, read_tags
from micro_musicgen.data.metadata_table import match_rows, read_table
from micro_musicgen.errors import MicroMusicGenError


def sound(path: Path, seed: int = 0, **tags: str) -> Path:
    """Writes half a second of noise with tags that libsndfile knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", 16_000, 1) as file:
        for name, text in tags.items():
            setattr(file, name, text)
        file.write(np.random.default_rng(seed).uniform(-0.5, 0.5, 8000))
    return path


def tagged_by_ffmpeg(path: Path, **tags: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = {".m4a": "aac", ".mp3": "libmp3lame", ".ogg": "libvorbis", ".flac": "flac"}[path.suffix]
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"} if path.suffix == ".m4a" else {}) as made:
        stream = made.add_stream(codec, rate=44_100)
        stream.layout = "mono"
        made.metadata.update(tags)
        planar = stream.format.name.endswith("p") if stream.format else True
        kind = {"flac": "s16"}.get(codec, "fltp" if planar else "flt")
        wav = np.zeros((1, 1024), np.int16 if kind == "s16" else np.float32)
        for index in range(20):
            frame = av.AudioFrame.from_ndarray(wav, format=kind, layout="mono")
            frame.sample_rate, frame.pts = 44_100, index * 1024
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("CC0", "cc0-1.0"),
        ("cc0-1.0", "cc0-1.0"),
        ("CC0 1.0 Universal", "cc0-1.0"),
        ("Creative Commons 0", "cc0-1.0"),
        ("Creative Commons Zero", "cc0-1.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0"),
        ("Public Domain", "public-domain"),
        ("CC BY 4.0", "cc-by-4.0"),
        ("cc-by-4.0", "cc-by-4.0"),
        ("CC-BY", "cc-by"),
        ("Attribution", "cc-by"),
        ("Attribution NonCommercial", "cc-by-nc"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 3.0", "cc-by-nc-sa-3.0"),
        ("Attribution-NoDerivatives 4.0 International", "cc-by-nd-4.0"),
        ("(c) 2009 Ann. Licensed under https://creativecommons.org/licenses/by-sa/3.0/ verify", "cc-by-sa-3.0"),
        ("(c) 2009 Ann, all rights reserved", None),
        ("by Ann", None),
        ("by", None),
        ("MIT", None),
        ("", None),
    ],
)
def test_licences_have_one_name(text: str, found: str | None) -> None:
    assert license_id(text) == found
    if found is not None:
        assert license_id(found) == found


def test_a_licence_without_version_takes_all_and_never_a_stricter_one() -> None:
    assert is_among("cc-by-4.0", "cc-by") and is_among("CC BY 3.0", "Attribution") and is_among("cc0-1.0", "cc0")
    assert is_among("My own", "my own") and is_among("cc-by-4.0", "CC BY 4.0")
    for stricter in ("cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc0-1.0"):
        assert not is_among(stricter, "cc-by")
    assert not is_among("cc-by-3.0", "cc-by-4.0") and not is_among("cc-by", "cc-by-4.0")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        *[(text, "A minor") for text in ("Am", "A minor", "a min", "A_minor", "Amin", "A moll", "8A", "AMIN")],
        *[(text, "F# major") for text in ("F#maj", "F♯ major", "f sharp dur", "F#M", "2B")],
        *[(text, "Bb minor") for text in ("Bbm", "B♭ min", "B flat minor", "3A")],
        ("C", "C"),
        *[(text, None) for text in ("H", "drums", "13A", "atonal", "", "Cmin, Dmin")],
    ],
)
def test_keys_have_one_name(text: str, key: str | None) -> None:
    assert musical_key(text) == key


def test_the_wheel_of_djs_is_whole() -> None:
    minor = [musical_key(f"{number}A") for number in range(1, 13)]
    major = [musical_key(f"{number}B") for number in range(1, 13)]
    notes = "C Db D Eb E F F# G Ab A Bb B".split()
    for low, high in zip(minor, major, strict=True):  # the relative major lies three semitones higher
        assert (notes.index(low.split()[0]) + 3) % 12 == notes.index(high.split()[0])
    for before, after in zip(minor, minor[1:] + minor[:1], strict=True):  # neighbours are a fifth apart
        assert (notes.index(before.split()[0]) + 7) % 12 == notes.index(after.split()[0])


def test_values_are_brought_into_form() -> None:
    found = clean(
        {
            "Caption": " two\nlines\t\x00 here ",
            "style": ["jungle", "dub "],
            "Mood": "dark; raw, dark",
            "tempo": "170 bpm",
            "initialkey": "8A",
            "Licence": "CC BY 4.0",
            "instrument": 808,
            "title": "\ud800half",
            "colour": "red",
            "artist": "N/A",
            7: "no text",
        }
    )
    assert found.info == {
        "description": "two lines here",
        "genre": "jungle, dub",
        "moods": ["dark", "raw"],
        "bpm": 170.0,
        "key": "A minor",
        "license": "cc-by-4.0",
        "instrument": "808",
        "title": "?half",
    }
    assert not found.refused and not found.ignored
    assert clean(found.info).info == found.info
    assert clean({"caption": "other", "description": "own name first"}).info == {"description": "own name first"}
    assert field_name("Initial Key") == "key" and field_name("colour") is None


@pytest.mark.parametrize(
    ("raw", "refused", "ignored"),
    [
        ({"bpm": float("nan")}, None, "bpm nan lies outside 20 to 400"),
        ({"bpm": float("inf")}, None, "bpm inf lies outside"),
        ({"bpm": -3}, None, "bpm -3 lies outside"),
        ({"bpm": 10**400}, None, "is no number"),
        ({"bpm": "fast"}, None, "bpm 'fast' is no number"),
        ({"bpm": "1e9"}, None, "bpm 1e9 lies outside"),
        ({"bpm": [170]}, "bpm is a list; give a number", None),
        ({"bpm": True}, "bpm is true or false; give a number", None),
        ({"description": {"a": 1}}, "description is an object; give text", None),
        ({"description": "x" * (MAX_DESCRIPTION_CHARS + 1)}, "description has 20001 characters, at most 20000", None),
        ({"genre": "x" * 501}, "genre has 501 characters, at most 500", None),
        ({"moods": ["x"] * 65}, "moods has 65 entries, at most 64", None),
        ({"keywords": ["a", ["b"]]}, "keywords is a list; give text", None),
        ({"title": False}, "title is true or false; give text", None),
    ],
    ids=range(14),
)
def test_values_of_the_wrong_kind_are_named(raw: dict, refused: str | None, ignored: str | None) -> None:
    found = clean(raw)
    assert found.info == {}
    assert len(found.refused) == (refused is not None) and len(found.ignored) == (ignored is not None)
    assert (refused or "") in "".join(found.refused) and (ignored or "") in "".join(found.ignored)


def test_nothing_is_said_by_empty_words() -> None:
    for nothing in ("", " ", "None", "NaN", "null", "n/a", "unknown", None):
        assert clean({"bpm": nothing, "genre": nothing, "moods": nothing}) == clean({})
    assert clean({"moods": "dark, , none", "genre": [None, float("nan"), "dub", ""], "title": "\x00nan"}).info == {
        "genre": "dub",
        "moods": ["dark"],
    }
    assert clean({"bpm": 0}) == clean({"moods": []}) == clean({"genre": float("nan")}) == clean({})


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("amen_break_170bpm_F#min", {"bpm": 170.0, "key": "F# minor", "keywords": ["amen", "break"]}),
        ("dub_140_deep", {"bpm": 140.0, "keywords": ["dub", "deep"]}),
        ("Pad BPM90 Bb_minor warm", {"bpm": 90.0, "key": "Bb minor", "keywords": ["pad", "warm"]}),
        ("acid-172.5 BPM-Am", {"bpm": 172.5, "key": "A minor", "keywords": ["acid"]}),
        ("break_003_ragga_165bpm_4bars", {"bpm": 165.0, "keywords": ["break", "ragga"]}),
        ("kick_100", {"keywords": ["kick"]}),
        ("100_kick", {"keywords": ["kick"]}),
        ("dub_120_140_deep", {"keywords": ["dub", "deep"]}),
        ("dub_012_deep", {"keywords": ["dub", "deep"]}),
        ("I am here", {"keywords": ["here"]}),
        ("000002", {}),
        ("3f2a9c1e-77", {}),
        ("Schöne Klänge", {"keywords": ["schöne", "klänge"]}),
        ("x" * 200, {}),
        ("99999bpm", {}),
    ],
)
def test_what_a_name_says(name: str, info: dict) -> None:
    assert read_name(Path(f"/a/{name}.wav")).info == info


def test_tags_of_libsndfile_and_ffmpeg(tmp_path) -> None:
    path = sound(tmp_path / "a.wav", title="Chopped", artist="Ann", comment="A fast break", copyright="CC0")
    found = read_tags(path).info
    assert found == {"description": "A fast break", "title": "Chopped", "artist": "Ann", "license": "cc0-1.0"}
    flac = sound(tmp_path / "a.flac", genre="jungle", comment="http://freesound.org/s/1", copyright="(c) Ann")
    assert read_tags(flac).info == {"genre": "jungle", "source": "http://freesound.org/s/1", "copyright": "(c) Ann"}
    said = {"genre": "dub", "TBPM": "140", "TKEY": "Am", "comment": "Deep and slow", "mood": "dark"}
    assert read_tags(tagged_by_ffmpeg(tmp_path / "a.mp3", **said)).info == {
        "description": "Deep and slow",
        "genre": "dub",
        "bpm": 140.0,
        "key": "A minor",
        "moods": ["dark"],
    }
    ogg = tagged_by_ffmpeg(
        tmp_path / "a.flac", BPM="90", INITIALKEY="3A", LICENSE="CC BY 4.0", comment="Processed by SoX"
    )
    assert read_tags(ogg).info == {"bpm": 90.0, "key": "Bb minor", "license": "cc-by-4.0"}


def test_tags_that_can_not_be_read_say_nothing(tmp_path) -> None:
    for name, content in (("text.wav", b"no audio"), ("empty.mp3", b""), ("cut.flac", b"fLaC\0\0")):
        (tmp_path / name).write_bytes(content)
        assert read_tags(tmp_path / name).info == {}
    assert read_tags(tmp_path / "missing.wav").info == {}
    assert read_tags(tmp_path / "\udcff.wav").info == {}
    path = sound(tmp_path / "old.wav", title="Sch?ne", genre="dub")
    path.write_bytes(path.read_bytes().replace(b"Sch?ne", b"Sch\xf6ne"))  # Latin-1, as it was before UTF-8
    assert read_tags(path).info == {"title": "Schöne", "genre": "dub"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON that can be read"),
        (b"[1]", "holds no object"),
        (b"\xff\xfe", "is not JSON that can be read"),
        (b"[" * 100_000, "is not JSON that can be read"),
        (b'{"a": ' * 100_000, "is not JSON that can be read"),
        (b'{"bpm": ' + b"9" * 5000 + b"}", "is not JSON that can be read"),
        (b'{"description": "' + b"x" * (1 << 20) + b'"}', "bytes are more than the 1048576"),
        (b'{"genre": {"a": 1}, "bpm": 170}', "genre is an object"),
    ],
    ids=range(8),
)
def test_a_hostile_file_beside_a_sound_costs_a_note(tmp_path, content: bytes, words: str) -> None:
    path = sound(tmp_path / "a.wav")
    (tmp_path / "a.json").write_bytes(content)
    assert any(words in line and "\n" not in line for line in read_sidecar(path).refused)
    found = collect(tmp_path, [path])
    assert len(found.notes) == 1 and found.notes[0].startswith("a.json: ") and words in found.notes[0]
    assert found.described[path].info.get("bpm") == (170.0 if b"170" in content else None)


def test_the_first_place_that_knows_a_field_is_believed(tmp_path) -> None:
    path = sound(tmp_path / "deep_120bpm_Cmin.wav", genre="from tags", comment="From tags", artist="Tagged")
    other = sound(tmp_path / "slow_dub_90bpm.wav")
    (tmp_path / "deep_120bpm_Cmin.json").write_text(json.dumps({"genre": "beside", "title": "Beside", "bpm": None}))
    (tmp_path / "m.csv").write_text("file,title,mood\ndeep_120bpm_Cmin.wav,Row,\nslow_dub_90bpm.wav,,\n")
    found = collect(tmp_path, [path, other], tmp_path / "m.csv")
    assert found.described[path].info == {
        "description": "From tags",
        "genre": "beside",
        "bpm": 120.0,
        "key": "C minor",
        "title": "Row",
        "artist": "Tagged",
    }
    assert found.described[path].origins == {
        **{"title": "table", "genre": "sidecar", "description": "tags", "artist": "tags"},
        **{"bpm": "name", "key": "name"},
    }
    # Words of a name count only where nothing else says how the sound sounds.
    assert found.described[other].info == {"bpm": 90.0, "keywords": ["slow", "dub"]}
    assert found.num_read == 2 and found.table is not None and found.table.num_matched == 2


def table_of(tmp_path: Path, text: str, name: str = "m.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return read_table(path)


def test_forms_of_tables_give_equal_rows(tmp_path) -> None:
    rows = [("a.wav", {"genre": "jungle", "bpm": 170.0}), ("b/c.wav", {"description": "A pad, dark"})]
    forms = {
        "a.csv": 'file,genre,bpm,description\na.wav,jungle,170,\nb/c.wav,,,"A pad, dark"\n',
        "bom.csv": '\ufeffFile,Genre,BPM,Description\r\na.wav,jungle,170\r\n\r\nb/c.wav,,,"A pad, dark"\r\n',
        "semicolon.csv": "path;style;tempo;caption\na.wav;jungle;170;\nb/c.wav;;;A pad, dark\n",
        "tab.tsv": "filename\tgenre\tbpm\ttext\na.wav\tjungle\t170\t\nb/c.wav\t\t\tA pad, dark\n",
        "list.json": '[{"file": "a.wav", "genre": "jungle", "bpm": 170}, {"file": "b/c.wav", "text": "A pad, dark"}]',
        "by.json": '{"a.wav": {"genre": "jungle", "bpm": "170"}, "b/c.wav": "A pad, dark"}',
        "l.jsonl": '{"path": "a.wav", "genre": "jungle", "bpm": 170}\n\n{"path": "b/c.wav", "prompt": "A pad, dark"}\n',
    }
    for name, text in forms.items():
        assert [(row.key, row.info) for row in table_of(tmp_path, text, name).rows] == rows, name
    assert table_of(tmp_path, "name,bpm,colour\nx,9,red\n").unread == ("colour",)
    assert table_of(tmp_path, "name,bpm\nx,170\n").rows[0].info == {"name": "x", "bpm": 170.0}
    assert table_of(tmp_path, "file,bpm\nx,9\n,\n,90\n").notes == (
        "m.csv, row 2: bpm 9 lies outside 20 to 400; passed over",
        "m.csv, row 4: names no file; passed over",
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.txt", "file,bpm\n", "must be a file that ends in .csv, .tsv, .json, .jsonl"),
        ("m.csv", "", "no column that names the file in its first line ''; give it a header such as"),
        ("m.csv", "a.wav,jungle,170\n", "no column that names the file in its first line 'a.wav,jungle,170'"),
        ("m.csv", "file,colour\na.wav,red\n", "no column that is known in its first line 'file,colour'"),
        ("m.csv", "file,bpm,BPM\n", "has column 'bpm' twice"),
        ("m.csv", "file,bpm\n", "describes no file"),
        ("m.csv", "file,text,bpm\na.wav,A pad, dark,90\n", "row 2: 4 values for 3 columns; put text that holds ','"),
        ("m.csv", "file,text\na.wav," + "x" * 200_000, "row 2: field larger than field limit"),
        ("m.csv", "file,text\na.wav," + "x" * 30_000, "row 2: description has 30000 characters, at most 20000"),
        ("m.csv", b"file,text\na.wav,ok\nb.wav,sch\xf6n\n", "is not UTF-8 (line 3); save it as UTF-8"),
        ("m.json", "{", "is not JSON ("),
        ("m.json", "7", "holds neither a list of objects nor an object by file name"),
        ("m.json", "[]", "describes no file"),
        ("m.json", "{}", "describes no file"),
        ("m.json", "[7]", "item 1: is no object such as"),
        ("m.json", '[{"genre": "dub"}]', "item 1: has no key that names the file"),
        ("m.json", '[{"file": 7}]', "item 1: 'file' must be the file's name"),
        ("m.json", '[{"file": "a", "file": "b"}]', "item 1: has key 'file' twice"),
        ("m.json", '[{"file": "a", "colour": "red"}]', "has no column or key that is known"),
        ("m.json", '[{"file": "a", "genre": {"b": 1}}]', "item 1: genre is an object; give text"),
        ("m.json", '{"tracks": [{"file": "a"}]}', "key 'tracks': is no object such as"),
        ("m.json", "[" * 200_000, "is nested too deep"),
        ("m.json", '{"a":' * 200_000, "is nested too deep"),
        ("m.json", '[{"file": "a", "bpm": ' + "9" * 5000 + "}]", "is not JSON (Exceeds the limit"),
        ("m.jsonl", '{"file": "a", "bpm": 90}\n{', "m.jsonl, line 2 is not JSON"),
    ],
    ids=range(25),
)
def test_tables_that_can_not_be_used_give_one_line(tmp_path, name: str, text: str | bytes, words: str) -> None:
    with pytest.raises(MicroMusicGenError) as error:
        table_of(tmp_path, text, name)
    line = str(error.value)
    assert words in line and str((tmp_path / name).resolve()) in line and "\n" not in line and len(line) < 400


def test_a_table_that_is_missing_a_folder_or_too_large(tmp_path, monkeypatch) -> None:
    with pytest.raises(MicroMusicGenError, match="metadata file .*gone.csv does not exist; check the path"):
        read_table(tmp_path / "gone.csv")
    (tmp_path / "f.csv").mkdir()
    with pytest.raises(MicroMusicGenError, match="must be a file"):
        read_table(tmp_path / "f.csv")
    monkeypatch.setattr("micro_musicgen.data.metadata_table.MAX_TABLE_BYTES", 10)
    with pytest.raises(MicroMusicGenError, match="has 17 bytes, at most 10 are read"):
        table_of(tmp_path, "file,bpm\na.wav,90")


def test_which_file_a_row_means(tmp_path) -> None:
    root = tmp_path / "sounds"
    files = [root / name for name in ("a.wav", "x/a.wav", "x/b.flac", "y/c.d.wav", "y/Klänge.wav", "z.wav")]

    def means(key: str) -> str | None:
        matched, unmatched = match_rows(table_of(tmp_path, json.dumps({key: "x"}), "m.json"), root, files)
        assert len(matched) + len(unmatched) == 1
        return next((path.relative_to(root).as_posix() for path in matched), None)

    assert means("a.wav") == means("a") == means("./a.wav") == "a.wav"  # the path below the folder goes first
    assert means("x/a.wav") == means("x\\a.wav") == means("x/a") == means(str(root / "x/a.wav")) == "x/a.wav"
    assert means("b.flac") == means("b") == "x/b.flac"
    assert means("c.d.wav") == means("c.d") == "y/c.d.wav" and means("c") is None
    assert means("Kla\u0308nge.wav") == "y/Klänge.wav"  # as macOS writes it
    assert means("q.wav") is means("a.flac") is means("../a.wav") is None


def test_rows_that_can_not_be_told_apart_name_both(tmp_path) -> None:
    files = [tmp_path / name for name in ("x/a.wav", "y/a.wav", "b.wav", "b.flac", "c.wav")]
    for key, first, second in (("a.wav", "x/a.wav", "y/a.wav"), ("a", "x/a.wav", "y/a.wav"), ("b", "b.wav", "b.flac")):
        table = table_of(tmp_path, f"file,bpm\nc.wav,90\n{key},90\n")
        with pytest.raises(MicroMusicGenError, match=f"row 3: '{key}' means {first} and {second}; give the path"):
            match_rows(table, tmp_path, files)
    table = table_of(tmp_path, "file,bpm\nc.wav,90\nb.wav,90\nc,91\n")
    with pytest.raises(MicroMusicGenError, match=r"row 2 \('c.wav'\) and row 4 \('c'\) both mean c.wav; remove one"):
        match_rows(table, tmp_path, files)
    table = table_of(tmp_path, '{"c.wav": "one", "c.wav": "two"}', "m.json")
    with pytest.raises(MicroMusicGenError, match="both mean c.wav"):
        match_rows(table, tmp_path, files)


def test_filters() -> None:
    info = {"license": "cc-by-4.0", "genre": "Jungle, Break Beat", "instrument": "drums"}
    assert Filters().fault({}) is None and Filters.parse() == Filters()
    for wanted in ({"genre": ["break  beat"]}, {"genre": ["dub,JUNGLE"]}, {"license": ["cc0", "CC-BY"]}):
        assert Filters.parse(**wanted).fault(info) is None
    both = Filters.parse(license=["cc0"], genre=["jungle"])
    assert both.fault(info) == "license cc-by-4.0: --license cc0 leaves it out"
    assert both.fault({"genre": "jungle"}) == "has no license, --license cc0 takes none without"
    assert both.fault({"license": "cc0-1.0", "genre": "jungle"}) is None
    assert Filters.parse(genre=["jung"]).fault(info) == "genre Jungle, Break Beat: --genre jung leaves it out"
    assert both.counts([info, {}, {}, {"license": "cc0-1.0", "genre": "dub"}]) == {
        "no license": 2,
        "another license": 1,
        "another genre": 1,
    }
    with pytest.raises(MicroMusicGenError, match="--genre ' , ' names nothing; give a value such as jungle"):
        Filters.parse(genre=[" , "])
