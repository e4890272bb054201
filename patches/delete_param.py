"""`conditioners: null`, which is what `conditioner=none` stores, has no parameters to delete."""

import functools
from typing import Any

from micro_musicgen.patching import Patch


def _apply(module: Any) -> None:
    delete = module._delete_param

    @functools.wraps(delete)
    def delete_param(cfg: Any, full_name: str) -> None:
        level = cfg
        for part in full_name.split(".")[:-1]:
            level = level.get(part)
            if not isinstance(level, module.DictConfig):
                return
        delete(cfg, full_name)

    module._delete_param = delete_param


PATCH = Patch(
    name="delete_param",
    target="audiocraft.models.loaders:_delete_param",
    broken="get_pretrained raises TypeError on a model that was trained without conditioners",
    issue="none known",
    fingerprints=("32d2eab0291a6f9c",),
    gone_when="_delete_param stops at a level that is null",
    apply=_apply,
)
