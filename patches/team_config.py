"""An installed audiocraft has no config/teams folder: dataset paths and references then resolve against our home."""

import functools
import os
from pathlib import Path
from typing import Any

from micro_musicgen import paths
from micro_musicgen.patching import Patch


def _apply(module: Any) -> None:
    environment = module.AudioCraftEnvironment
    read_config = environment.__init__
    shipped = Path(module.__file__).parent.parent / "config" / "teams"

    @functools.wraps(read_config)
    def init(self: Any) -> None:
        team = os.getenv("AUDIOCRAFT_TEAM", environment.DEFAULT_TEAM)
        if "AUDIOCRAFT_CONFIG" in os.environ or (shipped / f"{team}.yaml").is_file():
            read_config(self)
            return
        home = str(paths.runs_dir())
        self.team = team
        self.cluster = os.getenv("AUDIOCRAFT_CLUSTER", "default")
        self.config = module.omegaconf.OmegaConf.create({self.cluster: {"dora_dir": home, "reference_dir": home}})
        self._dataset_mappers = []

    environment.__init__ = init


PATCH = Patch(
    name="team_config",
    target="audiocraft.environment:AudioCraftEnvironment.__init__",
    broken="reads <site-packages>/config/teams/default.yaml, which no wheel contains: no data set loads",
    issue="VoiceCraft #29",
    fingerprints=("d138b82d928a3637",),
    gone_when="audiocraft's wheel ships its config, or goes on without",
    apply=_apply,
)
