"""A clip to listen to while it is being made: raw PCM into a pipe, or into a player that this machine has."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator

import torch

from micro_musicgen.audio.io import load_mono
from micro_musicgen.engine.clips import ClipRequest, open_model, read_sounds, said_about
from micro_musicgen.engine.lengths import hearing, prompt_seconds
from micro_musicgen.errors import MicroMusicGenError

CHUNK_S = 0.5
PLAYERS = (
    "ffplay -loglevel error -nodisp -autoexit -f s16le -ar {rate} -ch_layout {layout} -",
    "pw-cat -p --raw --format s16 --rate {rate} --channels {channels} -",
    "paplay --raw --format=s16le --rate={rate} --channels={channels}",
    "aplay -q -t raw -f S16_LE -r {rate} -c {channels} -",
    "play -q -t raw -e signed -b 16 -r {rate} -c {channels} -",
)
"""Programs that play raw PCM from a pipe, and how each of them is told; the first one found is taken."""


def pcm_bytes(wav: torch.Tensor) -> bytes:
    """Gives audio [1, C, L] as interleaved 16-bit little-endian PCM; what is beyond full scale is cut off.

    A file can be scaled to its peak; a stream is gone before its peak is known.
    """
    scaled = (wav[0].clamp(-1, 1) * 32767).round().to(torch.int16).t().contiguous().cpu().numpy()
    return scaled.astype("<i2", copy=False).tobytes()


Sink = Callable[[bytes], object]
OpenSink = Callable[[int], contextlib.AbstractContextManager[Sink]]
"""Gives, for a sample rate in Hz, what takes the sound."""


def stream_pcm(request: ClipRequest, open_sink: OpenSink, progress: Callable[[int, int], None] | None = None) -> int:
    """Hands clip 0 of `request` on, chunk by chunk, while it is being made; gives its seed.

    progress: hears (samples given, samples in all).

    Raises:
        MicroMusicGenError: before the first chunk, whatever can't be had.
    """
    seed = secrets.randbits(31) if request.seed is None else request.seed
    model = open_model(request, seed)
    if request.repeats > 1:
        raise MicroMusicGenError(f"a clip that is played while it is made can't be played {request.repeats} times")
    prompt, rate = None, model.sample_rate
    if request.prompt is not None:
        codec = hearing(model, request.prompt)
        wav = load_mono(request.prompt, rate, duration_s=prompt_seconds(model, codec, request.prompt_duration_s))
        prompt = torch.from_numpy(wav)[None, None]
        # As if it had been recorded at the clip's tempo; in clock time the rate is what it is.
        rate = round(rate * model.hearing().sample_rate / codec.sample_rate)
    done, total = 0, model.num_samples
    said = said_about(request, range(1), read_sounds(request, model))
    chunks = model.stream(prompt=prompt, prompt_sample_rate=rate, chunk_s=CHUNK_S, **said)
    with open_sink(model.sample_rate) as sink:
        for chunk in chunks:
            sink(pcm_bytes(chunk))
            done += chunk.shape[-1]
            if progress is not None:
                progress(done, total)
    return seed


def find_player() -> str:
    """Gives the line of `PLAYERS` whose program this machine has.

    Raises:
        MicroMusicGenError: there is none.
    """
    for line in PLAYERS:
        if shutil.which(line.split()[0]):
            return line
    names = ", ".join(line.split()[0] for line in PLAYERS)
    raise MicroMusicGenError(f"found no player to listen with ({names}); install one, or pipe --stdout into another")


def player_command(line: str, sample_rate: int, channels: int = 1) -> list[str]:
    """Gives the command that a line of `PLAYERS` is for sound of this kind."""
    layout = "mono" if channels == 1 else "stereo"
    return line.format(rate=sample_rate, channels=channels, layout=layout).split()


@contextlib.contextmanager
def playing_sink(command: list[str]) -> Iterator[Sink]:
    """Gives the way into a running player; waits at the end until everything has been heard.

    Raises:
        MicroMusicGenError: the player failed.
    """
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as player:
        assert player.stdin is not None and player.stderr is not None
        try:
            yield player.stdin.write
        except KeyboardInterrupt:
            player.terminate()
            raise
        except BrokenPipeError:
            pass  # it has ended; why is said below
        with contextlib.suppress(BrokenPipeError):
            player.stdin.close()
        words = player.stderr.read().decode(errors="replace").strip().splitlines()
        if player.wait():
            reason = words[-1] if words else f"exit code {player.returncode}"
            raise MicroMusicGenError(f"the player {command[0]} failed ({reason}); try --stdout, or generate to files")
