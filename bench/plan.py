"""What bench/speed.py measures: every case with its name, the models it needs and the aim it is held against."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pool import Variant

DEFAULT_PRECISION = "auto"
PRECISIONS = (DEFAULT_PRECISION, "fp32", "fp16", "bf16")
"""Of our engine. Rows of the default bear no precision in their name; on a CPU it is int8, on a GPU bf16."""
PEERS = (Variant("audiocraft"), Variant("transformers"))

FULL_MODELS = ("nano", "nano_nanocodec", "tiny", "micro", "midi", "mini")
QUICK_MODELS = ("micro", "nano", "nano_nanocodec", "tiny")
EXTRA_STEPS = 3
"""Steps that the delay pattern of four codebooks adds to the frames of a clip."""
FRAME_RATE = 50.0
CHUNK_S = 0.5
GUIDANCE = 3.0

Kind = Literal["steps", "seconds", "realtime"]
UNITS: dict[str, str] = {"steps": "steps/s", "seconds": "s", "realtime": "x realtime"}


@dataclass(frozen=True)
class Case:
    """One thing that every engine does with one model. aims: by precision."""

    name: str
    model: str
    do: str
    given: dict[str, Any]
    kind: Kind = "seconds"
    precisions: tuple[str, ...] = (DEFAULT_PRECISION,)
    aims: dict[str, str] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Gives the unit of its rows."""
        return UNITS[self.kind]

    def value(self, seconds: float) -> float:
        """Gives the row's number for a run that took `seconds`."""
        duration_s = float(self.given["duration_s"])
        if self.kind == "steps":
            return (duration_s * FRAME_RATE + EXTRA_STEPS) / seconds
        return duration_s / seconds if self.kind == "realtime" else seconds

    def warm_up(self, device: str) -> dict[str, Any]:
        """Gives what a worker is asked before its first timed run: shorter where a short clip warms as well."""
        whole = self.do in ("decode", "first_chunk") or device.startswith("cuda")
        return self.given if whole else {**self.given, "duration_s": min(self.given["duration_s"], 0.5)}

    def row_name(self, variant: Variant) -> str:
        """Gives the name of the row of one engine or precision."""
        return self.name if variant.label == DEFAULT_PRECISION else f"{self.name}_{variant.label}"


@dataclass(frozen=True)
class Budget:
    """How long to look. A case ends after `repeats` rounds, or after a round that ends past `case_s` seconds."""

    repeats: int
    case_s: float
    clip_s: float
    total_s: float | None = None


FULL = Budget(repeats=5, case_s=30.0, clip_s=10.0)
QUICK = Budget(repeats=2, case_s=10.0, clip_s=2.0, total_s=245.0)
"""Its time counts from the first measurement; loading what is begun before it is up may take it to five minutes."""


def plan(*, quick: bool, device: str) -> list[Case]:
    """Gives the cases in the order in which they are run, model by model, the most telling models first."""
    clip_s = QUICK.clip_s if quick else FULL.clip_s
    cases: list[Case] = []
    for model in QUICK_MODELS if quick else FULL_MODELS:
        cases += _model_cases(model, clip_s, quick=quick, device=device)
    if not quick:
        cases += _conditioned_cases(clip_s)
    return cases


def _model_cases(model: str, clip_s: float, *, quick: bool, device: str) -> Iterator[Case]:
    on_cpu = not device.startswith("cuda")
    every: tuple[str, ...] = PRECISIONS if on_cpu else (DEFAULT_PRECISION, "fp32", "bf16")
    if quick:
        every = (DEFAULT_PRECISION, "fp32")
    aim = {"nano_nanocodec": "value >= 25", "micro": None}.get(model, "value >= 6")
    if not (quick and model == "micro"):
        given = {"batch": 1, "duration_s": clip_s}
        yield Case(f"realtime_{model}", model, "job", given, "realtime", aims=_aims(aim))
    batches: tuple[int, ...] = (1, 4, 10) if on_cpu else (1, 4, 10, 64)
    for batch in (1,) if quick else batches:
        yield Case(
            f"steps_per_s_{model}_b{batch}",
            model,
            "codes",
            {"batch": batch, "duration_s": clip_s if batch == 1 else min(clip_s, 4.0)},
            "steps",
            # A CPU without units for bf16 takes minutes for a batch of it.
            precisions=every if batch == 1 or not on_cpu else (DEFAULT_PRECISION, "fp32"),
            aims=_aims(_steps_aim(model, batch, on_cpu=on_cpu)),
        )
    if model == "nano":
        yield _decode_case("base", model, 1, clip_s, "ratio >= 4")
        yield _decode_case("base", model, 10, min(clip_s, 1.0) if quick else clip_s, "ratio >= 8")
    if model == "nano_nanocodec":
        yield _decode_case("nano", model, 1, clip_s, None)
    if model == "tiny" or (model == "nano" and not quick):
        yield Case(
            f"first_chunk_{model}_s",
            model,
            "first_chunk",
            {"duration_s": clip_s, "chunk_s": CHUNK_S},
            aims=_aims("value <= 0.3" if model == "tiny" else None),
        )
    if model == "micro":
        yield Case(
            "job_micro_b10_s", model, "job", {"batch": 10, "duration_s": clip_s}, aims=_aims("ratio >= 6"),
            precisions=(DEFAULT_PRECISION,) if quick else (DEFAULT_PRECISION, "fp32"),
        )  # fmt: skip


def _steps_aim(model: str, batch: int, *, on_cpu: bool) -> str | None:
    if model != "micro" or batch != 1:
        return None
    return "ratio >= 3" if on_cpu else "value >= 1000"


def _aims(aim: str | None) -> dict[str, str]:
    return {DEFAULT_PRECISION: aim} if aim else {}


def _decode_case(codec: str, model: str, batch: int, clip_s: float, aim: str | None) -> Case:
    return Case(
        f"decode_{codec}_b{batch}_s",
        model,
        "decode",
        {"batch": batch, "duration_s": clip_s},
        precisions=(DEFAULT_PRECISION, "fp32"),
        aims=_aims(aim),
    )


def _conditioned_cases(clip_s: float) -> Iterator[Case]:
    """Gives musicgen-small's topology with random conditions. Guidance off is one branch; on, two."""
    for word, guidance in (("off", 1.0), ("on", GUIDANCE)):
        for batch in (1,):
            yield Case(
                f"steps_per_s_small_guidance_{word}_b{batch}",
                "small",
                "codes",
                {"batch": batch, "duration_s": min(clip_s, 2.0), "guidance": guidance},
                "steps",
                precisions=(DEFAULT_PRECISION, "fp32"),
            )


def wanted(cases: list[Case], only: str | None) -> list[Case]:
    """Gives the cases of which any row's name holds a match of the regular expression `only`; all without one."""
    if only is None:
        return cases
    pattern = re.compile(only)
    return [case for case in cases if any(pattern.search(case.row_name(v)) for v in variants_of(case))]


def variants_of(case: Case) -> list[Variant]:
    """Gives our engine under every precision that the case asks for, then the peers."""
    return [*(Variant("ours", precision) for precision in case.precisions), *PEERS]
