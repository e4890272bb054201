"""Does a clip hold together as music? How much it repeats itself in time, and how steady its tempo is.

Own code instead of librosa's: these numbers must not depend on which extras are installed, nor wait for a compiler.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from micro_musicgen.audio.mel import MelScale, magnitudes, mel_filters
from micro_musicgen.errors import MicroMusicGenError

Array = npt.NDArray[np.float64]

HOP_S = 0.012
"""Between two frames: a beat at 200 BPM is 25 of them."""
N_MELS = 40
FLOOR = 1e-4
SHORTEST_LAG_S = 0.25
"""The shortest repetition that counts: shorter ones are a sound that goes on, not a pattern."""
SLOWEST_BPM, FASTEST_BPM = 60.0, 200.0
WINDOW_S, WINDOW_HOP_S = 4.0, 1.0
NUM_SHUFFLES = 8


def log_mel_frames(wav: torch.Tensor, sample_rate: int) -> tuple[Array, float]:
    """Gives natural-log mel frames [F, N_MELS] of mono audio [L], and how many there are a second."""
    n_fft = 1 << round(np.log2(0.046 * sample_rate))
    scale = MelScale(n_fft=n_fft, hop_samples=max(1, round(HOP_S * sample_rate)), n_mels=N_MELS)
    spectrum = magnitudes(wav.detach().double().cpu().reshape(1, 1, -1), scale)[0]
    frames: Array = torch.log(mel_filters(scale, sample_rate).T @ spectrum + FLOOR).T.numpy()
    return frames, sample_rate / scale.hop_samples


def repetition(wav: torch.Tensor, sample_rate: int, *, seed: int = 0) -> float | None:
    """Gives how alike a clip [L] is to itself some time later: 1 repeats exactly, about 0 is as alike as shuffled.

    Correlation of log-mel frames at the best lag from `SHORTEST_LAG_S` to half the clip (where beats and bars lie),
    less that of the same quarter-second pieces in random order. None for clips below a second, and for silence.
    """
    frames, rate = log_mel_frames(wav, sample_rate)
    shortest, longest = round(SHORTEST_LAG_S * rate), len(frames) // 2
    if longest <= 2 * shortest:
        return None
    best = _best_lag(frames, shortest, longest)
    if best is None:
        return None
    rng, size = np.random.default_rng(seed), shortest
    pieces = [frames[at : at + size] for at in range(0, len(frames), size)]
    shuffled = [
        _best_lag(np.concatenate([pieces[i] for i in rng.permutation(len(pieces))]), shortest, longest) or 0.0
        for _ in range(NUM_SHUFFLES)
    ]
    chance = float(np.mean(shuffled))
    return (best - chance) / max(1e-9, 1 - chance)


def _best_lag(frames: Array, shortest: int, longest: int) -> float | None:
    """Gives the largest correlation of the frames with themselves later, over all lags; None for a constant clip."""
    centred = frames - frames.mean(axis=0)
    power = np.square(centred).sum(axis=1)
    if power.sum() <= 1e-9 * frames.size:
        return None
    total = np.concatenate([[0.0], np.cumsum(power)])
    lags = np.arange(shortest, longest + 1)
    shared = _autocorrelation(centred)[lags]
    # Of each lag only the frames that take part in it: otherwise later lags would look less alike than they are.
    sizes = np.sqrt(total[len(frames) - lags] * (total[-1] - total[lags]))
    return float(np.max(shared / np.maximum(sizes, 1e-9 * total[-1])))


def _autocorrelation(rows: Array) -> Array:
    """Gives sum over t and bands of x[t] x[t + lag] of rows [F, D], for lags 0 to F - 1."""
    spectrum = np.fft.rfft(rows, n=2 * len(rows), axis=0)
    found: Array = np.fft.irfft(np.square(np.abs(spectrum)).sum(axis=1))[: len(rows)]
    return found


def onset_envelope(wav: torch.Tensor, sample_rate: int) -> tuple[Array, float]:
    """Gives how much louder the bands of a clip [L] become from frame to frame, [F - 1], and frames a second."""
    frames, rate = log_mel_frames(wav, sample_rate)
    rises: Array = np.diff(frames, axis=0).clip(min=0).mean(axis=1)
    return rises, rate


def tempo(envelope: npt.ArrayLike, frame_rate: float) -> float | None:
    """Gives the beats per minute in [60, 200] at which an onset envelope [F] repeats most; None where none stands out.

    Tempi near 120 are preferred a little (a normal curve over octaves, as in Ellis 2007), the rest is autocorrelation.
    """
    rises = np.asarray(envelope, dtype=np.float64)
    rises = rises - rises.mean()
    shortest, longest = int(60 / FASTEST_BPM * frame_rate), int(np.ceil(60 / SLOWEST_BPM * frame_rate))
    if len(rises) < 2 * longest or np.square(rises).sum() <= 1e-12 * len(rises):
        return None
    found = _autocorrelation(rises[:, None])
    found = found / found[0] * len(rises) / (len(rises) - np.arange(len(rises)))
    lags = np.arange(max(2, shortest), longest + 1)
    preference = np.exp(-0.5 * np.square(np.log2(60 * frame_rate / lags / 120)))
    best = int(lags[(found[lags] * preference).argmax()])
    if found[best] <= 0:
        return None
    before, here, after = found[best - 1 : best + 2]
    bend = before - 2 * here + after
    lag = best + (float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0)
    return 60 * frame_rate / lag


def tempo_instability(wav: torch.Tensor, sample_rate: int) -> float | None:
    """Gives the coefficient of variation of the tempo over windows of a clip [L]: 0 is a machine, 0.2 no tempo at all.

    Windows of 4 s (half the clip where it is shorter than 8 s). A tempo is folded by octaves to where it is nearest to
    the clip's median: half and double time are the same pulse. None for clips below 4 s or without a pulse.
    """
    envelope, rate = onset_envelope(wav, sample_rate)
    window = min(round(WINDOW_S * rate), len(envelope) // 2)
    step = max(1, min(round(WINDOW_HOP_S * rate), window // 4))
    found = [tempo(envelope[at : at + window], rate) for at in range(0, len(envelope) - window + 1, step)]
    tempi = np.array([bpm for bpm in found if bpm is not None])
    if len(tempi) < max(2, len(found) / 2):
        return None
    folded = fold_octaves(tempi, float(np.median(tempi)))
    return float(folded.std() / folded.mean())


def fold_octaves(tempi: npt.ArrayLike, centre: float) -> Array:
    """Gives tempi multiplied by powers of two so that each lies within half an octave of `centre`.

    Raises:
        MicroMusicGenError: a tempo that is not above 0.
    """
    values = np.asarray(tempi, dtype=np.float64)
    if not (values > 0).all() or not centre > 0:
        raise MicroMusicGenError(f"tempi {values.tolist()} around {centre:g} must be above 0")
    folded: Array = values / 2.0 ** np.round(np.log2(values / centre))
    return folded
