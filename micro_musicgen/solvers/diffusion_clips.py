"""What a decoder run lets people hear and compare: held-out clips, through the plain decoder and through this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from micro_musicgen.audio.io import write_wav
from micro_musicgen.data.frame_crops import FrameBatch
from micro_musicgen.diffusion.model import LatentDiffusion
from micro_musicgen.diffusion.samplers import OnStep
from micro_musicgen.diffusion.sampling import params_of, sample

if TYPE_CHECKING:
    from micro_musicgen.solvers.diffusion_decoder import DiffusionDecoderSolver


def sampled(
    solver: DiffusionDecoderSolver, batch: FrameBatch, number: int, on_step: OnStep | None = None
) -> torch.Tensor:
    """Gives frames [B, D, T] sampled for the crops as the section `sampling` says, told `number` codebooks."""
    model: LatentDiffusion = solver.model
    return sample(
        model,
        solver.told(batch, [number] * len(batch.target)),
        num_frames=solver.segment_frames,
        num_clips=len(batch.target),
        params=params_of(solver.cfg.sampling),
        on_step=on_step,
    )


def compare_decoders(solver: DiffusionDecoderSolver) -> dict[str, float]:
    """Gives mel distances from the originals: `mel_kN` through this decoder, `plain_kN` through the codec's own, and
    `mel_latents` of the encoder's latents, which is what this one learns to give.
    """
    from micro_musicgen.metrics.spectral import log_mel_distance

    codec = solver.codec
    assert codec is not None and solver.target is not None
    sums: dict[str, float] = {}
    count = 0
    for batch in solver._valid_batches(solver.cfg.dataset.evaluate.num_samples):
        assert batch.codes is not None
        wav = originals(solver, batch)
        count += len(wav)
        made = {"mel_latents": codec.decode_latents(batch.target.to(solver.device))}
        for number in solver.counts:
            made[f"plain_k{number}"] = codec.decode(batch.codes[:, :number].to(solver.device))
            made[f"mel_k{number}"] = codec.decode_latents(sampled(solver, batch, number))
        for name, found in made.items():
            distance = log_mel_distance(found.cpu(), wav, codec.sample_rate)
            sums[name] = sums.get(name, 0.0) + distance * len(wav)
    return {name: value / count for name, value in sums.items()}


def originals(solver: DiffusionDecoderSolver, batch: FrameBatch) -> torch.Tensor:
    """Gives the sound [B, 1, L] that the crops were made of, from the files of the data set."""
    from micro_musicgen.audio.io import load_mono
    from micro_musicgen.data.manifest import read_manifest

    tracks = read_manifest(solver.cfg.datasource["valid"])
    assert solver.target is not None
    rate, hop = solver.target.sample_rate, solver.target.hop_samples
    wanted, found = solver.segment_frames * hop, []
    for track, start in zip(batch.tracks, batch.starts, strict=True):
        # A track shorter than a crop was looped when it was encoded.
        whole = torch.from_numpy(load_mono(tracks[track].path, rate))
        places = (torch.arange(wanted) + start * hop) % len(whole)
        found.append(whole[places])
    return torch.stack(found)[:, None]


def write_samples(solver: DiffusionDecoderSolver) -> None:
    """Writes `samples/EPOCH_N_kK.wav`, with `plain_N_kK.wav` and `original_N.wav` beside them, and the run's plots.

    Runs that are no decoder of codes write what their frames sound like, where that is known.
    """
    epoch, folder = len(solver.history), solver.folder / solver.cfg.generate.path
    target = solver.target
    batch = next(solver._valid_batches(solver.cfg.generate.num_samples))
    few = batch.first(solver.cfg.generate.num_samples)
    made = {number: sampled(solver, few, number, solver.diagnostics.on_step(number)) for number in solver.counts}
    solver.diagnostics.draw(solver, few, made)
    if target is None:
        return
    rate = target.sample_rate
    for number, frames in made.items():
        for index, wav in enumerate(target.decode(frames).cpu().numpy()):
            write_wav(folder / f"{epoch:04d}_{index}_k{number}.wav", wav, rate)
    for index, wav in enumerate(originals(solver, few).numpy()):
        write_wav(folder / f"original_{index}.wav", wav, rate)
    if solver.decodes_codes and solver.codec is not None and few.codes is not None:
        for number in solver.counts:
            plain = solver.codec.decode(few.codes[:, :number].to(solver.device))
            for index, wav in enumerate(plain.cpu().numpy()):
                write_wav(folder / f"plain_{index}_k{number}.wav", wav, rate)
    solver.reporter.message(f"{len(few.target)} clips in {folder}")
