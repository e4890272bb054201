"""Where an LM's run gets its codes from: a token store that is made once, or the codec at every step."""

from __future__ import annotations

from functools import partial

from omegaconf import DictConfig

from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.data.beat_grid import BeatGrid, BeatSteps
from micro_musicgen.data.code_crops import CodeCrops
from micro_musicgen.data.crops import AudioCrops
from micro_musicgen.data.encode import build_token_store, token_settings
from micro_musicgen.data.live_codes import LiveCodes
from micro_musicgen.data.manifest import Track
from micro_musicgen.data.tokens import TokenStore, store_folder, store_key
from micro_musicgen.solvers.reporting.progress import Reporter


def code_source(
    cfg: DictConfig, codec: Codec, split: str, dataset: str, reporter: Reporter, tracks: list[Track]
) -> CodeCrops | LiveCodes:
    """Gives the codes of one split of the run's data set, after encoding it where that is still to be done.

    tracks: those of the split that the run trains on, see `beat_run.run_tracks`.
    """
    frames = round(cfg.dataset.segment_duration * codec.frame_rate)
    grid = BeatGrid.parse(cfg)
    if cfg.tokens.store:
        store = _token_store(cfg, codec, split, dataset, reporter, tracks)
        aligns_bars = grid is None or grid.align == "bar"
        return CodeCrops(store, segment_frames=frames, seed=cfg.seed, aligns_bars=aligns_bars)
    crops = AudioCrops(
        tracks,
        sample_rate=codec.sample_rate,
        segment_s=frames * codec.hop_samples / codec.sample_rate,
        seed=cfg.seed,
        ram_gb=cfg.dataset.ram_gb,
        beats=None if grid is None else grid.samples(),
    )
    return LiveCodes(crops, codec, cfg.device)


def _token_store(
    cfg: DictConfig, codec: Codec, split: str, dataset: str, reporter: Reporter, tracks: list[Track]
) -> TokenStore:
    grid = BeatGrid.parse(cfg)
    steps = None if grid is None else BeatSteps(grid.frames_of(codec.hop_samples), grid.beats_per_bar)
    settings = token_settings(float(cfg.dataset.segment_duration), steps=steps)
    key = store_key(codec.content_hash, tracks, settings)
    folder = store_folder(dataset, split, key)
    reporter.message(f"codes of {len(tracks)} {split} files: {folder.name}")
    return build_token_store(
        folder,
        tracks,
        codec,
        segment_s=settings.segment_s,
        steps=steps,
        workers=None,
        load=partial(load_codec, str(cfg.compression_model_checkpoint), str(cfg.device)),
        progress=lambda done, total: reporter.stage(f"encoding {split} {done}/{total}"),
    )
