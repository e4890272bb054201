"""Text before the sequence or attended to, and sound beside it: Model A against Model B at equal parameters and steps.

    MICRO_MUSICGEN_GRID_T5=FOLDER MICRO_MUSICGEN_GRID_STEPS=2000 dora -P micro_musicgen grid lite_ab

| row | text | codes |
|---|---|---|
| `text_prefix` (Model A) | put before the sequence | one by one, `unroll` |
| `text_audio` (Model B) | attended to, with 3 s of sound from the same track | delayed |
| `text_cross` | attended to | delayed |

All three train by `optim=lite`. Layers that attend to conditions hold a third more weights, so there are fewer of
them, and the feed-forward parts make up the rest. Column `ce` compares: whichever the order of codes, it is the
cross-entropy of the same held-out codes. `told` is how much of it the conditions save; `per s` says what a step costs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import treetable
from dora import Launcher

from micro_musicgen.contracts import LMSpec
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.explorers import History, LMExplorer, Metrics, newest
from micro_musicgen.lm.builder import lm_config, lm_spec
from micro_musicgen.lm.scales import spec

from . import _choices

T5_VARIABLE, STEPS_VARIABLE, SCALE_VARIABLE = (f"MICRO_MUSICGEN_GRID_{name}" for name in ("T5", "STEPS", "SCALE"))
ROWS = ("text_prefix", "text_audio", "text_cross")
NO_PREFIX_SAVING = 3 / 4
"""Layers that attend to conditions for every layer that does not: their matrices are 16 to 12."""
SEGMENT_S, PROMPT_S = 4.0, 3.0
EPOCHS = 10
FFN_STEP = 8
"""Widths of feed-forward parts are multiples of it."""


@dataclass(frozen=True)
class Shape:
    """A row's model: the LM, and how wide codes of an audio prompt are embedded (0 for rows without)."""

    lm: LMSpec
    prompt_dim: int = 0

    @property
    def num_parameters(self) -> int:
        """Gives all that trains but the text's projection, which all rows have alike."""
        prompt = self.prompt_dim * (self.lm.num_codebooks * self.lm.card + self.lm.dim)
        # One learned vector for each kind of condition, where there are two.
        return self.lm.num_parameters + prompt + (2 * self.lm.dim if prompt else 0)

    def overrides(self) -> dict[str, Any]:
        """Gives what makes it."""
        prompt = {"conditioners.audio_prompt.audio_prompt.dim": self.prompt_dim} if self.prompt_dim else {}
        return {
            "transformer_lm.dim": self.lm.dim,
            "transformer_lm.num_heads": self.lm.num_heads,
            "transformer_lm.num_layers": self.lm.num_layers,
            "transformer_lm.hidden_scale": self.lm.ffn_dim / self.lm.dim,
            **prompt,
        }


def shapes(scale: str, *, card: int, num_codebooks: int) -> dict[str, Shape]:
    """Gives a shape for each of `ROWS`, of as many parameters as `text_audio` has at that scale's width.

    Raises:
        MicroMusicGenError: there is no such scale.
    """
    plain = spec(scale, card=card, num_codebooks=num_codebooks)
    fewer = max(1, round(NO_PREFIX_SAVING * plain.num_layers))
    cross = replace(plain, num_layers=fewer, conditioning="cross")
    found = {
        "text_prefix": Shape(replace(plain, conditioning="prefix")),
        "text_audio": Shape(cross, prompt_dim=max(8, plain.dim // 8)),
        "text_cross": Shape(cross),
    }
    wanted = found["text_audio"].num_parameters
    return {name: _of_size(shape, wanted) for name, shape in found.items()}


def _of_size(shape: Shape, num_parameters: int) -> Shape:
    lm = shape.lm
    one_wider = 2 * lm.dim * lm.num_layers
    missing = (num_parameters - shape.num_parameters) / one_wider
    return replace(shape, lm=replace(lm, ffn_dim=lm.ffn_dim + FFN_STEP * round(missing / FFN_STEP)))


def explore(launcher: Launcher) -> None:
    """Schedules the rows."""
    dataset = _choices.dataset()
    codec = _choices.codec(dataset)
    steps = _steps()
    made = shapes(os.environ.get(SCALE_VARIABLE) or "nano", card=codec.cardinality, num_codebooks=codec.num_codebooks)
    lm = launcher.bind("optim=lite", solver="musicgen/micro_32khz", dset=f"audio/{dataset}")
    lm.bind_(codec.overrides())
    lm.bind_(patterns(codec.num_codebooks))
    lm.bind_({"dataset.segment_duration": SEGMENT_S, "generate.every": "never", "evaluate.every": EPOCHS})
    lm.bind_({"optim.epochs": EPOCHS, "optim.updates_per_epoch": max(1, steps // EPOCHS)})
    for name in ROWS:
        row = lm.bind({"conditioner": name, **made[name].overrides()})
        if encoder := os.environ.get(T5_VARIABLE):
            row.bind_({"conditioners.description.text.encoder": encoder})
        if made[name].prompt_dim:
            row.bind_({"conditioners.audio_prompt.audio_prompt.duration_s": PROMPT_S})
        row()


def patterns(num_codebooks: int) -> dict[str, list[int]]:
    """Gives both patterns for codecs of any number of codebooks."""
    each = list(range(num_codebooks))
    return {
        "codebooks_pattern.delay.delays": each,
        "codebooks_pattern.unroll.flattening": each,
        "codebooks_pattern.unroll.delays": [0] * num_codebooks,
    }


def _steps() -> int:
    given = os.environ.get(STEPS_VARIABLE) or "2000"
    if not given.isdigit() or int(given) < EPOCHS:
        raise MicroMusicGenError(f"{STEPS_VARIABLE}={given} is no number of steps; give {EPOCHS} or more")
    return int(given)


class ABExplorer(LMExplorer):
    """The table of language models, by the way they are conditioned."""

    fact_names = ("conditions", "codes", "M", "size")

    def facts(self, cfg: Any) -> Metrics:
        """See `RunExplorer.facts`. M is million parameters, conditioners included but the text's projection."""
        lm = lm_spec(lm_config(cfg))
        prompt = cfg.conditioners.get("audio_prompt")
        shape = Shape(lm, prompt_dim=0 if prompt is None else int(prompt.audio_prompt.dim))
        return {
            "conditions": "+".join(str(name) for name in cfg.conditioners),
            "codes": str(cfg.codebooks_pattern.modeling),
            "M": f"{shape.num_parameters / 1e6:.3f}",
            "size": f"{lm.dim}x{lm.num_layers}",
        }

    def columns(self) -> list[Any]:
        """See `RunExplorer.columns`."""
        told = [treetable.leaf("untold", ".3f", align=">"), treetable.leaf("told", ".3f", align=">")]
        return [*super().columns(), treetable.group("Conditions", told, shorten=False)]

    def values(self, sheep: Any, history: History) -> dict[str, Metrics]:
        """See `RunExplorer.values`. untold: the cross-entropy without conditions; told: what they save of it."""
        untold, loss = newest(history, "evaluate", "ce_untold"), newest(history, "evaluate", "ce")
        saved = None if untold is None or loss is None else untold - loss
        return {**super().values(sheep, history), "Conditions": {"untold": untold, "told": saved}}


explorer = ABExplorer(explore)
