"""How large a model a data set can feed, and at which learning rate: every scale times three rates.

    MICRO_MUSICGEN_GRID_DSET=breaks dora -P micro_musicgen grid micro_scale

Read the table by column `best`: a rate too high shows as a loss that never falls, one too low as one still falling.
`dora grid micro_scale tiny` handles the rows of one scale only.
"""

from __future__ import annotations

from dora import Launcher

from micro_musicgen.explorers import LMExplorer
from micro_musicgen.lm.scales import SCALES

from . import _choices

LEARNING_RATES = (3e-4, 1e-3, 3e-3)


def explore(launcher: Launcher) -> None:
    """Schedules the runs, one job array a scale: they need like machines."""
    dataset = _choices.dataset()
    lm = launcher.bind({"solver": "musicgen/micro_32khz", "dset": f"audio/{dataset}"})
    lm.bind_(_choices.codec(dataset).overrides())
    for scale in SCALES:
        with lm.job_array():
            for lr in LEARNING_RATES:
                lm({"model/lm/model_scale": scale, "optim.lr": lr})


explorer = LMExplorer(explore)
