"""The tables of `dora grid`: what each kind of run has to show for itself.

Everything comes from the history and the `summary.json` that a run keeps. A run that has neither yet, or that lacks
an entry, leaves its cells empty.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import treetable
from dora import Explorer, Launcher

from micro_musicgen import paths
from micro_musicgen.errors import MicroMusicGenError

Metrics = dict[str, Any]
History = list[dict[str, Metrics]]


class RunExplorer(Explorer):  # type: ignore[misc]
    """What the tables of all runs share: how far, how fast, and the most memory it took.

    Subclasses add columns: `facts`, what the run is, and `columns` with `values`, how it did. A column without a value
    stays empty. Facts repeat what is in Dora's names, as a name leaves out what is as the config has it anyway.
    """

    fact_names: ClassVar[tuple[str, ...]] = ()

    def __call__(self, launcher: Launcher) -> None:
        """Schedules the grid; a mistake of the user's is told in one line and ends the process with its exit code."""
        try:
            super().__call__(launcher)
        except MicroMusicGenError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(error.exit_code)

    def facts(self, cfg: Any) -> Metrics:
        """Gives what the run with this config is, as {column: value}; the columns are `fact_names`."""
        return {}

    def columns(self) -> list[Any]:
        """Gives the columns beside the common ones, as treetable groups."""
        return []

    def values(self, sheep: Any, history: History) -> dict[str, Metrics]:
        """Gives {group: {column: value}} for one run. `history` is never empty."""
        return {}

    def get_grid_metrics(self) -> list[Any]:
        """Gives the columns to the right of Dora's own: name, state, signature, job."""
        facts = [treetable.leaf(name, align=">") for name in self.fact_names]
        run = [
            treetable.leaf("epoch", align=">"),
            treetable.leaf("steps", align=">"),
            treetable.leaf("per s", ".2f", align=">"),
            treetable.leaf("MB", ".0f", align=">"),
        ]
        return [_group("Model", facts), _group("Run", run), *self.columns()]

    def process_sheep(self, sheep: Any, history: History) -> dict[str, Metrics]:
        """Gives one line of the table, from a history that may be cut short (`--trim`)."""
        model = {"Model": self.facts(sheep.xp.cfg)}
        if not history:
            return model
        summary = read_summary(Path(sheep.xp.folder))
        run = {
            "epoch": len(history),
            "steps": _steps(summary, len(history)),
            "per s": steps_per_s(history, summary),
            "MB": newest(history, "train", "peak_memory_mb"),
        }
        return {**model, "Run": run, **self.values(sheep, history)}


class LMExplorer(RunExplorer):
    """The table of language models: cross-entropy in nats, whole and by codebook, and what follows from it."""

    fact_names = ("size", "lr")

    def facts(self, cfg: Any) -> Metrics:
        """See `RunExplorer.facts`. Size is width x layers."""
        return {"size": f"{cfg.transformer_lm.dim}x{cfg.transformer_lm.num_layers}", "lr": f"{cfg.optim.lr:g}"}

    def columns(self) -> list[Any]:
        """See `RunExplorer.columns`."""
        valid = [
            treetable.leaf("ce", ".3f", align=">"),
            treetable.leaf("by codebook"),
            treetable.leaf("ppl", ".1f", align=">"),
            treetable.leaf("best", align=">"),
            treetable.leaf("frechet", ".3g", align=">"),
        ]
        return [
            _group("Train", [treetable.leaf("ce", ".3f", align=">")]),
            _group("Valid", valid),
            _group("Codec", [treetable.leaf("usage")]),
        ]

    def values(self, sheep: Any, history: History) -> dict[str, Metrics]:
        """See `RunExplorer.values`. Perplexity is that of a code, averaged over codebooks."""
        loss = newest(history, "valid", "ce")
        return {
            "Train": {"ce": newest(history, "train", "ce")},
            "Valid": {
                "ce": loss,
                "by codebook": by_level(history, "valid", "ce_q", ".2f"),
                "ppl": None if loss is None else math.exp(loss),
                "best": best(history, "valid", "ce"),
                "frechet": frechet(history),
            },
            "Codec": {"usage": _usage_of(str(sheep.xp.cfg.compression_model_checkpoint))},
        }


class CodecExplorer(RunExplorer):
    """The table of codecs: how near to the original, and how much of each codebook is in use, first level first."""

    fact_names = ("filters", "codes", "kbit/s")

    def facts(self, cfg: Any) -> Metrics:
        """See `RunExplorer.facts`. Codes are codebooks x their size; the bit rate is their cost to a model."""
        frames_per_s = cfg.sample_rate / math.prod(cfg.seanet.ratios)
        bits = cfg.rvq.n_q * math.log2(cfg.rvq.bins)
        return {
            "filters": cfg.seanet.n_filters,
            "codes": f"{cfg.rvq.n_q}x{cfg.rvq.bins}",
            "kbit/s": f"{bits * frames_per_s / 1000:.2f}",
        }

    def columns(self) -> list[Any]:
        """See `RunExplorer.columns`."""
        valid = [
            treetable.leaf("mel", ".3f", align=">"),
            treetable.leaf("best", align=">"),
            treetable.leaf("si_sdr", ".2f", align=">"),
            treetable.leaf("frechet", ".3g", align=">"),
        ]
        codes = [treetable.leaf("usage"), treetable.leaf("entropy")]
        return [
            _group("Train", [treetable.leaf("loss", ".3f", align=">")]),
            _group("Valid", valid),
            _group("Codes", codes),
        ]

    def values(self, sheep: Any, history: History) -> dict[str, Metrics]:
        """See `RunExplorer.values`. Usage and entropy are shares of the most that a codebook could have."""
        return {
            "Train": {"loss": newest(history, "train", "loss")},
            "Valid": {
                "mel": newest(history, "valid", "mel"),
                "best": best(history, "valid", "mel"),
                "si_sdr": newest(history, "valid", "si_sdr"),
                "frechet": frechet(history),
            },
            "Codes": {
                "usage": by_level(history, "valid", "usage_q", ".2f"),
                "entropy": by_level(history, "valid", "entropy_q", ".2f"),
            },
        }


def _group(name: str, columns: list[Any]) -> Any:
    """Gives a group whose headers are written out: Dora would cut them to single letters."""
    return treetable.group(name, columns, shorten=False)


# Cells.


def newest(history: History, stage: str, key: str) -> float | None:
    """Gives the metric's last value, or None where no epoch has it."""
    found = [epoch[stage][key] for epoch in history if key in epoch.get(stage, {})]
    return float(found[-1]) if found else None


def best(history: History, stage: str, key: str) -> str | None:
    """Gives the metric's lowest value and the epoch (the first is 1) that reached it, as "4.150 @12"."""
    found = [(epoch[stage][key], number) for number, epoch in enumerate(history, 1) if key in epoch.get(stage, {})]
    return "{:.3f} @{}".format(*min(found)) if found else None


def by_level(history: History, stage: str, prefix: str, form: str) -> str | None:
    """Gives the last values of `prefix`1, `prefix`2, ... side by side, however many codebooks there are."""
    metrics = history[-1].get(stage, {})
    levels = sorted(int(key[len(prefix) :]) for key in metrics if re.fullmatch(rf"{prefix}\d+", key))
    return " ".join(format(metrics[f"{prefix}{level}"], form) for level in levels) or None


def frechet(history: History) -> float | None:
    """Gives the last Frechet distance that any stage measured: `evaluate` is not due in every epoch."""
    for epoch in reversed(history):
        for metrics in epoch.values():
            for key, value in metrics.items():
                if key.startswith(("frechet", "fad")):
                    return float(value)
    return None


def steps_per_s(history: History, summary: Metrics) -> float | None:
    """Gives the training steps per second of the last epoch: as the run says, else from the epoch's duration."""
    said = newest(history, "train", "steps_per_s")
    duration_s = newest(history, "train", "duration")
    if said is not None or not duration_s or not summary.get("epochs_done"):
        return said
    return float(summary["updates_done"] / summary["epochs_done"] / duration_s)


def _steps(summary: Metrics, epochs: int) -> str | None:
    """Gives "done/all". Epochs are equally long, so a history cut short has done its share."""
    if not summary.get("epochs_done"):
        return None
    done = round(summary["updates_done"] * min(1.0, epochs / summary["epochs_done"]))
    return f"{done}/{summary['total_updates']}"


def _usage_of(codec: str) -> str | None:
    """Gives the codebook usage of the codec when that is a run of this home."""
    signature = codec.removeprefix("//sig/")
    if not re.fullmatch(r"[0-9a-f]{8}", signature):
        return None
    history = _read_json(paths.xp_dir(signature) / "history.json")
    return by_level(history, "valid", "usage_q", ".2f") if history else None


def read_summary(folder: Path) -> Metrics:
    """Gives a run's `summary.json`, empty where there is none yet."""
    return _read_json(folder / "summary.json") or {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
