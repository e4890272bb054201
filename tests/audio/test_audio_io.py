from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from micro_musicgen.audio import io
from micro_musicgen.errors import MicroMusicGenError, UnreadableAudioError

SAMPLE_RATE = 44_100
LOSSLESS = ("wav", "flac", "aiff", "caf", "alac.m4a")
LOSSY = ("ogg", "mp3", "aac.m4a", "opus")


def make_sound(sample_rate: int, num_samples: int) -> np.ndarray:
    """Chirps: no two moments are alike, so a wrong position shows at once."""
    time = np.arange(num_samples) / sample_rate
    left = 0.5 * np.sin(2 * np.pi * (200 + 150 * time) * time)
    right = 0.4 * np.sin(2 * np.pi * (900 - 90 * time) * time)
    return np.stack([left, right]).astype(np.float32)


def encode_av(path: Path, codec: str, sound: np.ndarray, sample_rate: int, **options: str) -> None:
    layout = "stereo" if len(sound) == 2 else "mono"
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=sample_rate)
        stream.layout = layout
        stream.open()
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = sample_rate, 0
        context = stream.codec_context
        resampler = av.AudioResampler(context.format, layout, sample_rate, frame_size=context.frame_size or None)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def write_sound(folder: Path, kind: str, sound: np.ndarray, sample_rate: int) -> Path:
    path = folder / f"sound.{kind}"
    codecs = {"alac.m4a": "alac", "aac.m4a": "aac", "opus": "libopus"}
    if kind in codecs:
        encode_av(path, codecs[kind], sound, sample_rate)
        return path
    with soundfile.SoundFile(path, "w", sample_rate, len(sound)) as file:
        for start in range(0, sound.shape[1], 4096):  # libsndfile 1.2.2 dies writing minutes of Vorbis at once
            file.write(sound[:, start : start + 4096].T)
    return path


def rate_of(kind: str) -> int:
    return 48_000 if kind == "opus" else SAMPLE_RATE


@pytest.mark.parametrize("kind", LOSSLESS + LOSSY)
def test_read_gives_what_was_written(tmp_path, kind):
    rate = rate_of(kind)
    sound = make_sound(rate, int(3.217 * rate))
    path = write_sound(tmp_path, kind, sound, rate)
    info = io.probe(path)
    samples, sample_rate = io.read_audio(path)
    assert samples.dtype == np.float32 and sample_rate == info.sample_rate == rate
    assert samples.shape == (info.channels, info.num_samples) == (2, info.num_samples)
    assert abs(info.num_samples - sound.shape[1]) <= (2 if kind in LOSSY else 0)
    middle = slice(rate // 10, 3 * rate)
    error = np.sqrt(np.mean((samples[:, middle] - sound[:, middle]) ** 2))
    shifted = np.sqrt(np.mean((samples[:, middle] - np.roll(sound, 5, axis=1)[:, middle]) ** 2))
    assert error < (0.02 if kind in LOSSY else 1e-4)
    assert error < shifted / 3 or kind in LOSSLESS  # 5 samples (0.1 ms) of lag would be seen


@pytest.mark.parametrize("kind", LOSSLESS + LOSSY)
def test_a_range_is_that_range_of_the_whole(tmp_path, kind):
    rate = rate_of(kind)
    path = write_sound(tmp_path, kind, make_sound(rate, int(3.217 * rate)), rate)
    whole, _ = io.read_audio(path)
    # 2.7 s lies in the last page of the Vorbis file, where libsndfile's own seek is wrong.
    for start in (0, 1, 1000, 30_000, int(1.5 * rate), int(2.7 * rate)):
        part, _ = io.read_audio(path, start_s=start / rate, duration_s=5000 / rate)
        assert part.shape == (2, 5000)
        # AAC fills gaps with noise of its own, differently after a seek
        assert np.abs(part - whole[:, start : start + 5000]).max() < (5e-4 if kind == "aac.m4a" else 1e-7)
    tail, _ = io.read_audio(path, start_s=3.0, duration_s=100)
    assert tail.shape[1] == whole.shape[1] - 3 * rate


def test_mp3_with_variable_bit_rate_is_cut_to_the_sample(tmp_path):
    rng = np.random.default_rng(0)
    sound = make_sound(SAMPLE_RATE, 4 * SAMPLE_RATE) + rng.normal(0, 0.1, (2, 4 * SAMPLE_RATE)).astype(np.float32)
    sound[:, SAMPLE_RATE : 2 * SAMPLE_RATE] = 0
    path = write_sound(tmp_path, "mp3", sound, SAMPLE_RATE)
    whole, _ = io.read_audio(path)
    for start in (5000, 100_000, 140_000):
        part, _ = io.read_audio(path, start_s=start / SAMPLE_RATE, duration_s=0.1)
        assert np.array_equal(part, whole[:, start : start + 4410])


def test_mp3_blocks_join_without_a_seam(tmp_path):
    """python-soundfile seeks after each block, and mpg123 lands elsewhere: 131072 samples in, the audio was wrong."""
    sound = make_sound(SAMPLE_RATE, 4 * SAMPLE_RATE)
    samples, _ = io.read_audio(write_sound(tmp_path, "mp3", sound, SAMPLE_RATE))
    assert np.abs(samples - sound)[:, 1000:].max() < 0.05


def test_mp3_without_length_tag_and_with_junk_behind(tmp_path):
    sound = make_sound(SAMPLE_RATE, 60_000)
    path = tmp_path / "sound.mp3"
    encode_av(path, "libmp3lame", sound, SAMPLE_RATE, write_xing="0", id3v2_version="0")
    untagged = io.read_audio(path)[0]
    assert io.probe(path).num_samples == untagged.shape[1]
    assert 0 < untagged.shape[1] - 60_000 <= 3 * 1152  # priming and padding can't be told from sound
    path.write_bytes(path.read_bytes() + b"APETAGEX" + bytes(200) + b"TAG" + b"x" * 125)
    assert np.array_equal(io.read_audio(path)[0], untagged)


def test_mp3_with_junk_inside_keeps_its_length(tmp_path):
    sound = make_sound(SAMPLE_RATE, 120_000)
    path = tmp_path / "sound.mp3"
    encode_av(path, "libmp3lame", sound, SAMPLE_RATE)
    raw = path.read_bytes()
    path.write_bytes(raw[:10_000] + b"JUNKJUNK" * 40 + raw[10_000:])
    samples, _ = io.read_audio(path)
    assert 120_000 - 4410 <= samples.shape[1] <= 120_000


def test_headerless_file_is_not_guessed_at(tmp_path):
    path = tmp_path / "sound.raw"
    path.write_bytes(bytes(5000))
    with pytest.raises(UnreadableAudioError, match="sound.raw (is not audio that can|has no audio stream)"):
        io.probe(path)


def test_bare_aac_and_its_length_by_decoding(tmp_path):
    path = tmp_path / "sound.aac"
    encode_av(path, "aac", make_sound(SAMPLE_RATE, 60_000), SAMPLE_RATE)
    assert io.probe(path).num_samples == io.read_audio(path)[0].shape[1]
    # The format has no place to state priming and padding: at most two frames too long
    assert 0 <= io.probe(path).num_samples - 60_000 <= 3 * 1024


def test_three_channels_are_read_as_they_are(tmp_path):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 2000)).astype(np.float32)
    path = tmp_path / "three.wav"
    soundfile.write(path, sound.T, SAMPLE_RATE, subtype="FLOAT")
    assert np.array_equal(io.read_audio(path)[0], sound)


@pytest.mark.parametrize("kind", ["wav", "aac.m4a"])
def test_paths_with_spaces_umlauts_and_colons(tmp_path, kind, monkeypatch):
    folder = tmp_path / "Schöne Klänge: nr. 1 %d"
    folder.mkdir()
    path = write_sound(folder, kind, make_sound(SAMPLE_RATE, 44_100), SAMPLE_RATE)
    assert io.read_audio(path)[0].shape[0] == 2
    path.rename(folder / "take:1 ä.m4a")
    monkeypatch.chdir(folder)
    assert io.load_mono("take:1 ä.m4a", 32_000).shape == (32_000,)


@pytest.mark.parametrize("rate", [44_100, 48_000, 44_099, 22_050, 32_000])
def test_load_mono_is_the_mean_at_the_new_rate(tmp_path, rate):
    time = np.arange(2 * rate) / rate
    sound = np.stack([np.sin(2 * np.pi * 440 * time), np.zeros_like(time)]) * 0.8
    path = tmp_path / "sine.wav"
    soundfile.write(path, sound.T, rate, subtype="FLOAT")
    mono = io.load_mono(path, 32_000)
    assert mono.dtype == np.float32 and mono.shape == (64_000,)
    expected = 0.4 * np.sin(2 * np.pi * 440 * np.arange(64_000) / 32_000)
    assert np.abs(mono - expected)[1000:-1000].max() < 1e-4
    for start, length in ((0, 100), (1, 5000), (31_999, 7000), (60_000, 4000)):
        part = io.load_mono(path, 32_000, start_s=start / 32_000, duration_s=length / 32_000)
        assert part.shape == (length,)
        assert np.abs(part - mono[start : start + length]).max() < 1e-5
    assert io.load_mono(path, 32_000, start_s=1.5, duration_s=9.0).shape == (16_000,)


def test_resampling_a_loop_keeps_its_seam():
    time = np.arange(44_100) / 44_100  # 440 whole periods: the end leads into the start
    wav = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(32_000) / 32_000)
    assert np.abs(io.resample(wav, 44_100, 32_000, wraps=True) - expected).max() < 1e-4
    assert np.abs(io.resample(wav, 44_100, 32_000) - expected).max() > 1e-3


@pytest.mark.parametrize("num_samples", [1, 7, 440, 441, 100_003])
def test_resampled_length(num_samples):
    wav = np.zeros(num_samples, dtype=np.float32)
    for rate in (8000, 32_000, 44_099, 48_000):
        length = io.resampled_length(num_samples, 44_100, rate)
        assert len(io.resample(wav, 44_100, rate)) == length
        assert length == max(1, int(num_samples * rate / 44_100 + 0.5))


def test_range_errors(tmp_path):
    path = write_sound(tmp_path, "wav", make_sound(SAMPLE_RATE, 44_100), SAMPLE_RATE)
    for read in (io.read_audio, lambda p, **k: io.load_mono(p, 32_000, **k)):
        with pytest.raises(MicroMusicGenError, match=r"start 5 s lies beyond the end of .*wav \(1.000 s\)"):
            read(path, start_s=5.0)
        with pytest.raises(MicroMusicGenError, match="start -1 s of .* is negative"):
            read(path, start_s=-1.0)
        with pytest.raises(MicroMusicGenError, match="duration 0 s of .* must be above 0"):
            read(path, duration_s=0.0)


def test_written_wav_comes_back(tmp_path):
    sound = make_sound(32_000, 8000)
    path = tmp_path / "new" / "clip.wav"
    io.write_wav(path, sound, 32_000)
    assert soundfile.info(path).subtype == "PCM_16"
    back, sample_rate = io.read_audio(path)
    assert sample_rate == 32_000 and np.abs(back - sound).max() < 1e-4
    io.write_wav(tmp_path / "again.wav", sound, 32_000)
    assert (tmp_path / "again.wav").read_bytes() == path.read_bytes()
    io.write_wav(path, sound[0], 32_000)
    assert io.read_audio(path)[0].shape == (1, 8000)


def test_loud_audio_is_scaled_and_not_clamped(tmp_path):
    sound = 2.5 * np.sin(2 * np.pi * 100 * np.arange(32_000) / 32_000)[None]
    io.write_wav(tmp_path / "loud.wav", sound, 32_000)
    back, _ = io.read_audio(tmp_path / "loud.wav")
    assert np.abs(back - sound / 2.5).max() < 1e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_samples_are_not_written_and_the_old_file_stays(tmp_path, bad):
    path = tmp_path / "clip.wav"
    io.write_wav(path, np.zeros(100), 32_000)
    before = path.read_bytes()
    with pytest.raises(MicroMusicGenError, match="cannot write .*clip.wav: the audio holds NaN or infinite"):
        io.write_wav(path, np.array([0.0, bad]), 32_000)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
