"""The models of the diffusion bench, trained by the project's own trainer: decoder, regression twin, LMs."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_home import BOTH, Home
from pool import run_process

DECODERS = {"diffusion": "v", "regression": "regression"}
"""The decoder and its twin, by objective. The rest of them is equal."""
WIDE = (
    "denoiser.dit.dim=256",
    "denoiser.dit.depth=4",
    "denoiser.dit.num_heads=4",
    "denoiser.dit.head_dim=64",
    "denoiser.dit.mlp_dim=512",
)
"""Wider and shallower than dit_nano: in equal time it came to the lowest error of a dozen shapes."""
IGNORED = ("device=", "num_threads=")
"""Overrides that decide no result."""


@dataclass(frozen=True, kw_only=True)
class DecoderPlan:
    """How a decoder and its twin are trained. network: of config/model/denoiser. more: further overrides of both.

    twin_epochs: of the twin. segment_s: the window that the network learns, and plays in. threads: 0 for all; decides
    no result.
    """

    network: str = "dit_nano"
    epochs: int = 48
    twin_epochs: int = 20
    updates: int = 250
    batch_size: int = 8
    lr: str = "1e-3"
    segment_s: float = 4.0
    loss_weight: str = "uniform"
    seed: int = 2036
    more: tuple[str, ...] = WIDE
    device: str = "cpu"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class LMPlan:
    """How the language models are trained: one over the first codebooks, and one of each of `full_scales` over all.

    A decoder's time may as well go into a larger model, so there is more than one peer. minutes: of training, each.
    few_scale, full_scales: of config/model/lm/model_scale.
    """

    codebooks: int = 4
    card: int = 256
    few: int = 2
    minutes: float = 3.0
    few_scale: str = "nano"
    full_scales: tuple[str, ...] = ("nano", "tiny")
    batch_size: int = 16
    segment_s: float = 4.0
    lr: str = "2e-3"
    seed: int = 2036
    device: str = "cpu"
    threads: int = 0

    @property
    def scales(self) -> dict[str, str]:
        """Gives the scale of each model by its name: `few`, `full_nano`, ..."""
        return {"few": self.few_scale, **{f"full_{scale}": scale for scale in self.full_scales}}


QUICK_DECODER = DecoderPlan(epochs=2, twin_epochs=2, updates=40)
QUICK_LM = LMPlan(minutes=0.2, full_scales=("nano",))


def decoder_argv(home: Home, plan: DecoderPlan, name: str) -> list[str]:
    """Gives the overrides of a decoder's run, as they would be typed after `dora run`. name: one of `DECODERS`."""
    return [
        "solver=diffusion_decoder/codes",
        f"model=denoiser/{plan.network}",
        f"dset=audio/{BOTH}",
        f"compression_model_checkpoint={home.codec}",
        f"diffusion.objective={DECODERS[name]}",
        f"diffusion.loss_weight={plan.loss_weight}",
        f"dataset.batch_size={plan.batch_size}",
        f"dataset.segment_duration={plan.segment_s:g}",
        f"optim.epochs={plan.epochs if name == 'diffusion' else plan.twin_epochs}",
        f"optim.updates_per_epoch={plan.updates}",
        f"optim.lr={plan.lr}",
        f"seed={plan.seed}",
        *plan.more,
        "generate.every=never",
        "generate.every_minutes=null",
        f"device={plan.device}",
        f"num_threads={plan.threads}",
    ]


def lm_argv(home: Home, plan: LMPlan, name: str) -> list[str]:
    """Gives the overrides of a language model's run. name: one of the plan's `scales`."""
    number, scale = plan.few if name == "few" else plan.codebooks, plan.scales[name]
    each = ",".join(str(book) for book in range(number))
    zeros = ",".join("0" * number)
    codec = home.codec if number == plan.codebooks else f"{home.codec}:{number}"
    return [
        "solver=musicgen/micro_32khz",
        f"dset=audio/{BOTH}",
        f"model/lm/model_scale={scale}",
        f"compression_model_checkpoint={codec}",
        f"transformer_lm.card={plan.card}",
        f"transformer_lm.n_q={number}",
        f"codebooks_pattern.delay.delays=[{each}]",
        f"codebooks_pattern.unroll.flattening=[{each}]",
        f"codebooks_pattern.unroll.delays=[{zeros}]",
        f"dataset.batch_size={plan.batch_size}",
        f"dataset.segment_duration={plan.segment_s:g}",
        "transformer_lm.dropout=0.1",
        "transformer_lm.attention_dropout=0.0",  # torch's fast attention has none on a CPU
        "optim.optimizer=muon",
        f"optim.lr={plan.lr}",
        f"optim.minutes={plan.minutes:g}",
        f"label=equal-time-{plan.minutes:g}",  # minutes are no part of a signature
        "generate.every=never",
        f"seed={plan.seed}",
        f"device={plan.device}",
        f"num_threads={plan.threads}",
    ]


def train_decoders(home: Home, plan: DecoderPlan) -> dict[str, str]:
    """Gives references of the decoder and its twin by name; what is trained already is not trained again.

    Raises:
        WorkerFailure: one can't be trained.
    """
    return {name: train(home, decoder_argv(home, plan, name)) for name in DECODERS}


def train_lms(home: Home, plan: LMPlan) -> dict[str, str]:
    """Gives references of the language models by name; what is trained already is not trained again.

    Raises:
        WorkerFailure: one can't be trained.
    """
    return {name: train(home, lm_argv(home, plan, name)) for name in plan.scales}


def train(home: Home, argv: Sequence[str]) -> str:
    """Gives the reference of the run of `argv`, trained in a process of its own unless the home's notes know it.

    A run of so many minutes would go on for as many if it were started again.

    Raises:
        WorkerFailure: it can't be trained.
    """
    note = note_of(home, argv)
    if not note.is_file():
        told = json.dumps([str(home.data), list(argv)])
        run_process([sys.executable, str(Path(__file__).resolve()), told], timeout_s=6 * 3600)
    return f"//sig/{_read(note)['signature']}"


def note_of(home: Home, argv: Sequence[str]) -> Path:
    """Gives the file that remembers the run of `argv`, wherever and with however many threads it was trained."""
    decisive = [argument for argument in argv if not argument.startswith(IGNORED)]
    return home.notes / f"run-{hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]}.json"


def are_decoders_trained(home: Home, plan: DecoderPlan) -> bool:
    """Says whether the decoder and its twin are there, around a codec that is."""
    return all(note_of(home, decoder_argv(home, plan, name)).is_file() for name in DECODERS)


def are_trained(home: Home, decoders: DecoderPlan, lms: LMPlan) -> bool:
    """Says whether all models of both plans are there."""
    if not home.is_finished or not are_decoders_trained(home, decoders):
        return False
    return all(note_of(home, lm_argv(home, lms, name)).is_file() for name in lms.scales)


def _read(note: Path) -> Mapping[str, str]:
    found: Mapping[str, str] = json.loads(note.read_text(encoding="utf-8"))
    return found


def steps_of(home: Home, reference: str) -> int:
    """Gives the training steps that a run has done."""
    summary = home.data / "xps" / reference.removeprefix("//sig/") / "summary.json"
    return int(json.loads(summary.read_text(encoding="utf-8"))["updates_done"])


def main() -> None:
    """Trains one model: [data home, overrides] as JSON."""
    data, argv = json.loads(sys.argv[1])
    home = Home(Path(data))
    from micro_musicgen import paths, storage

    os.environ[paths.HOME_VARIABLE] = str(home.data)
    from micro_musicgen.train import run_xp

    run = run_xp(argv)
    storage.write_json(note_of(home, argv), {"signature": run.name, "argv": argv})


if __name__ == "__main__":
    main()
