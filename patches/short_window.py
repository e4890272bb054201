"""A model that was trained on less than 18 seconds at a time has to be playable too."""

import functools
import inspect
from typing import Any

from micro_musicgen.patching import Patch


def _apply(module: Any) -> None:
    original = module.MusicGen.set_generation_params
    signature = inspect.signature(original)

    @functools.wraps(original)
    def set_generation_params(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        if "extend_stride" not in given:
            # audiocraft's own proportion: 18 seconds of a window of 30.
            kwargs["extend_stride"] = min(18.0, 0.6 * self.max_duration)
        original(self, *args, **kwargs)

    module.MusicGen.set_generation_params = set_generation_params


PATCH = Patch(
    name="short_window",
    target="audiocraft.models.musicgen:MusicGen.set_generation_params",
    broken="MusicGen.get_pretrained dies on models whose segment is 18 s or shorter: the default stride is longer",
    issue="none known",
    fingerprints=("5afb051c4ed52647",),
    gone_when="the default stride follows the model's window",
    apply=_apply,
)
