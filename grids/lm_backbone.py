"""audiocraft's transformer against a llama on the same codes: at equal parameters, and at equal time or equal steps.

    MICRO_MUSICGEN_GRID_MINUTES=20 dora -P micro_musicgen grid lm_backbone

| row | positions | norms | feed-forward part | keys and values |
|---|---|---|---|---|
| `transformer` | sines, added | LayerNorm | GELU, 4 d | a head for each of queries |
| `llama` | rotary | RMSNorm | SwiGLU, 8/3 d | a head for each of queries |
| `llama_grouped` | rotary | RMSNorm | SwiGLU, 3 d | a head for each two of queries |

All three weigh the same, give or take 1 %, and train alike. `MICRO_MUSICGEN_GRID_STEPS` instead of minutes gives all
the same number of steps. Column `ce` compares; `per s` says what a step costs.
"""

from __future__ import annotations

import os
from typing import Any

from dora import Launcher

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.explorers import LMExplorer, Metrics
from micro_musicgen.lm.builder import lm_config, lm_spec
from micro_musicgen.lm.scales import spec

from . import _choices

MINUTES_VARIABLE, STEPS_VARIABLE, SCALE_VARIABLE = (f"MICRO_MUSICGEN_GRID_{n}" for n in ("MINUTES", "STEPS", "SCALE"))
ROWS = ("transformer", "llama", "llama_grouped")
EPOCHS = 10
MINUTES = 20.0


def row_overrides(name: str, scale: str) -> dict[str, Any]:
    """Gives what makes the model of a row of `ROWS` at a scale that both backbones have."""
    shared = max(1, spec(scale).num_heads // 2)
    return {
        "transformer": {},
        "llama": {"model": "lm/llama_lm"},
        "llama_grouped": {"model": "lm/llama_lm", "transformer_lm.num_kv_heads": shared},
    }[name]


def explore(launcher: Launcher) -> None:
    """Schedules the rows, as one job array."""
    dataset = _choices.dataset()
    codec = _choices.codec(dataset)
    scale = os.environ.get(SCALE_VARIABLE) or "nano"
    lm = launcher.bind({"solver": "musicgen/micro_32khz", "dset": f"audio/{dataset}", "model/lm/model_scale": scale})
    lm.bind_(codec.overrides())
    each = list(range(codec.num_codebooks))
    lm.bind_({"codebooks_pattern.delay.delays": each, "generate.every": "never"})
    # torch's fast attention has none on a CPU, and both must pay the same for it.
    lm.bind_({"transformer_lm.dropout": 0.1, "transformer_lm.attention_dropout": 0.0, **_length()})
    with lm.job_array():
        for name in ROWS:
            lm(row_overrides(name, scale))


def _length() -> dict[str, Any]:
    """Gives how long every row trains: so many steps, or so many minutes."""
    steps, minutes = os.environ.get(STEPS_VARIABLE), os.environ.get(MINUTES_VARIABLE)
    if steps and minutes:
        raise MicroMusicGenError(f"both {STEPS_VARIABLE} and {MINUTES_VARIABLE} are set; unset one of them")
    if steps:
        if not steps.isdigit() or int(steps) < EPOCHS:
            raise MicroMusicGenError(f"{STEPS_VARIABLE}={steps} is no number of steps; give {EPOCHS} or more")
        return {"optim.epochs": EPOCHS, "optim.updates_per_epoch": int(steps) // EPOCHS}
    try:
        found = float(minutes or MINUTES)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise MicroMusicGenError(f"{MINUTES_VARIABLE}={minutes} is no number of minutes; give one above 0")
    # Minutes are no part of a signature.
    return {"optim.minutes": found, "label": f"equal-time-{found:g}"}


class BackboneExplorer(LMExplorer):
    """The table of language models, by what they are made of."""

    fact_names = ("backbone", "kv heads", "ffn", "M", "size")

    def facts(self, cfg: Any) -> Metrics:
        """See `RunExplorer.facts`. M is million parameters, ffn the width of the feed-forward part."""
        lm = lm_spec(lm_config(cfg))
        return {
            "backbone": lm.backbone,
            "kv heads": str(lm.num_kv_heads or lm.num_heads),
            "ffn": str(lm.ffn_dim),
            "M": f"{lm.num_parameters / 1e6:.3f}",
            "size": f"{lm.dim}x{lm.num_layers}",
        }


explorer = BackboneExplorer(explore)
