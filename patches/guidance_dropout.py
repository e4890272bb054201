"""Guidance contrasts with a model that knows no condition at all, so its dropout must drop every kind there is."""

import functools
from typing import Any

from micro_musicgen.patching import Patch

DROPPED_UPSTREAM = ("wav", "text")


def _apply(module: Any) -> None:
    dropout = module.ClassifierFreeGuidanceDropout
    forward = dropout.forward

    @functools.wraps(forward)
    def drop_all(self: Any, samples: Any) -> list[Any]:
        kept: list[Any] = forward(self, samples)
        dropped = kept is not samples  # upstream copies the samples exactly when it drops
        for sample in kept if dropped else ():
            for kind, names in sample.attributes.items():
                for name in [] if kind in DROPPED_UPSTREAM else list(names):
                    module.dropout_condition(sample, kind, name)
        return kept

    dropout.forward = drop_all


PATCH = Patch(
    name="guidance_dropout",
    target="audiocraft.modules.conditioners:ClassifierFreeGuidanceDropout.forward",
    broken="nulls only wav and text: another kind of condition stays in the unconditional branch, guidance ignores it",
    issue="none known",
    fingerprints=("3ecaac6994476adc",),
    gone_when="the dropout goes through all attributes",
    apply=_apply,
)
