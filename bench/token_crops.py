"""How the codes of a crop of a track, as the token store gives them, differ from codes of that crop alone.

    python bench/token_crops.py [--sounds FOLDER] [--codec REF] [--json FILE] [--quick]

The store encodes whole tracks in long windows, so a crop's first frames were encoded with what came before them; a
codec that is given the crop alone hears padding there. Counted is the share of equal codes per codebook, by distance
from the start and from the end of the crop: an encoder looks ahead by its convolutions only, and back as far as the
crop begins where it has an LSTM.

Without --codec one (nano_32khz) is trained for two minutes, with --lstm N recurrent layers; without --sounds both it
and the crops are of made-up breakbeats.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import common
import numpy as np
from common import Row, say

if TYPE_CHECKING:
    from micro_musicgen.contracts import Codec

CROP_S, WINDOW_S, OVERLAP_S = 8.0, 30.0, 2.0
CROPS, QUICK_CROPS = 64, 16
EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""Distances in frames at which a range of distances begins; the last one reaches to the middle of the crop."""
MIN_TRACK_S = CROP_S + 2.0
TRAIN_MINUTES = 2.0


def agreement(codec: Codec, wavs: list[np.ndarray], num_crops: int) -> tuple[np.ndarray, int]:
    """Gives bool [N, K, T]: whether code (k, t) of crop n is the same with and without the rest of its track.

    Crops begin a second or more from either end of the track, at whole frames.
    """
    import torch

    from micro_musicgen.data.track_codes import encode_windows

    frames, margin = round(CROP_S * codec.frame_rate), round(codec.frame_rate)
    crops_per_track = max(1, num_crops // len(wavs))
    equal = []
    for number, wav in enumerate(wavs, 1):
        store = encode_windows(wav, codec, window_s=WINDOW_S, overlap_s=OVERLAP_S)
        last = len(wav) // codec.hop_samples - frames - margin
        for start in np.linspace(margin, last, crops_per_track).astype(int):
            crop = wav[start * codec.hop_samples : (start + frames) * codec.hop_samples]
            alone = codec.encode(torch.tensor(crop)[None, None])[0].cpu().numpy()
            equal.append(alone == store[start : start + frames].T)
        say(f"{number} of {len(wavs)} tracks")
    return np.stack(equal), frames


def rows(equal: np.ndarray, frame_rate: float) -> list[Row]:
    """Gives the shares of equal codes: of whole crops, by codebook, and by distance from either edge."""
    N, K, T = equal.shape
    found = [_row("equal", equal, "all codebooks, the whole crop")]
    found += [_row(f"equal_q{k + 1}", equal[:, k], "the whole crop") for k in range(K)]
    for side, seen in (("start", equal), ("end", equal[:, :, ::-1])):
        for begin, end in zip(EDGES, [*EDGES[1:], T // 2], strict=True):
            if begin >= T // 2:
                break
            stop = min(end, T // 2)
            name = f"equal_{side}_{begin:03d}"
            note = f"frames {begin} to {stop - 1} from the {side}, {1000 * begin / frame_rate:.0f} ms on"
            found.append(_row(name, seen[:, :, begin:stop], note))
            found += [_row(f"{name}_q{k + 1}", seen[:, k, begin:stop]) for k in range(K)]
    return found


def _row(name: str, equal: np.ndarray, note: str = "") -> Row:
    by_crop = 100 * equal.reshape(len(equal), -1).mean(axis=1)
    spread = (round(float(by_crop.min()), 3), round(float(by_crop.max()), 3))
    return Row(name=name, value=round(100 * float(equal.mean()), 3), unit="%", n=len(equal), spread=spread, note=note)


def print_shares(found: list[Row], num_codebooks: int) -> None:
    """Prints one line per distance instead of one per row."""
    value = {row.name: row.value for row in found}
    columns = ["", *(f"_q{k + 1}" for k in range(num_codebooks))]
    print(f"{'equal codes, %':42}" + "".join(f"{column.lstrip('_') or 'all':>8}" for column in columns))
    for row in found:
        if row.note and not row.name.startswith("equal_q"):
            cells = "".join(f"{value[row.name + column]:8.2f}" for column in columns)
            print(f"{row.note:42}{cells}")


def read_sounds(folder: Path, sample_rate: int) -> tuple[list[np.ndarray], list[str]]:
    """Gives the sounds that are long enough, and the names of all; shorter ones follow one another as one long track.

    A store loops a short file, so its crops have an edge nowhere; here they stand in for the music that is missing.
    """
    from micro_musicgen.audio.io import load_mono
    from micro_musicgen.data.scan import find_audio

    paths = find_audio(folder).audio
    wavs = [load_mono(path, sample_rate) for path in paths]
    long = [wav for wav in wavs if len(wav) >= MIN_TRACK_S * sample_rate]
    short = [wav for wav in wavs if len(wav) < MIN_TRACK_S * sample_rate]
    if short:
        joined = np.concatenate(short)
        long.append(np.resize(joined, max(len(joined), round(MIN_TRACK_S * sample_rate))))
    return long, [path.name for path in paths]


def made_up(cache: Path) -> Path:
    """Gives a folder of made-up breakbeats."""
    from micro_musicgen.audio.synth import write_breaks

    if not (cache / "sounds").is_dir():
        write_breaks(cache / "sounds", seed=0, minutes=6.0)
    return cache / "sounds"


def trained_codec(cache: Path, sounds: Path, lstm: int) -> str:
    """Gives a reference to a codec that was trained on `sounds`; one that is there already is taken."""
    from micro_musicgen import paths, training
    from micro_musicgen.data.prepare import prepare
    from micro_musicgen.train import run_xp

    os.environ[paths.HOME_VARIABLE] = str(cache / "home")
    prepare(sounds, "bench", seed=0, valid_fraction=0.2, overwrite=True)
    request = training.TrainingRequest(
        dataset="bench", seed=2036, overrides=("generate.every=never", f"seanet.lstm={lstm}")
    )
    say(f"training a codec for {TRAIN_MINUTES:g} minutes")
    return str(run_xp(training.codec_overrides(request, TRAIN_MINUTES)))


def main() -> int:
    """Gives the exit code."""
    parser = common.bench_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--codec", metavar="REF", help="release, run, path or Hub id (default: one is trained)")
    parser.add_argument("--sounds", type=Path, metavar="FOLDER", help="music to crop (default: made-up breakbeats)")
    parser.add_argument("--lstm", type=int, default=0, metavar="N", help="recurrent layers of a codec trained here")
    given = parser.parse_args()
    from micro_musicgen import paths
    from micro_musicgen.codec.resolve import load_codec

    cache = (given.cache or paths.home() / "bench") / "token_crops"
    sounds = given.sounds or made_up(cache)
    reference = given.codec or trained_codec(cache, sounds, given.lstm)
    if given.prepare:
        return 0
    codec = load_codec(reference, given.device)
    wavs, names = read_sounds(sounds, codec.sample_rate)
    equal, frames = agreement(codec, wavs, QUICK_CROPS if given.quick else CROPS)
    found = rows(equal, codec.frame_rate)
    total_s = sum(len(wav) for wav in wavs) / codec.sample_rate
    seen = f"{len(names)} files, {total_s:.0f} s; {len(equal)} crops of {frames} frames"
    found[0] = replace(found[0], note=f"the whole crop; {seen}")
    print_shares(found, codec.num_codebooks)
    if given.json:
        common.write_report(found, common.machine(codec_hash=codec.content_hash), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
