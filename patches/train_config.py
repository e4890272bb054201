"""audiocraft.train looks for ../config beside site-packages; it gets the Hydra tree that ships with us."""

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from micro_musicgen import paths
from micro_musicgen.patching import Patch


def _apply(module: Any) -> None:
    hydra_main = module.hydra_main

    @functools.wraps(hydra_main)
    def hydra_main_with_config(config_name: str, config_path: str, **kwargs: Any) -> Callable[[Any], Any]:
        def decorate(main: Any) -> Any:
            if main.__module__ != "audiocraft.train":
                return hydra_main(config_name=config_name, config_path=config_path, **kwargs)(main)
            # Loading our own entry is what makes the tree composable: it knows where the data home is.
            import_module("micro_musicgen.train")
            # 1.3: the working directory stays, so that relative paths mean the same in both entries.
            ours = {**kwargs, "version_base": "1.3"}
            return hydra_main(config_name=config_name, config_path=str(paths.config_dir()), **ours)(main)

        return decorate

    module.hydra_main = hydra_main_with_config


def _needed() -> bool:
    spec = find_spec("audiocraft")
    if spec is None or spec.origin is None:
        return False
    return not (Path(spec.origin).parent.parent / "config" / "config.yaml").is_file()


PATCH = Patch(
    name="train_config",
    target="dora:hydra_main",
    broken="import of audiocraft.train dies: its config_path points into site-packages, where no wheel puts one",
    issue="AC #93 #248 #475 #553",
    package="dora-search",
    versions=("0.1.13",),
    fingerprints=("f862e0454e22f50f",),
    gone_when="audiocraft's wheel ships its config",
    apply=_apply,
    needed=_needed,
)
