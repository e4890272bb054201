"""audiocraft writes audio by piping to an `ffmpeg` binary; soundfile and PyAV, which it needs anyway, can write too."""

import functools
import logging
import shutil
from typing import Any

from micro_musicgen.patching import Patch

logger = logging.getLogger(__name__)

SUBTYPES = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS"}
BLOCK = 1 << 16  # samples; libsndfile's Vorbis encoder overflows the stack when given minutes at once


def _apply(module: Any) -> None:
    @functools.wraps(module._piping_to_ffmpeg)
    def write(out_path: Any, wav: Any, sample_rate: int, flags: list[str]) -> None:
        options = dict(zip(flags[::2], flags[1::2], strict=True))
        samples = module.f32_pcm(wav).detach().cpu().clamp(-1, 1).contiguous().numpy()  # [C, L]
        if options["-f"] == "mp3":
            return _write_mp3(module.av, str(out_path), samples, sample_rate, options)
        if "-b:a" in options:
            logger.warning("no ffmpeg: %s is written at the encoder's own rate, not %s", out_path, options["-b:a"])
        kind = {"format": options["-f"].upper(), "subtype": SUBTYPES[options["-f"]]}
        with module.soundfile.SoundFile(str(out_path), "w", sample_rate, len(samples), **kind) as file:
            for start in range(0, samples.shape[1], BLOCK):
                file.write(samples[:, start : start + BLOCK].T)

    module._piping_to_ffmpeg = write


def _write_mp3(av: Any, path: str, samples: Any, sample_rate: int, options: dict[str, str]) -> None:
    layout = "mono" if len(samples) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate = sample_rate
    with av.open(path, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=sample_rate, layout=layout)
        stream.bit_rate = 1000 * int(options["-b:a"].removesuffix("k"))
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


PATCH = Patch(
    name="audio_write",
    target="audiocraft.data.audio:_piping_to_ffmpeg",
    broken="FileNotFoundError without an ffmpeg binary, and the epoch is lost as generate comes before commit",
    issue="AC #93 #248 #475 #553",
    fingerprints=("66b6469f3d662d32",),
    gone_when="audiocraft writes through soundfile",
    apply=_apply,
    needed=lambda: shutil.which("ffmpeg") is None,
)
