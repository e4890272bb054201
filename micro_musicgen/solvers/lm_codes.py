"""Where an LM's run gets its codes from: a token store that is made once, or the codec at every step."""

from __future__ import annotations

from functools import partial

from omegaconf import DictConfig

from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.data.code_crops import CodeCrops
from micro_musicgen.data.crops import AudioCrops
from micro_musicgen.data.encode import build_token_store
from micro_musicgen.data.live_codes import LiveCodes
from micro_musicgen.data.manifest import read_manifest
from micro_musicgen.data.tokens import TokenSettings, TokenStore, store_folder, store_key
from micro_musicgen.solvers.reporting.progress import Reporter


def code_source(cfg: DictConfig, codec: Codec, split: str, dataset: str, reporter: Reporter) -> CodeCrops | LiveCodes:
    """Gives the codes of one split of the run's data set, after encoding it where that is still to be done."""
    frames = round(cfg.dataset.segment_duration * codec.frame_rate)
    if cfg.tokens.store:
        store = _token_store(cfg, codec, split, dataset, reporter)
        return CodeCrops(store, segment_frames=frames, seed=cfg.seed)
    crops = AudioCrops(
        read_manifest(cfg.datasource[split]),
        sample_rate=codec.sample_rate,
        segment_s=frames * codec.hop_samples / codec.sample_rate,
        seed=cfg.seed,
        ram_gb=cfg.dataset.ram_gb,
    )
    return LiveCodes(crops, codec, cfg.device)


def _token_store(cfg: DictConfig, codec: Codec, split: str, dataset: str, reporter: Reporter) -> TokenStore:
    tracks = read_manifest(cfg.datasource[split])
    settings = TokenSettings(segment_s=float(cfg.dataset.segment_duration))
    key = store_key(codec.content_hash, tracks, settings)
    folder = store_folder(dataset, split, key)
    reporter.message(f"codes of {len(tracks)} {split} files: {folder.name}")
    return build_token_store(
        folder,
        tracks,
        codec,
        segment_s=settings.segment_s,
        workers=None,
        load=partial(load_codec, str(cfg.compression_model_checkpoint), str(cfg.device)),
        progress=lambda done, total: reporter.stage(f"encoding {split} {done}/{total}"),
    )
