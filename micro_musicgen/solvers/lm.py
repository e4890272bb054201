"""Trains a language model on the codes of a frozen codec.

The codes come from a token store that is made once per (data set, codec): the codec takes no part in training. Loss is
the cross-entropy averaged over codebooks, each codebook's own value is reported beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from micro_musicgen.codec.resolve import load_codec
from micro_musicgen.contracts import Codec
from micro_musicgen.data.code_crops import CodeCrops
from micro_musicgen.data.encode import build_token_store
from micro_musicgen.data.manifest import read_manifest
from micro_musicgen.data.tokens import TokenSettings, TokenStore, store_folder, store_key
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import build_lm, lm_config, lm_spec
from micro_musicgen.solvers.base import Solver, dataset_name
from micro_musicgen.solvers.registry import solvers

IGNORED = -100
"""The target of a position that the codebook pattern leaves without a prediction."""


def cross_entropy(logits: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Gives the mean cross-entropy of each codebook in nats, [K].

    logits [B, K, T, card], codes int64 [B, K, T], mask bool [B, K, T]: True where the prediction counts. Positions
    outside the mask may hold NaN. One pass over all codebooks, without boolean indexing, so the device never waits.
    """
    B, K, T, card = logits.shape
    targets = codes.masked_fill(~mask, IGNORED)
    losses = functional.cross_entropy(
        logits.reshape(-1, card).float(), targets.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    per_codebook = losses.view(B, K, T).sum(dim=(0, 2))
    return per_codebook / mask.sum(dim=(0, 2)).clamp(min=1)


def code_losses(model: Any, codes: torch.Tensor) -> torch.Tensor:
    """Gives the cross-entropy of each codebook in nats, [K], of codes [B, K, T] under an audiocraft `LMModel`.

    What `LMModel.compute_predictions` followed by upstream's loss gives, but read off the pattern's own steps: step s
    predicts step s + 1, so the logits need not be mapped back to frames.
    """
    pattern = model.pattern_provider.get_pattern(codes.shape[-1])
    sequence, _, mask = pattern.build_pattern_sequence(codes, model.special_token_id, keep_only_valid_steps=True)
    logits = model(sequence[..., :-1], [], {})
    return cross_entropy(logits, sequence[..., 1:], mask[None, :, 1:].expand(len(codes), -1, -1))


@solvers.register("musicgen")
class LMSolver(Solver):
    """The LM experiment; `cfg` is the tree under config/solver/musicgen."""

    name = "musicgen"
    best_metric = "ce"
    plotted = ("ce", "ce_q1")

    def build_model(self) -> Any:
        """Gives the LM, after making sure that it fits its codec and that the codes are there."""
        cfg = self.cfg
        if not cfg.compression_model_checkpoint:
            raise MicroMusicGenError("no codec given; add compression_model_checkpoint=//sig/SIGNATURE (or a path)")
        if cfg.compression_model_n_q is not None:
            raise MicroMusicGenError(
                f"compression_model_n_q={cfg.compression_model_n_q} is not supported here; leave it null, or use "
                "solver=musicgen/upstream_32khz"
            )
        self.codec: Codec = load_codec(cfg.compression_model_checkpoint, device=self.device)
        config = lm_config(cfg)
        self.spec = lm_spec(config)
        self._check_codec()
        self.segment_frames = round(cfg.dataset.segment_duration * self.codec.frame_rate)
        self.stores = {split: self._token_store(split) for split in ("train", "valid")}
        self.crops = {
            split: CodeCrops(store, segment_frames=self.segment_frames, seed=cfg.seed)
            for split, store in self.stores.items()
        }
        torch.manual_seed(cfg.seed)
        return build_lm(config, window_s=cfg.dataset.segment_duration, device=self.device)

    def _check_codec(self) -> None:
        codec, spec, cfg = self.codec, self.spec, self.cfg
        faults = []
        if codec.cardinality != spec.card:
            faults.append(f"card: codec {codec.cardinality}, LM {spec.card} (transformer_lm.card={codec.cardinality})")
        if codec.num_codebooks != spec.num_codebooks:
            faults.append(
                f"codebooks: codec {codec.num_codebooks}, LM {spec.num_codebooks} "
                f"(transformer_lm.n_q={codec.num_codebooks})"
            )
        if codec.sample_rate != cfg.sample_rate:
            faults.append(f"sample rate: codec {codec.sample_rate} Hz, run {cfg.sample_rate} Hz")
        if faults:
            raise MicroMusicGenError(
                f"the codec {cfg.compression_model_checkpoint} does not fit this LM: {'; '.join(faults)}"
            )

    def _token_store(self, split: str) -> TokenStore:
        tracks = read_manifest(self.cfg.datasource[split])
        settings = TokenSettings(segment_s=float(self.cfg.dataset.segment_duration))
        key = store_key(self.codec.content_hash, tracks, settings)
        folder = store_folder(dataset_name(self.xp.argv, self.cfg), split, key)
        self.reporter.message(f"codes of {len(tracks)} {split} files: {folder.name}")
        return build_token_store(folder, tracks, self.codec, segment_s=settings.segment_s)

    def losses(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives the cross-entropy per codebook, [K], of a batch of codes [B, K, T]."""
        with self.autocast():
            return code_losses(self.model, codes)

    def train_step(self, step: int) -> Mapping[str, Any]:
        """See `Solver.train_step`."""
        codes = self.crops["train"].batch(step, self.cfg.dataset.batch_size).to(self.device)
        losses = self.losses(codes)
        norm = self.descend(losses.mean())
        return {"ce": losses.mean().detach(), **_by_codebook(losses), "grad_norm": norm}

    def valid(self) -> dict[str, float]:
        """See `Solver.valid`."""
        total, count = torch.zeros(self.spec.num_codebooks), 0
        size = self.cfg.dataset.batch_size
        for codes in self.crops["valid"].valid_batches(size, self.cfg.dataset.valid.num_samples):
            total += self.losses(codes.to(self.device)).cpu() * len(codes)
            count += len(codes)
        losses = total / count
        return {"ce": float(losses.mean()), **{k: float(v) for k, v in _by_codebook(losses).items()}}

    def evaluate(self) -> dict[str, float]:
        """Gives the validation metrics again, under another name, for `evaluate.metrics.base`."""
        return self.valid()

    def generate(self) -> None:
        """Writes `generate.num_samples` clips as `samples/EPOCH_N.wav`, with one seed for the whole run."""
        from micro_musicgen.audio.io import write_wav
        from micro_musicgen.engine.codec import playing
        from micro_musicgen.engine.engine import MicroMusicGen

        section = self.cfg.generate
        player = MicroMusicGen(
            lm_config(self.cfg),
            self.model.state_dict(),
            playing(self.codec),
            window_s=float(self.cfg.dataset.segment_duration),
            device=self.device,
        )
        player.set_generation_params(
            use_sampling=section.lm.use_sampling,
            temperature=section.lm.temp,
            top_k=min(section.lm.top_k, self.spec.card),
            top_p=section.lm.top_p,
            duration=section.lm.gen_duration or float(self.cfg.dataset.segment_duration),
            seed=self.cfg.seed,
        )
        epoch = len(self.history)
        for index, wav in enumerate(player.generate_unconditional(section.num_samples).cpu().numpy()):
            write_wav(self.folder / section.path / f"{epoch:04d}_{index}.wav", wav, self.codec.sample_rate)
        self.reporter.message(f"{section.num_samples} clips in {self.folder / section.path}")

    def summary(self) -> dict[str, Any]:
        """Gives the codec, the sizes and the entropy that a model knowing only code frequencies would reach."""
        from micro_musicgen.metrics.codes import unigram_entropy

        batches = self.crops["valid"].valid_batches(64, self.cfg.dataset.valid.num_samples)
        entropy = unigram_entropy(torch.cat(list(batches)), self.spec.card)
        return {
            "codec": str(self.cfg.compression_model_checkpoint),
            "codec_hash": self.codec.content_hash,
            "num_embedding_parameters": self.spec.num_embedding_parameters,
            "unigram_entropy_valid": entropy.tolist(),
        }


def _by_codebook(losses: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"ce_q{index + 1}": value for index, value in enumerate(losses.detach())}
