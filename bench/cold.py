"""A clip from nothing, as a user of a peer would write it: import, load, generate, decode, write the file, end.

`python cold.py ENGINE FOLDER OUT DURATION_S DEVICE`. Ours has a command for it, which is timed instead.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Writes OUT/clip.wav."""
    from peers import ENGINES

    engine, folder, out, duration_s, device = sys.argv[1:]
    made = ENGINES[engine](Path(folder), device=device, precision="fp32")
    wav = made.decode(made.codes(1, float(duration_s)))[0].cpu()
    if engine == "audiocraft":
        from micro_musicgen.upstream import audiocraft_module

        audiocraft_module("data.audio").audio_write(Path(out) / "clip", wav, made.model.sample_rate)
        return
    import soundfile

    soundfile.write(Path(out) / "clip.wav", wav.numpy().T, 32000, subtype="PCM_16")


if __name__ == "__main__":
    main()
