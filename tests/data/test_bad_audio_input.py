"""Every bad input of issue 2 that touches files: one line that names the value and the way out."""

import os

import av
import numpy as np
import pytest
import soundfile

from micro_musicgen.audio.io import load_mono, probe, read_audio, write_wav
from micro_musicgen.data.prepare import prepare
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

SAMPLE_RATE = 44_100


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "Böse Dateien"
    root.mkdir()
    return root


def noise(duration_s: float = 1.0, channels: int = 1, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (round(duration_s * sample_rate), channels))


def message(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 400 and error.value.exit_code == 2
    return text


def the_reason(folder, **options) -> str:
    """Prepares `folder` with one good file added; gives why the only other file was skipped."""
    good = np.random.default_rng(1).uniform(-0.5, 0.5, 32_000)
    soundfile.write(folder / "good.wav", good, 32_000)
    report = prepare(folder, "x", **options)
    assert [os.path.basename(track.path) for track in report.tracks] == ["good.wav"]
    assert len(report.skipped) == 1 and "\n" not in report.skipped[0].reason
    assert any(report.skipped[0].reason in line for line in report.summary_lines())
    return report.skipped[0].reason


def test_truncated_flac(home, folder):
    path = folder / "cut off.flac"
    soundfile.write(path, noise(3.0), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableAudioError) as error:
        read_audio(path)
    assert message(error).startswith(f"{path} is damaged or cut off (") and "export it again" in message(error)
    assert the_reason(folder).startswith("is damaged or cut off (")


def test_truncated_mp3(home, folder):
    path = folder / "cut off.mp3"
    soundfile.write(path, noise(3.0), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableAudioError) as error:
        read_audio(path)
    assert "s of the stated 3.00 s can be read; copy or export it again" in message(error)
    assert the_reason(folder).startswith("is cut off: 1.")


def test_m4a_cut_off_and_aac_with_a_hole(home, folder):
    for name, options in (("cut off.m4a", {"movflags": "faststart"}), ("hole.aac", {})):
        with av.open(str(folder / name), "w", options=options) as container:
            stream = container.add_stream("aac", rate=SAMPLE_RATE)
            stream.layout = "mono"
            samples = noise(3.0).T[:, : 128 * 1024].astype(np.float32)
            for start in range(0, samples.shape[1], 1024):
                piece = np.ascontiguousarray(samples[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = SAMPLE_RATE, start
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    whole, hole = (folder / "cut off.m4a").read_bytes(), (folder / "hole.aac").read_bytes()
    (folder / "cut off.m4a").write_bytes(whole[: len(whole) // 2])
    (folder / "hole.aac").write_bytes(hole[:9000] + bytes(2000) + hole[11_000:])
    soundfile.write(folder / "good.wav", noise(), SAMPLE_RATE)
    reasons = {skipped.path: skipped.reason for skipped in prepare(folder, "x").skipped}
    assert reasons.keys() == {"cut off.m4a", "hole.aac"}
    assert reasons["cut off.m4a"].endswith("s of the stated 2.97 s can be read; copy or export it again")
    assert reasons["hole.aac"].startswith("is damaged or cut off (Invalid data found when processing input);")


def test_text_file_named_wav(home, folder):
    path = folder / "text.wav"
    path.write_text("this is no audio\n" * 100)
    for read in (read_audio, probe, lambda p: load_mono(p, 32_000)):
        with pytest.raises(UnreadableAudioError) as error:
            read(path)
        assert message(error) == f"{path} is not audio that can be decoded; export it again as wav or flac"
    assert the_reason(folder) == "is not audio that can be decoded; export it again as wav or flac"


def test_playlist_named_m4a_opens_nothing_else(home, folder):
    soundfile.write(folder.parent / "other.wav", noise(), SAMPLE_RATE)
    path = folder / "list.m4a"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    assert the_reason(folder) in (
        "is not audio that can be decoded; export it again as wav or flac",
        "has no audio stream; leave it out",
    )


def test_empty_file(home, folder):
    path = folder / "empty.wav"
    path.touch()
    with pytest.raises(UnreadableAudioError) as error:
        read_audio(path)
    assert message(error) == f"{path} is empty (0 bytes); copy or export it again"
    assert the_reason(folder).startswith("is empty (0 bytes)")


def test_header_without_samples(home, folder):
    path = folder / "header.wav"
    soundfile.write(path, np.zeros((0, 2)), SAMPLE_RATE)
    with pytest.raises(UnreadableAudioError) as error:
        probe(path)
    assert message(error) == f"{path} holds no samples; leave it out or export it again"
    assert the_reason(folder).startswith("holds no samples")


def test_video_without_sound(home, folder):
    path = folder / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UnreadableAudioError) as error:
        read_audio(path)
    assert message(error) == f"{path} has no audio stream; leave it out"
    assert the_reason(folder) == "has no audio stream; leave it out"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_samples(home, folder, bad):
    path = folder / "nan.wav"
    wav = noise(5.0)
    wav[200_000] = bad
    soundfile.write(path, wav, SAMPLE_RATE, subtype="FLOAT")
    for read in (read_audio, lambda p: load_mono(p, 32_000)):
        with pytest.raises(UnreadableAudioError) as error:
            read(path)
        assert message(error) == f"{path} holds NaN or infinite samples; export it again"
    assert the_reason(folder) == "holds NaN or infinite samples; export it again"


def test_silence(home, folder):
    soundfile.write(folder / "hush.wav", 1e-4 * noise(), SAMPLE_RATE, subtype="FLOAT")
    reason = the_reason(folder)
    assert reason == "silent: peak -86 dBFS is below -60 dBFS; pass --keep-silence to keep it"
    assert len(prepare(folder, "x", keep_silence=True).tracks) == 2


def test_too_short(home, folder):
    soundfile.write(folder / "blip.wav", noise(0.05), SAMPLE_RATE)
    assert the_reason(folder) == "0.050 s is shorter than 0.25 s; pass --min-duration 0.05 to keep it"
    assert len(prepare(folder, "x", min_duration_s=0.05).tracks) == 2


def test_three_channels(home, folder):
    soundfile.write(folder / "surround.wav", noise(channels=3), SAMPLE_RATE)
    assert the_reason(folder) == "has 3 channels, at most 2 are read; mix it down to mono or stereo"


def test_sample_rate_of_8_khz(home, folder):
    soundfile.write(folder / "phone.wav", noise(sample_rate=8000), 8000)
    assert the_reason(folder) == "sample rate 8000 Hz is below 16000 Hz; pass --min-sample-rate 8000 to keep it"
    assert len(prepare(folder, "x", min_sample_rate=8000).tracks) == 2


def test_name_that_is_no_text(home, folder):
    try:
        soundfile.write(os.fsencode(str(folder / "x")) + b"\xff.wav", noise(), SAMPLE_RATE, format="WAV")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert the_reason(folder) == "its name is not valid UTF-8; rename it"


def test_missing_file_and_folder_in_place_of_one(folder):
    with pytest.raises(UnreadableAudioError) as error:
        read_audio(folder / "gone.wav")
    assert message(error) == f"{folder / 'gone.wav'} does not exist; check the path"
    with pytest.raises(UnreadableAudioError) as error:
        probe(folder)
    assert message(error) == f"{folder} is a folder; name an audio file in it"


def test_missing_folder_and_file_in_place_of_one(home, folder):
    with pytest.raises(MicroMusicGenError) as error:
        prepare(folder / "gone", "x")
    assert message(error) == f"folder {folder / 'gone'} does not exist; check the path"
    path = folder / "a.wav"
    path.touch()
    with pytest.raises(MicroMusicGenError) as error:
        prepare(path, "x")
    assert message(error) == f"{path} is a file; name the folder that holds it"
    assert not home.exists()


def test_empty_folder(home, folder):
    (folder / "readme.txt").touch()
    with pytest.raises(MicroMusicGenError) as error:
        prepare(folder, "x")
    assert message(error) == f"{folder} holds no audio file (files of other kinds: 1); name another folder"


def test_no_readable_file(home, folder):
    for name in "abcde":
        (folder / f"{name}.wav").write_text("no audio " * 9)
    with pytest.raises(MicroMusicGenError) as error:
        prepare(folder, "x")
    text = message(error)
    assert text.startswith(f"no file in {folder} can be used: a.wav (is not audio that can be decoded")
    assert text.endswith("and 2 more; name another folder")


@pytest.mark.parametrize("name", ["", "ä", "a b", "../x", ".x", "-x", "x.yaml", "a/b", "a\n", "default", "Default"])
def test_bad_name(home, folder, name):
    with pytest.raises(MicroMusicGenError, match="name .* is (not usable|taken)") as error:
        prepare(folder, name)
    assert repr(name) in message(error)


def test_name_like_a_run(home, folder):
    with pytest.raises(MicroMusicGenError) as error:
        prepare(folder, "deadbeef")
    assert "'deadbeef' looks like the signature of a run; choose another, such as deadbeef-set" in message(error)


def test_data_home_that_is_a_file(folder, tmp_path, monkeypatch):
    (tmp_path / "home").touch()
    monkeypatch.setenv("MICRO_MUSICGEN_HOME", str(tmp_path / "home"))
    soundfile.write(folder / "a.wav", noise(), SAMPLE_RATE)
    with pytest.raises(MicroMusicGenError) as error:
        prepare(folder, "x")
    assert "cannot write to" in message(error) and "choose a folder that you can write to" in message(error)


def test_output_folder_that_cannot_be_written(folder):
    (folder / "out").touch()
    with pytest.raises(MicroMusicGenError) as error:
        write_wav(folder / "out" / "clip.wav", noise().T, SAMPLE_RATE)
    assert "choose a folder that you can write to" in message(error)
